"""What a predictor takes, and what people ask of its results."""

from __future__ import annotations

import doctest
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from small_models import CLASSES, picture, weights

import mnv2det.runtime.result
from mnv2det.commands.evaluate_files import evaluate_files
from mnv2det.errors import ConfigError, DataError
from mnv2det.report.draw import encode
from mnv2det.runtime.pictures import load
from mnv2det.runtime.predictor import Predictor
from mnv2det.runtime.result import Box, Result
from mnv2det.structures import Detections, Scores, Segmentation, TaskResult

SHOWN = picture(50, 70)
OLD = Path(__file__).parents[1] / "files/version_0_1"
LOW = 0.7  # some boxes of the small detector score less, some more


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model with a detector, a segmenter and a classifier."""
    return Predictor(weights(tmp_path_factory.mktemp("w"), "det", "seg", "cls"), device="cpu")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("w"), "det")


def detections(*labels: int, first: float = 0.9) -> Detections:
    """Boxes in a row, each scoring a tenth less than the one before."""
    corners = [[10.0 * n, 5.0, 10.0 * n + 8, 20.0] for n in range(len(labels))]
    scores = [first - 0.1 * n for n in range(len(labels))]
    return Detections(torch.tensor(corners).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels).long())


def result(*labels: int, names: list[str] | None = None, **others: TaskResult) -> Result:
    results = {"det": detections(*labels), **others}
    return Result(results, {**CLASSES, "det": names or ["cat", "dog", "person"]}, np.zeros((40, 80, 3), np.uint8))


def png(image: NDArray[np.uint8]) -> bytes:
    return encode(image, ".png")


# what is taken for a picture

ENTRIES: dict[str, Any] = {
    "bytes": png,
    "bytearray": lambda image: bytearray(png(image)),
    "array": lambda image: image,
    "pillow": PIL.Image.fromarray,
    "pillow from a file": lambda image: PIL.Image.open(io.BytesIO(png(image))),
    "pillow with alpha": lambda image: PIL.Image.fromarray(np.dstack([image, image[..., 0]])),
    "tensor": torch.from_numpy,
    "tensor, channels first": lambda image: torch.from_numpy(image).permute(2, 0, 1),
    "tensor with a gradient's kind of view": lambda image: torch.from_numpy(np.ascontiguousarray(image[:, ::-1])).flip(
        1
    ),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_every_kind_of_picture_is_the_same_picture(kind: str) -> None:
    np.testing.assert_array_equal(load(ENTRIES[kind](SHOWN)), SHOWN)


def test_a_path_is_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(SHOWN))
    np.testing.assert_array_equal(load(tmp_path / "a.png"), SHOWN)
    np.testing.assert_array_equal(load(str(tmp_path / "a.png")), SHOWN)


def test_bgr_is_turned_round() -> None:
    swapped = np.ascontiguousarray(SHOWN[..., ::-1])
    np.testing.assert_array_equal(load(swapped, "bgr"), SHOWN)
    np.testing.assert_array_equal(load(torch.from_numpy(swapped).permute(2, 0, 1), "bgr"), SHOWN)
    # a file says itself what it holds
    np.testing.assert_array_equal(load(png(SHOWN), "bgr"), SHOWN)
    with pytest.raises(ConfigError, match="channels: expected rgb or bgr, got 'gbr'"):
        load(SHOWN, "gbr")  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_grey_has_three_equal_channels(channels: Any) -> None:
    grey = SHOWN[..., 0]
    wanted = np.dstack([grey] * 3)
    pictures = [grey, grey[..., None], torch.from_numpy(grey.copy()), torch.from_numpy(grey[None].copy())]
    for shown in [*pictures, PIL.Image.fromarray(grey)]:
        np.testing.assert_array_equal(load(shown, channels), wanted)


def test_pictures_of_pillow_are_read_as_their_files_are(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned
    PIL.Image.fromarray(SHOWN).save(tmp_path / "turned.png", exif=exif)
    deep = SHOWN[..., 0].astype(np.uint16) * 256 + 255
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    for name, shape in (("turned.png", (70, 50, 3)), ("deep.png", (50, 70, 3))):
        with PIL.Image.open(tmp_path / name) as file:
            found = load(file)
        assert found.shape == shape
        np.testing.assert_array_equal(found, load(tmp_path / name))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            np.zeros((4, 5, 3)),
            r"array of float64 \(4, 5, 3\): expected uint8 \(H, W, 3\), .*; turn numbers from 0 to 1",
        ),
        (np.zeros((4, 5, 4), np.uint8), r"array of uint8 \(4, 5, 4\): .*; drop the alpha channel"),
        (np.zeros((3, 4, 5), np.uint8), r"array of uint8 \(3, 4, 5\): .*; move the channels to the end"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"array of uint8 \(2, 4, 5, 3\): .*; of several pictures give a list"),
        (np.zeros((0, 5, 3), np.uint8), r"array of uint8 \(0, 5, 3\): expected"),
        (
            np.zeros((4, 5, 3), np.int64),
            r"array of int64 \(4, 5, 3\): expected uint8 \(H, W, 3\), RGB, or grey \(H, W\)$",
        ),
        (torch.zeros(3, 4, 5), r"tensor of float32 \(3, 4, 5\): expected .* channels first; turn numbers"),
        (torch.zeros(3, 4, 5).bfloat16(), r"tensor of bfloat16 \(3, 4, 5\): expected"),
        (torch.zeros(2, 4, 5, dtype=torch.uint8), r"tensor of uint8 \(2, 4, 5\): expected"),
        (torch.zeros(4, 5, 3, dtype=torch.bool), r"tensor of bool \(4, 5, 3\): expected"),
        (PIL.Image.new("F", (4, 5)), "mode F: expected one of 8 or 16 bits"),
        (7, "expected a path, bytes, a picture of Pillow's, an array or a tensor, got int"),
    ],
)
def test_what_is_no_picture_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(wrong)


# what a predictor returns


def test_one_picture_gives_a_result_and_a_list_a_list(detector: Path) -> None:
    predictor = Predictor(detector, device="cpu")
    one = predictor(SHOWN, threshold=0)
    assert isinstance(one, Result)
    assert len(one) > 0
    several = predictor([SHOWN, png(SHOWN), PIL.Image.fromarray(SHOWN)] * 4, threshold=0)
    assert [len(each) for each in several] == [len(one)] * 12
    for each in several:
        np.testing.assert_allclose(each.boxes, one.boxes, atol=1e-3)
    assert predictor([]) == []
    assert predictor((SHOWN,))[0].size == (50, 70)


def test_the_threshold_leaves_out_what_scores_less(detector: Path) -> None:
    predictor = Predictor(detector, device="cpu")
    everything = predictor.batch([SHOWN])[0]["det"]
    assert isinstance(everything, Detections)
    scores = everything.scores.numpy()
    assert scores.min() < LOW < scores.max(), "else this test could not fail"
    np.testing.assert_array_equal(predictor(SHOWN, threshold=LOW).scores, scores[scores >= LOW])
    np.testing.assert_array_equal(predictor(SHOWN, threshold=0).scores, scores)
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="threshold: expected a number from 0 to 1"):
            predictor(SHOWN, threshold=threshold)


def test_a_joint_model_has_all_at_once(joint: Predictor) -> None:
    found = joint(SHOWN, threshold=0)
    assert found.boxes.dtype == found.scores.dtype == found.probabilities.dtype == np.float32
    assert found.boxes.shape == (len(found), 4)
    assert (found.labels.dtype, found.mask.dtype, found.mask.shape) == (np.int64, np.uint8, (50, 70))
    assert found.names == [CLASSES["det"][label] for label in found.labels]
    assert (found.classes, found.probabilities.shape) == (CLASSES["cls"], (3,))
    best = int(found.probabilities.argmax())
    assert found.top(2)[0] == (CLASSES["cls"][best], pytest.approx(found.probabilities[best]))
    assert len(found.top(2)) == 2
    # by task, as what each head says
    assert list(found.keys()) == ["det", "seg", "cls"]
    assert {task: type(each) for task, each in found.items()} == {"det": Detections, "seg": Segmentation, "cls": Scores}
    assert dict(found) == {"det": found["det"], "seg": found["seg"], "cls": found["cls"]}
    assert list(found.values())[1] is found["seg"] is found.get("seg")
    assert ("det" in found, "dte" in found, found.get("dte")) == (True, False, None)
    with pytest.raises(KeyError, match="no task 'dte'; did you mean 'det'"):
        found["dte"]
    alone = found.only("seg")
    assert (list(alone.keys()), len(alone), bool(alone)) == (["seg"], 0, True)


def test_what_the_model_has_no_head_for_is_no_attribute() -> None:
    found = result(0)
    with pytest.raises(AttributeError, match="this model has no segmenter; its tasks: det"):
        found.mask  # noqa: B018
    assert not hasattr(found, "probabilities")
    two = Result({"a": detections(0), "b": detections(1)}, {"a": ["x"], "b": ["y", "z"]}, SHOWN)
    with pytest.raises(AttributeError, match=r"several detectors \(a, b\): take one with only\('a'\)"):
        two.boxes  # noqa: B018
    assert [box.name for box in two] == ["x", "z"]
    assert [row["category_id"] for row in two.to_coco(1)] == [1, 3]
    assert two.only("b").names == ["z"]


@pytest.mark.export
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_runtime_gives_the_same_result(backend: str) -> None:
    pytest.importorskip(backend, reason=f"NOT checked: {backend} is not installed")
    image, least = picture(96, 80, 3), 0.01  # these models learned little
    wanted = Predictor(OLD / "best.safetensors", device="cpu")(image, threshold=least)
    found = Predictor(OLD / "raw.onnx", backend=backend)(image, threshold=least)
    assert len(wanted) > 3
    assert isinstance(found, Result)
    assert found.names == wanted.names
    np.testing.assert_allclose(found.boxes, wanted.boxes, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
    assert (found.mask == wanted.mask).mean() > 0.99


# boxes


def test_a_result_is_a_sequence_of_boxes() -> None:
    found = result(2, 1, 1)
    first = Box((0.0, 5.0, 8.0, 20.0), pytest.approx(0.9), 2, "person")
    assert next(iter(found)) == found[0] == first
    assert found[-1] == found[np.int64(2)] == list(found)[2]
    assert [name for _, _, _, name in found] == ["person", "dog", "dog"]
    with pytest.raises(IndexError):
        found[3]
    assert (bool(found), bool(result())) == (True, False)


@pytest.mark.parametrize(
    ("index", "labels"),
    [
        (slice(2), [2, 1]),
        (slice(None, None, -1), [0, 1, 2]),
        ([True, False, True], [2, 0]),
        (np.array([True, False, True]), [2, 0]),
        (torch.tensor([True, False, True]), [2, 0]),
        ([2, 0], [0, 2]),
        ([], []),
    ],
)
def test_parts_of_a_result_are_results(index: Any, labels: list[int]) -> None:
    found = result(2, 1, 0, seg=Segmentation(torch.zeros(40, 80, dtype=torch.uint8)))
    part = found[index]
    assert isinstance(part, Result)
    assert part.labels.tolist() == labels
    assert part.boxes.shape == (len(labels), 4)
    assert part["seg"] is found["seg"]
    assert len(found) == 3


def test_a_mask_goes_by_the_attributes() -> None:
    found = result(2, 1, 0)
    assert found[found.scores > 0.75].names == ["person", "dog"]
    assert found[(found.boxes[:, 0] > 5) & (found.labels == 0)].names == ["cat"]
    with pytest.raises(IndexError, match="boolean"):
        found[np.array([True])]


def test_boxes_are_filtered_by_class_and_score() -> None:
    found = result(2, 1, 0, 1)
    assert found.filter(names="dog").labels.tolist() == [1, 1]
    assert found.filter(names={"dog", "cat"}).labels.tolist() == [1, 0, 1]
    assert found.filter(names=["dog"], threshold=0.7).labels.tolist() == [1]
    assert len(found.filter(names=[])) == 0
    assert len(found.filter()) == 4
    with pytest.raises(ConfigError, match="names: no class 'dgo'; did you mean 'dog'"):
        found.filter(names="dgo")


@pytest.mark.parametrize(
    ("labels", "names", "text"),
    [
        ((1, 1, 2), None, "2 dogs, 1 person; 40x80"),
        ((), None, "no boxes; 40x80"),
        ((0, 0, 1, 1), ["bench", "bus"], "2 benches, 2 bus; 40x80"),
        ((0, 0, 1, 1), ["собака", "type 2"], "2 собака, 2 type 2; 40x80"),
        (tuple(range(10)), [f"n{n}" for n in range(10)], "1 n0, 1 n1, 1 n2, 1 n3, 1 n4, 1 n5, 1 n6, 1 n7, ...; 40x80"),
    ],
)
def test_it_says_what_was_found(labels: tuple[int, ...], names: list[str] | None, text: str) -> None:
    assert repr(result(*labels, names=names)) == f"<Result: {text}>"


def test_it_says_what_masks_and_classifiers_show() -> None:
    mask = torch.zeros(40, 80, dtype=torch.uint8)
    mask[:30] = 1
    found = result(1, seg=Segmentation(mask), cls=Scores(torch.tensor([0.1, 0.7, 0.2])))
    assert str(found) == "1 dog; road 75%, background 25%; two 0.70; 40x80"


# pictures, and other programs


def test_the_drawing_has_the_size_of_the_picture(joint: Predictor, tmp_path: Path) -> None:
    found = joint(SHOWN, threshold=0)
    before = SHOWN.copy()
    drawn = found.plot()
    assert (drawn.size, drawn.mode) == ((70, 50), "RGB")
    assert (np.array(drawn) != SHOWN).mean() > 0.1
    np.testing.assert_array_equal(before, SHOWN)
    # boxes and the mask, each by itself, are something else
    assert (np.array(found.only("seg").plot()) != np.array(drawn)).any()
    np.testing.assert_array_equal(np.array(found.only("cls").plot()), SHOWN)
    np.testing.assert_array_equal(load(found._repr_png_()), np.array(drawn))
    found.save(tmp_path / "new/drawn.png")
    np.testing.assert_array_equal(load(tmp_path / "new/drawn.png"), np.array(drawn))
    with pytest.raises(DataError, match=r"drawn\.txt: no such format of pictures; expected one of \.bmp"):
        found.save(tmp_path / "drawn.txt")
    with pytest.raises(DataError, match="cannot write"):
        found.save(tmp_path / "new/drawn.png/a.png")


def test_plain_data_can_be_written_as_json() -> None:
    mask = torch.zeros(40, 80, dtype=torch.uint8)
    mask[:30] = 1
    found = result(1, seg=Segmentation(mask), cls=Scores(torch.tensor([0.1, 0.7, 0.2])))
    assert json.loads(json.dumps(found.to_dict())) == {
        "height": 40,
        "width": 80,
        "boxes": [{"name": "dog", "label": 1, "score": 0.9, "box": [0.0, 5.0, 8.0, 20.0]}],
        "pixels": {"background": 0.25, "road": 0.75},
        "classes": [
            {"name": "two", "score": 0.7},
            {"name": "three", "score": 0.2},
            {"name": "one", "score": 0.1},
        ],
    }


def test_coco_s_evaluator_reads_the_rows(tmp_path: Path) -> None:
    found = result(1, 0, 2)
    rows = found.to_coco(7, category_ids=[3, 18, 1])
    assert rows[0] == {"image_id": 7, "category_id": 18, "bbox": [0.0, 5.0, 8.0, 15.0], "score": 0.9}
    truth = {
        "images": [{"id": 7, "height": 40, "width": 80}],
        "annotations": [
            {"id": number, "image_id": 7, "category_id": row["category_id"], "bbox": row["bbox"], "iscrowd": 0}
            for number, row in enumerate(rows, 1)
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text(json.dumps(rows))
    assert evaluate_files(tmp_path / "gt.json", tmp_path / "dt.json")["AP"] == pytest.approx(1)
    (tmp_path / "dt.json").write_text(json.dumps(found.to_coco(7, category_ids=[18, 3, 1])))
    assert evaluate_files(tmp_path / "gt.json", tmp_path / "dt.json")["AP"] < 0.5
    assert [row["category_id"] for row in found.to_coco("a")] == [2, 1, 3]
    with pytest.raises(ConfigError, match="category_ids: expected 3, one for each class, got 2"):
        found.to_coco(7, category_ids=[1, 2])


def test_a_table_for_pandas() -> None:
    pytest.importorskip("pandas", reason="NOT checked: pandas is not installed")
    table = result(1, 0).to_pandas()
    assert list(table.columns) == ["name", "label", "score", "x1", "y1", "x2", "y2"]
    assert table.name.tolist() == ["dog", "cat"]
    assert table[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == [[0, 5, 8, 20], [10, 5, 18, 20]]
    assert len(result().to_pandas()) == 0


def test_detections_for_supervision() -> None:
    supervision = pytest.importorskip("supervision", reason="NOT checked: supervision is not installed")
    found = result(1, 0)
    given = found.to_supervision()
    assert isinstance(given, supervision.Detections)
    np.testing.assert_array_equal(given.xyxy, found.boxes)
    np.testing.assert_array_equal(given.confidence, found.scores)
    assert given.class_id.tolist() == [1, 0]
    assert given["class_name"].tolist() == ["dog", "cat"]
    assert len(given[given.confidence > 0.85]) == 1
    assert len(result().to_supervision()) == 0


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pandas is not installed .*pip install 'mnv2det\[pandas\]'"):
        result(1).to_pandas()


def test_the_example_is_true() -> None:
    assert doctest.testmod(mnv2det.runtime.result).attempted > 5
    assert doctest.testmod(mnv2det.runtime.result).failed == 0
