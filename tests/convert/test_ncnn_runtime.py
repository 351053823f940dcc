"""Imported detectors against ncnn's own runtime, and the published one against real images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ncnn_writer import Storage, load_detector, random_detector, write_detector
from numpy.typing import NDArray
from torch import Tensor

from mnv2det.config import BadData
from mnv2det.convert.ncnn.convert import convert_ncnn
from mnv2det.convert.ncnn.layers import parse_param, read_bin
from mnv2det.data.formats.voc import VOC
from mnv2det.data.images import read_image
from mnv2det.data.loader import eval_loader
from mnv2det.errors import WeightsError
from mnv2det.evaluation.voc import VocAP
from mnv2det.models.model import Model
from mnv2det.models.ssdlite import SSDLite
from mnv2det.structures import Frame

Floats = NDArray[np.float32]
BLOBS = ("mbox_priorbox", "mbox_loc", "mbox_conf")


class Runtime:
    """ncnn itself; skips the test where it is not installed."""

    def __init__(self, path: Path) -> None:
        self.ncnn = pytest.importorskip("ncnn", reason="ncnn's runtime is not installed: this check was NOT made")
        self.net = self.ncnn.Net()
        self.net.opt.use_vulkan_compute = False
        self.net.opt.num_threads = 1
        for half in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(self.net.opt, half, False)
        assert self.net.load_param(str(path)) == 0
        assert self.net.load_model(str(path.with_suffix(".bin"))) == 0

    def blobs(self, image: Floats, names: Sequence[str]) -> list[Floats]:
        """Blobs that it computes from a normalised (3, H, W), BGR."""
        given = np.ascontiguousarray(image)  # the Mat only points at it
        extractor = self.net.create_extractor()
        assert extractor.input("data", self.ncnn.Mat(given).clone()) == 0
        found = [extractor.extract(name)[1] for name in names]
        return [np.array(mat) for mat in found]

    def raw(self, image: Floats, model: Model) -> tuple[Floats, Floats, Floats]:
        """Priors (relative), box codes and logits, in our order of anchors."""
        priors, codes, logits = self.blobs(image, BLOBS)
        order = places(model)
        rows = len(model.classes["det"]) + 1
        return priors[0].reshape(-1, 4)[order], codes.reshape(-1, 4)[order], logits.reshape(-1, rows)[order]


def places(model: Model) -> NDArray[np.int64]:
    """Where a Caffe file has each of our anchors: its square of sqrt(least * greatest) comes second, ours last."""
    head = model.heads["det"]
    assert isinstance(head, SSDLite)
    found, start, side = [], 0, -(-model.preprocess.input_size[0] // 16)
    for level in head.shapes:
        count = len(level)
        within = np.array([0, *range(2, count), 1] if count > 3 else range(count))
        cells = np.arange(side * side)[:, None] * count
        found.append((start + cells + within).ravel())
        start += side * side * count
        side = -(-side // 2)
    return np.concatenate(found)


@torch.no_grad()
def ours(model: Model, image: Floats) -> dict[str, Tensor]:
    """What a model makes of a normalised BGR image."""
    return {name: value.squeeze(0) for name, value in model(torch.from_numpy(image[None, ::-1].copy()))["det"].items()}


def dequantized(path: Path, folder: Path) -> Path:
    """The same network with its int8 weights as float32, so that the runtime computes in float32."""
    lines = path.read_text().split("\n")
    layers, parts = parse_param(path.read_text()), []
    read_bin(path.with_suffix(".bin").read_bytes(), layers)
    for layer in layers:
        if layer.weight is not None:
            assert layer.bias is not None
            lines[layer.index + 2] = re.sub(r" 8=\d+", "", lines[layer.index + 2])
            parts += [bytes(4), layer.weight.tobytes(), layer.bias.tobytes()]
    (folder / "float.param").write_text("\n".join(lines))
    (folder / "float.bin").write_bytes(b"".join(parts))
    return folder / "float.param"


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_written_files_mean_to_ncnn_what_they_mean_to_us(storage: Storage, padding: str, tmp_path: Path) -> None:
    path = write_detector(random_detector(padding=padding), tmp_path / "net.param", storage)
    model, image = load_detector(path), np.random.default_rng(0).standard_normal((3, 96, 96)).astype(np.float32)
    priors, codes, logits = Runtime(path).raw(image, model)
    found = ours(model, image)
    np.testing.assert_allclose(found["anchors"] / 96, priors, atol=1e-5)
    np.testing.assert_allclose(found["codes"], codes, atol=2e-3)
    np.testing.assert_allclose(found["logits"], logits, atol=2e-3)


# ---------------------------------------------------------------- the published detector


@pytest.fixture(scope="module")
def release(shared: Path) -> tuple[Path, Model]:
    """The published int8 detector."""
    path = shared / "weights" / "ssdlite_mnv2_voc_ncnn_int8" / "mobilenetv2_ssdlite_voc.param"
    if not path.is_file():
        pytest.skip(f"{path} is not there: this check was NOT made")
    return path, load_detector(path)


@pytest.fixture(scope="module")
def voc100(shared: Path, release: tuple[Path, Model]) -> VOC:
    names = tuple(release[1].classes["det"])
    return VOC(root=shared / "voc100", sets=("VOC2012/val",), names=names).dataset()


@pytest.fixture(scope="module")
def pictures(shared: Path) -> list[Floats]:
    """Three images as the detector takes them in ncnn: normalised float32 (3, 300, 300), BGR."""
    folder = shared / "voc100" / "VOCdevkit" / "VOC2012" / "JPEGImages"
    found = []
    for path in sorted(folder.glob("*.jpg"))[:3]:
        image = cv2.resize(read_image(path), (300, 300), interpolation=cv2.INTER_LINEAR)[:, :, ::-1]
        found.append((image.transpose(2, 0, 1) / 127.5 - 1).astype(np.float32))
    return found


@pytest.mark.shared
def test_release_in_float32_gives_the_same_outputs(
    release: tuple[Path, Model], pictures: list[Floats], tmp_path: Path
) -> None:
    path, model = release
    runtime = Runtime(dequantized(path, tmp_path))
    for picture in pictures:
        found = ours(model, picture)
        priors, codes, logits = runtime.raw(picture, model)
        assert found["anchors"].shape == (1917, 4)
        assert found["logits"].shape == (1917, 21)
        np.testing.assert_allclose(found["anchors"] / 300, priors, atol=1e-5)
        np.testing.assert_allclose(found["codes"], codes, atol=2e-3)
        np.testing.assert_allclose(found["logits"], logits, atol=2e-3)


@pytest.mark.shared
def test_release_in_float32_gives_the_same_detections(
    release: tuple[Path, Model], pictures: list[Floats], tmp_path: Path
) -> None:
    path, model = release
    exact = dequantized(path, tmp_path)
    # ncnn leaves the boxes of anchors undecoded whose background scores over 1 - threshold, though with
    # sigmoid scores another class may exceed the threshold there: with a low one it never comes to that
    exact.write_text(exact.read_text().replace("4=0.350000", "4=0.000001"))
    runtime, head = Runtime(exact), model.heads["det"]
    for picture in pictures:
        (theirs,) = runtime.blobs(picture, ["detection_out"])
        raw = {name: value if name == "anchors" else value[None] for name, value in ours(model, picture).items()}
        (found,) = head.decode(raw, [Frame((300, 300), (300, 300))])
        # among the faint ones NMS may decide otherwise: it sees our boxes cut to the image
        count = int((theirs[:, 1] > 0.1).sum())
        assert 0 < count == int((found.scores > 0.1).sum())
        np.testing.assert_array_equal(found.labels[:count], theirs[:count, 0] - 1)
        np.testing.assert_allclose(found.scores[:count], theirs[:count, 1], atol=1e-4)
        np.testing.assert_allclose(found.boxes[:count], theirs[:count, 2:].clip(0, 1) * 300, atol=0.05)


@pytest.mark.shared
def test_release_as_it_is_differs_by_its_int8_activations_alone(
    release: tuple[Path, Model], pictures: list[Floats], tmp_path: Path
) -> None:
    path, model = release
    exact, rounded = Runtime(dequantized(path, tmp_path)), Runtime(path)
    for picture in pictures:
        found = ours(model, picture)
        priors, codes, logits = rounded.raw(picture, model)
        _, exact_codes, exact_logits = exact.raw(picture, model)
        np.testing.assert_allclose(found["anchors"] / 300, priors, atol=1e-5)
        for ours_now, theirs, best, least in (
            (found["codes"].numpy(), codes, exact_codes, 0.98),
            (found["logits"].numpy(), logits, exact_logits, 0.86),
        ):
            # int8 within ncnn itself costs as much as it does between ncnn and us
            cost = np.abs(best - theirs).mean()
            assert np.abs(ours_now - theirs).mean() == pytest.approx(cost, rel=1e-2)
            assert np.corrcoef(ours_now.ravel(), theirs.ravel())[0, 1] > least
        scores = 1 / (1 + np.exp(-logits))
        assert np.abs(found["logits"].sigmoid().numpy() - scores).mean() < 1.5e-3


@pytest.mark.shared
def test_release_reaches_its_average_precision(release: tuple[Path, Model], voc100: VOC) -> None:
    _, model = release
    evaluator = VocAP(classes=model.classes["det"])
    loader = eval_loader(
        voc100, model.preprocess, batch_size=8, workers=0, bad_data=BadData.stop, pin=False, rank=0, world=1
    )
    for batch in loader:
        results = model.predict(batch.images, batch.frames)["det"]
        for image_id, result, truth in zip(batch.image_ids, results, batch.truths, strict=True):
            evaluator.update(image_id, result, truth)
    metrics = evaluator.compute()
    assert len(evaluator.records) == 100
    assert metrics["AP50"] > 0.69  # measured: 0.700; ncnn itself in int8: 0.685
    # every name is that of its row: one that were not would score about 0
    assert min(metrics[f"AP50/{name}"] for name in model.classes["det"]) > 0.15


@pytest.mark.shared
def test_damaged_release_is_refused(release: tuple[Path, Model], tmp_path: Path) -> None:
    text, data = release[0].read_text(), release[0].with_suffix(".bin").read_bytes()
    path = tmp_path / "net.param"
    for other, weights, message in (
        (text, data[:-4], "of the .bin, which has"),
        (text, data + bytes(4), "4 bytes are left"),
        ("7767518" + text[7:], data, "not a text .param of ncnn"),
        (
            text.replace("Eltwise ", "Concat  ", 1),
            data,
            "operator 18 'conv_2/sum' is CONCATENATION over 1, expected ADD",
        ),
    ):
        path.write_text(other)
        path.with_suffix(".bin").write_bytes(weights)
        with pytest.raises(WeightsError, match=re.escape(message)) as caught:
            convert_ncnn(path)
        assert "\n" not in str(caught.value)
