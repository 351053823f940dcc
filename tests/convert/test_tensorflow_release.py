"""The Object Detection API's released form: a frozen SSDLite for pedestrians."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import defusedxml.ElementTree
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mnv2det.commands.evaluate import evaluate_source
from mnv2det.commands.import_weights import import_weights
from mnv2det.data.images import read_image
from mnv2det.models.build import from_file
from mnv2det.models.model import Model
from mnv2det.structures import Detections, Frame

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


def detect(model: Model, image: NDArray[np.uint8]) -> Detections:
    """What a model finds in a picture that was brought to its input as floats, as TensorFlow does."""
    inputs = torch.from_numpy(resize(image, 300, 300) * np.float32(1 / 127.5) - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        raw = model(inputs)["det"]
    (found,) = model.heads["det"].decode(raw, [Frame((image.shape[0], image.shape[1]), (300, 300))])
    return found


def test_the_released_graph_and_its_import_find_the_same(shared: Path, root: Path, weights: Path):
    """The reference was made with TensorFlow 2.21: boxes above 0.05 of the first ten pictures of Penn-Fudan's val."""
    reference = json.loads((root / "tests/files/pedestrians_tensorflow.json").read_text())
    model, _ = from_file(str(weights))
    home = shared / "pennfudan/VOCdevkit/PennFudan/JPEGImages"
    for name, wanted in reference.items():
        image = read_image(next(home.glob(f"{name}.*")))
        found = detect(model, image)
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


def persons_of_coco(shared: Path) -> dict[str, Any]:
    """The persons of COCO's annotations."""
    data: dict[str, Any] = json.loads((shared / "coco100/annotations/instances_val2017.json").read_text())
    data["annotations"] = [box for box in data["annotations"] if box["category_id"] == 1]
    return {"images": data["images"], "annotations": data["annotations"], "categories": [{"id": 1, "name": "person"}]}


def persons_of_voc(folder: Path, images: str) -> dict[str, Any]:
    """The persons of VOC's xml files, of the pictures in a list; difficult ones as crowds."""
    pictures, boxes = [], []
    for number, stem in enumerate((folder / f"ImageSets/Main/{images}.txt").read_text().split(), 1):
        tree = defusedxml.ElementTree.parse(folder / f"Annotations/{stem}.xml")
        pictures.append({"id": number, "file_name": tree.findtext("filename")})
        for item in tree.iter("object"):
            if item.findtext("name") in ("person", "pedestrian"):
                x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
                box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
                shared = {"category_id": 1, "image_id": number, "iscrowd": int(item.findtext("difficult") or 0)}
                boxes.append({"id": len(boxes) + 1, "bbox": box, "area": box[2] * box[3], **shared})
    return {"images": pictures, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}


@pytest.mark.parametrize(
    ("persons", "images", "released"),
    [
        (
            lambda shared: persons_of_voc(shared / "pennfudan/VOCdevkit/PennFudan", "val"),
            "pennfudan/VOCdevkit/PennFudan/JPEGImages",
            (0.6152, 0.9182),
        ),
        (persons_of_coco, "coco100/val2017", (0.2054, 0.4311)),
        (
            lambda shared: persons_of_voc(shared / "voc100/VOCdevkit/VOC2012", "val"),
            "voc100/VOCdevkit/VOC2012/JPEGImages",
            (0.4906, 0.7840),
        ),
    ],
    ids=["pennfudan", "coco", "voc"],
)
def test_persons_are_found_as_the_release_finds_them(
    shared: Path, weights: Path, persons: Any, images: str, released: tuple[float, float]
):
    """AP and AP50 as TensorFlow 2.21 has them with the graph itself, given its pictures of floats."""
    truth = persons(shared)
    model, _ = from_file(str(weights))
    found = []
    for picture in truth["images"]:
        image = read_image(shared / images / picture["file_name"])
        result = detect(model, image)
        for (x1, y1, x2, y2), score in zip(result.boxes.tolist(), result.scores.tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            found.append({"image_id": picture["id"], "category_id": 1, **box})
    ground = COCO()
    ground.dataset = {"info": {}, **truth}
    with contextlib.redirect_stdout(io.StringIO()):
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[:2] == pytest.approx(released, abs=0.0005)
