import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import picture as small_picture
from small_models import weights

import mnv2det
import mnv2det.models
from mnv2det.data.images import read_image
from mnv2det.errors import ConfigError, DataError, WeightsError
from mnv2det.graphs.program import ExportMetadata
from mnv2det.models.build import assemble, from_file
from mnv2det.models.weight_file import save_weights
from mnv2det.runtime.base import write
from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import Detections, Fit, Preprocess


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35}},
        {"det": {"name": "ssdlite", "args": {"extras": [16, 16]}}},
        classes={"det": ["a", "b"]},
        preprocess=Preprocess((64, 96)),
    )
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    save_weights(path, model.state_dict(), model.header())
    return mnv2det.Predictor(path)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_boxes_are_in_pixels_of_the_picture(predictor: Predictor):
    for height, width in ((50, 70), (300, 20), (1, 1)):
        found = predictor(picture(height, width), threshold=0)["det"]
        assert isinstance(found, Detections)
        assert len(found.boxes) > 0
        assert (found.boxes <= torch.tensor([width, height, width, height])).all()


def test_a_batch_gives_what_single_pictures_give(predictor: Predictor):
    pictures = [picture(50, 70), picture(64, 64)]
    together = predictor.batch(pictures)
    for image, found in zip(pictures, together, strict=True):
        torch.testing.assert_close(
            found["det"].scores, predictor(image, threshold=0)["det"].scores, rtol=1e-4, atol=1e-5
        )
    assert predictor.batch([]) == []


def test_a_file_and_its_pixels_are_the_same(predictor: Predictor, tmp_path: Path):
    from mnv2det.report.draw import encode

    (tmp_path / "a.png").write_bytes(encode(picture(40, 60), ".png"))
    from_file, from_array = (
        predictor(tmp_path / "a.png", threshold=0)["det"],
        predictor(read_image(tmp_path / "a.png"), threshold=0)["det"],
    )
    torch.testing.assert_close(from_file.boxes, from_array.boxes, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong", [np.zeros((5, 5)), np.zeros((5, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 3))]
)
def test_other_arrays_are_refused(predictor: Predictor, wrong: np.ndarray):
    with pytest.raises(DataError, match=r"expected uint8 \(H, W, 3\), RGB"):
        predictor(wrong)


# several looks

SCALES = (0.5, 1.0, 1.25)


def assert_same_masks(found: torch.Tensor, wanted: torch.Tensor) -> None:
    # where two classes are all but equal, the last bits decide on a pixel
    assert (found != wanted).float().mean() < 0.01


@pytest.mark.heavy
@pytest.mark.parametrize("fit", ["stretch", "letterbox", "pad"])
@pytest.mark.parametrize(("scales", "flip"), [((1.0,), True), (SCALES, False), (SCALES, True)])
def test_several_looks_see_what_the_model_sees(tmp_path: Path, fit: Fit, scales: tuple[float, ...], flip: bool):
    source = weights(tmp_path, "det", "seg", fit=fit)
    model, _ = from_file(str(source))
    predictor = Predictor(source, device="cpu")
    changed = 0
    for number, size in enumerate(((96, 128), (50, 70), (150, 140))):
        image = small_picture(*size, number)
        pixels, frame = predictor.prepare(image)
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        wanted = model.predict(images, [frame], scales=scales, flip=flip)
        found = predictor(image, scales=scales, flip=flip, threshold=0)
        assert_same_masks(found["seg"].mask, wanted["seg"][0].mask)
        torch.testing.assert_close(found["det"].scores, wanted["det"][0].scores, rtol=1e-3, atol=1e-4)
        changed += int((found["seg"].mask != predictor(image)["seg"].mask).sum())
    assert changed > 100, "one look saw the same: the test shows nothing"


@pytest.mark.export
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_raw_segmenter_in_another_runtime_looks_several_times(tmp_path: Path, backend: str):
    source = weights(tmp_path, "seg", size=(64, 64))
    image = small_picture(64, 64)
    wanted = Predictor(source, device="cpu")(image, scales=SCALES, flip=True)["seg"].mask
    found = Predictor(source, backend=backend)
    # its inputs are whole numbers
    assert (found(image, scales=SCALES, flip=True)["seg"].mask != wanted).float().mean() < 0.05
    assert found.batch([image, image], scales=SCALES, flip=True)[1]["seg"].mask.shape == (64, 64)


@pytest.mark.export
def test_what_cannot_look_several_times_says_so(tmp_path: Path):
    pytest.importorskip("onnx")
    model, header = from_file(str(weights(tmp_path, "det", "seg", size=(64, 64))))
    for form in ("raw", "complete"):
        write(model, ExportMetadata(header, form), tmp_path / f"{form}.onnx")
    image = small_picture(64, 64)
    raw, complete = Predictor(tmp_path / "raw.onnx"), Predictor(tmp_path / "complete.onnx")
    with pytest.raises(ConfigError, match=r"test\.scales: expected \[1\.0\], .* inputs of 64x64 only"):
        raw(image, scales=SCALES)
    assert_same_masks(
        raw(image, flip=True)["seg"].mask,
        Predictor(tmp_path / "det_seg_stretch.safetensors", device="cpu")(image, flip=True)["seg"].mask,
    )
    with pytest.raises(ConfigError, match=r"test\.scales, test\.flip: a complete export looks once"):
        complete(image, flip=True)


def test_a_detector_looks_once_whatever_the_scales(predictor: Predictor):
    image = picture(50, 70)
    torch.testing.assert_close(
        predictor(image, scales=SCALES, flip=True, threshold=0)["det"].scores,
        predictor(image, threshold=0)["det"].scores,
        rtol=0,
        atol=0,
    )


# start-up


@pytest.mark.process
def test_importing_the_predictor_loads_no_library_that_it_may_not_need(root: Path):
    unneeded = "{'torchvision', 'albumentations', 'torch._dynamo', 'torch.onnx', 'sympy', 'onnxruntime', 'openvino'}"
    code = (
        f"from mnv2det import Predictor; import sys; loaded = {unneeded} & set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
def test_importing_data_registers_the_augmentations_without_their_library(root: Path):
    code = (
        "import sys, mnv2det.data\nfrom mnv2det.registry import AUGMENTATIONS\n"
        "assert AUGMENTATIONS.names() == ['deeplab', 'inception', 'none', 'ssd'], AUGMENTATIONS.names()\n"
        "assert 'albumentations' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"no best\.safetensors in this folder"):
        Predictor(tmp_path)
