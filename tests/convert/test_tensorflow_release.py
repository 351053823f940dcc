"""The Object Detection API's released form: a frozen SSDLite for pedestrians."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mnv2det.commands.evaluate import evaluate_source
from mnv2det.commands.import_weights import import_weights
from mnv2det.data.images import read_image
from mnv2det.models.build import from_file
from mnv2det.structures import Frame

pytestmark = [pytest.mark.shared, pytest.mark.heavy]

GRAPH = "weights/ssdlite_mnv2_pedestrian_tf/frozen_inference_graph.pb"


@pytest.fixture(scope="module")
def weights(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pedestrians")
    (folder / "map.pbtxt").write_text("item { id: 1 name: 'pedestrian' }")
    summary = import_weights(shared / GRAPH, folder / "w.safetensors", labels=folder / "map.pbtxt", progress=False)
    assert (summary["parameters"], summary["trainable"], summary["classes"]) == (3_045_126, True, 1)
    return folder / "w.safetensors"


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """TensorFlow 1's ResizeBilinear: the corner of a pixel, not its centre, is where it is sampled."""

    def axis(size: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        at = np.arange(target, dtype=np.float32) * np.float32(size / target)
        low = at.astype(np.int64)
        return low, np.minimum(low + 1, size - 1), (at - low).astype(np.float32)

    y0, y1, y = axis(image.shape[0], height)
    x0, x1, x = axis(image.shape[1], width)
    pixels, y, x = image.astype(np.float32), y[:, None, None], x[None, :, None]
    top = pixels[y0][:, x0] + (pixels[y0][:, x1] - pixels[y0][:, x0]) * x
    bottom = pixels[y1][:, x0] + (pixels[y1][:, x1] - pixels[y1][:, x0]) * x
    return top + (bottom - top) * y


def test_the_released_graph_and_its_import_find_the_same(shared: Path, root: Path, weights: Path):
    """The reference was made with TensorFlow 2.21: boxes above 0.05 of the first ten pictures of Penn-Fudan's val."""
    reference = json.loads((root / "tests/files/pedestrians_tensorflow.json").read_text())
    model, _ = from_file(str(weights))
    model.eval()
    home = shared / "pennfudan/VOCdevkit/PennFudan/JPEGImages"
    for name, wanted in reference.items():
        image = read_image(next(home.glob(f"{name}.*")))
        inputs = torch.from_numpy(resize(image, 300, 300) * np.float32(1 / 127.5) - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            raw = model(inputs)["det"]
        (found,) = model.heads["det"].decode(raw, [Frame((image.shape[0], image.shape[1]), (300, 300))])
        kept = found.scores > 0.05
        scores, boxes = np.array(wanted["scores"]), np.array(wanted["boxes"])
        np.testing.assert_allclose(found.scores[kept].numpy(), scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes[kept].numpy(), boxes, atol=0.01)


def test_the_release_finds_pedestrians(shared: Path, root: Path, weights: Path):
    """As released: AP .6152, AP50 .9182, which pictures of floats give here as well; ours are of whole numbers."""
    summary = evaluate_source(
        root / "configs/ssdlite_bccd_voc.yaml",
        [
            *(f"model.weights={weights}", "model.input_size=[300,300]", "model.freeze=null"),
            *(f"data.root={shared / 'pennfudan'}", "data.val.args.sets=[PennFudan/val]", "data.workers=0"),
        ],
    )
    found = {name: round(summary["metrics"][f"det/{name}"], 4) for name in ("AP", "AP50")}
    print(found)  # noqa: T201 - to be quoted
    assert abs(found["AP"] - 0.6120) < 0.002
    assert abs(found["AP50"] - 0.9189) < 0.002
