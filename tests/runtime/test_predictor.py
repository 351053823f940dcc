from pathlib import Path

import numpy as np
import pytest
import torch

import mnv2det
import mnv2det.models
from mnv2det.data.images import read_image
from mnv2det.errors import DataError, WeightsError
from mnv2det.models.build import assemble
from mnv2det.models.weight_file import save_weights
from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import Detections, Preprocess


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
        found = predictor(picture(height, width))["det"]
        assert isinstance(found, Detections)
        assert len(found.boxes) > 0
        assert (found.boxes <= torch.tensor([width, height, width, height])).all()


def test_a_batch_gives_what_single_pictures_give(predictor: Predictor):
    pictures = [picture(50, 70), picture(64, 64)]
    together = predictor.batch(pictures)
    for image, found in zip(pictures, together, strict=True):
        torch.testing.assert_close(found["det"].scores, predictor(image)["det"].scores, rtol=1e-4, atol=1e-5)
    assert predictor.batch([]) == []


def test_a_file_and_its_pixels_are_the_same(predictor: Predictor, tmp_path: Path):
    from mnv2det.report.draw import encode

    (tmp_path / "a.png").write_bytes(encode(picture(40, 60), ".png"))
    from_file, from_array = predictor(tmp_path / "a.png")["det"], predictor(read_image(tmp_path / "a.png"))["det"]
    torch.testing.assert_close(from_file.boxes, from_array.boxes, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong", [np.zeros((5, 5)), np.zeros((5, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 3))]
)
def test_other_arrays_are_refused(predictor: Predictor, wrong: np.ndarray):
    with pytest.raises(DataError, match=r"expected uint8 \(H, W, 3\), RGB"):
        predictor(wrong)


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"no best\.safetensors in this folder"):
        Predictor(tmp_path)
