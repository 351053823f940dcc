"""Evaluation of files: published metrics, both protocols' conventions, and what is said of broken files."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnv2det.commands.evaluate_files import evaluate_files, read_results, read_truth
from mnv2det.errors import ConfigError, DataError
from mnv2det.evaluation.coco import Backend, CocoAP, coco_metrics
from mnv2det.evaluation.voc import VocAP
from mnv2det.structures import Detections

TRUTH: dict[str, Any] = {
    "images": [{"id": 42, "width": 640, "height": 480}, {"id": 7}],
    "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 42, "category_id": 3, "bbox": [0, 0, 100, 100], "area": 5000, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 90, "bbox": [10.5, 10, 20, 20], "area": 400, "iscrowd": 0},
    ],
}
FOUND: list[dict[str, Any]] = [
    {"image_id": 42, "category_id": 3, "bbox": [0, 0, 100, 100], "score": 0.9},
    {"image_id": 7, "category_id": 90, "bbox": [10.5, 10, 20, 20], "score": 0.8, "segmentation": [], "keypoints": [1]},
]


def write(folder: Path, truth: Any, found: Any) -> tuple[Path, Path]:
    paths = folder / "gt.json", folder / "dt.json"
    for path, content in zip(paths, (truth, found), strict=True):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return paths


@pytest.mark.shared
def test_published_coco_metrics(shared: Path) -> None:
    folder = shared / "evalref" / "coco_val2014_100"
    published = (folder / "val2014_fake_eval_res.txt").read_text().split("type=bbox")[1].split("type=")[0]
    expected = [float(value) for value in re.findall(r"= (0\.\d{3})\n", published)]
    assert len(expected) == 12
    ground, found = folder / "instances_val2014_100.json", folder / "instances_val2014_fakebbox100_results.json"
    metrics = evaluate_files(ground, found)
    assert [round(value, 3) for value in list(metrics.values())[:12]] == expected
    assert list(metrics)[12:14] == ["AP/person", "AP/bicycle"]
    truth = read_truth(ground)
    backends: tuple[Backend, ...] = ("faster_coco_eval", "pycocotools")
    for backend in backends:
        results = coco_metrics(truth.boxes, read_results(found, truth), classes=truth.classes, backend=backend)
        assert results == pytest.approx(metrics, abs=1e-12)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("protocol", "inclusive", "expected"),
    [("voc10", None, 0.2456), ("voc07", None, 0.2684), ("voc10", False, 0.2254), ("voc07", False, 0.2684)],
)
def test_published_voc_metrics(
    shared: Path, tmp_path: Path, protocol: Any, inclusive: bool | None, expected: float
) -> None:
    folder = shared / "evalref" / "voc_ap_sample"
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    found = []
    for path in sorted((folder / "groundtruths").glob("*.txt")):
        truth["images"].append({"id": path.stem})
        for line in path.read_text().split("\n")[:-1]:
            box = [float(word) for word in line.split()[1:]]
            truth["annotations"].append({"image_id": path.stem, "category_id": 1, "bbox": box})
    for path in sorted((folder / "detections").glob("*.txt")):
        for line in path.read_text().split("\n")[:-1]:
            score, *box = (float(word) for word in line.split()[1:])
            found.append({"image_id": path.stem, "category_id": 1, "bbox": box, "score": score})
    assert (len(truth["annotations"]), len(found)) == (15, 24)
    metrics = evaluate_files(*write(tmp_path, truth, found), protocol=protocol, iou=0.3, inclusive=inclusive)
    assert metrics["AP30"] == pytest.approx(expected, abs=1e-4)
    assert metrics["AP30/person"] == metrics["AP30"]


def test_classes_go_by_name_and_ids_may_have_gaps(tmp_path: Path) -> None:
    metrics = evaluate_files(*write(tmp_path, TRUTH, FOUND))
    assert metrics["AP"] == metrics["AP/cat"] == metrics["AP/dog"] == pytest.approx(1)
    assert list(metrics)[12:] == ["AP/cat", "AP/dog"]
    # area is the object's own: 5000 square pixels are medium though the box has 10000
    assert metrics["AP_large"] == -1
    assert metrics["AP_medium"] == pytest.approx(1)
    assert evaluate_files(*write(tmp_path, TRUTH, []))["AP"] == 0
    assert evaluate_files(*write(tmp_path, {**TRUTH, "annotations": []}, FOUND))["AP"] == -1
    assert evaluate_files(*write(tmp_path, TRUTH, FOUND), protocol="voc07")["AP50"] == pytest.approx(1)


def test_files_give_what_the_evaluators_give(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    evaluators = {"coco": CocoAP(classes=["cat", "dog"]), "voc10": VocAP(classes=["cat", "dog"])}
    truth: dict[str, Any] = {**TRUTH, "annotations": [], "images": []}
    found: list[dict[str, Any]] = []
    for key in ("a", 3, "b", 1):
        n, m = 4, 9
        boxes = np.tile([20, 20, 60, 60], (n, 1)) + rng.integers(-15, 15, (n, 4))
        detected = boxes[rng.integers(0, n, m)] + rng.integers(-4, 4, (m, 4))
        labels, seen = rng.integers(0, 2, n), rng.integers(0, 2, m)
        ignore, scores = rng.random(n) < 0.2, rng.integers(1, 9, m) / 8
        truth["images"].append({"id": key})
        for box, label, crowd in zip(boxes.tolist(), labels, ignore, strict=True):
            wide = [*box[:2], box[2] - box[0], box[3] - box[1]]
            entry = {"image_id": key, "category_id": (3, 90)[label], "bbox": wide, "iscrowd": int(crowd)}
            truth["annotations"].append(entry)
        for box, label, score in zip(detected.tolist(), seen, scores.tolist(), strict=True):
            wide = [*box[:2], box[2] - box[0], box[3] - box[1]]
            found.append({"image_id": key, "category_id": (3, 90)[label], "bbox": wide, "score": score})
        target: dict[str, Any] = {"boxes": boxes.astype(np.float32), "labels": labels, "ignore": ignore}
        result = Detections(torch.tensor(detected), torch.tensor(scores), torch.tensor(seen))
        for evaluator in evaluators.values():
            evaluator.update(key, result, target)
    paths = write(tmp_path, truth, found)
    assert evaluate_files(*paths) == evaluators["coco"].compute()
    assert evaluate_files(*paths, protocol="voc10", inclusive=False) == evaluators["voc10"].compute()


@pytest.mark.parametrize(("key", "coco"), [("iscrowd", 1), ("ignore", 0.5), ("difficult", 0.5)])
def test_what_counts_as_ignored(tmp_path: Path, key: str, coco: float) -> None:
    truth = copy.deepcopy(TRUTH)
    truth["annotations"][0][key] = 1
    paths = write(tmp_path, truth, FOUND[1:])
    assert evaluate_files(*paths, protocol="voc10")["AP50"] == pytest.approx(1)
    assert evaluate_files(*paths)["AP"] == pytest.approx(coco)


def change(index: int, **values: Any) -> Callable[[Any, Any], None]:
    """Sets keys of a result; ... removes one."""

    def apply(_truth: Any, found: Any) -> None:
        _set(found[index], values)

    return apply


def change_truth(part: str, index: int, **values: Any) -> Callable[[Any, Any], None]:
    def apply(truth: Any, _found: Any) -> None:
        _set(truth[part][index], values)

    return apply


def _set(entry: dict[str, Any], values: dict[str, Any]) -> None:
    entry.update(values)
    for key in [key for key, value in values.items() if value is ...]:
        del entry[key]


NAN = float("nan")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(1, image_id=8), r"dt\.json: results\[1\]: image_id 8 is not among the 2 ids in .*gt\.json"),
        (change(0, image_id="42"), r"dt\.json: results\[0\]: image_id '42' is not among"),
        (change(0, image_id=True), r"results\[0\]: image_id must be a whole number or a string, got True"),
        (change(0, image_id=[1]), r"results\[0\]: image_id must be"),
        (change(1, category_id=1), r"dt\.json: results\[1\]: category_id 1 is not among the 2 ids in"),
        (change(1, category_id=...), r"results\[1\]: category_id is missing"),
        (change(0, bbox=...), r"results\[0\]: bbox is missing"),
        (change(0, bbox=[1, 2, 3]), r"results\[0\]: bbox must be four finite numbers \[x, y, w, h\], got \[1, 2, 3\]"),
        (change(0, bbox=[1, 2, 3, "4"]), "bbox must be four finite numbers"),
        (change(0, bbox=[1, 2, 3, NAN]), "bbox must be four finite numbers"),
        (change(0, bbox=[1, 2, 3, 10**400]), "bbox must be four finite numbers"),
        (change(0, bbox=list(range(10**5))), "bbox must be four finite numbers"),
        (change(0, bbox={"x": 1}), "bbox must be four finite numbers"),
        (change(0, bbox=[1, 2, -3, 4]), r"results\[0\]: bbox has a negative width or height, \[1, 2, -3, 4\]"),
        (change(0, score=...), r"dt\.json: results\[0\]: score is missing"),
        (change(1, score=NAN), r"results\[1\]: score must be a finite number, got nan"),
        (change(1, score=None), r"results\[1\]: score must be a finite number, got None"),
        (lambda _, found: found.append(7), r"results\[2\]: expected an object, got a number"),
        (
            change_truth("annotations", 1, image_id=1),
            r"gt\.json: annotation 2: image_id 1 is not in images",
        ),
        (
            change_truth("annotations", 1, bbox=[0, 0, 1, -1]),
            r"gt\.json: annotation 2: bbox \[0.0, 0.0, 1.0, -1.0\] has a negative side",
        ),
        (change_truth("annotations", 0, area="big"), r"gt\.json: annotation 1: area: expected a number, got big"),
        (change_truth("annotations", 0, iscrowd="0"), r"gt\.json: annotation 1: iscrowd: expected 0 or 1, got '0'"),
        (change_truth("images", 0, id=7), r"gt\.json: images\[1\]: the id 7 occurs twice"),
        (change_truth("images", 1, id=...), r"gt\.json: images\[1\]: id None: expected a whole number or a string"),
        (change_truth("categories", 0, id=3), r"gt\.json: categories\[1\]: the id 3 occurs twice"),
        (
            change_truth("categories", 0, name="cat"),
            r"gt\.json: categories: class names must be different and",
        ),
        (change_truth("categories", 1, name=...), r"gt\.json: categories\[1\]: name None: expected a string"),
        (lambda truth, _: truth.pop("categories"), r"gt\.json: no list 'categories' at the top"),
        (lambda truth, _: truth.update(images={}), r"gt\.json: no list 'images' at the top"),
    ],
)
def test_broken_entries_are_named(tmp_path: Path, spoil: Callable[[Any, Any], Any], message: str) -> None:
    truth, found = copy.deepcopy(TRUTH), copy.deepcopy(FOUND)
    spoil(truth, found)
    with pytest.raises(DataError, match=message) as caught:
        evaluate_files(*write(tmp_path, truth, found))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200 + 2 * len(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"not JSON \(Expecting value"),
        ('[{"image_id": 42,', r"not JSON \(Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
        ('{"annotations": []}', "images: expected a list, as predict writes it, got null"),
        ('"results"', "expected a list of results or the object that predict writes, got a string"),
        ("NaN", "expected a list of results or the object that predict writes, got a number"),
        ("[" + "9" * 5000 + "]", "not JSON"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    ground, found = write(tmp_path, TRUTH, content)
    with pytest.raises(DataError, match=r"dt\.json: .*" + message) as caught:
        evaluate_files(ground, found)
    assert "\n" not in str(caught.value)


def test_other_ways_a_file_may_be_wrong(tmp_path: Path) -> None:
    ground, found = write(tmp_path, FOUND, FOUND)
    with pytest.raises(DataError, match=r"gt\.json: no list 'images' at the top; expected COCO's"):
        evaluate_files(ground, found)
    with pytest.raises(DataError, match=r"missing\.json: cannot read the annotations \(No such file"):
        evaluate_files(tmp_path / "missing.json", found)
    with pytest.raises(DataError, match=r"cannot read the annotations \(Is a directory"):
        evaluate_files(tmp_path, found)
    ground.write_bytes(b'{"images": "\xff\xfe\xff"}')
    with pytest.raises(DataError, match=r"gt\.json: not a json file"):
        evaluate_files(ground, found)


def test_settings_go_with_the_protocol(tmp_path: Path) -> None:
    paths = write(tmp_path, TRUTH, FOUND)
    for setting in ({"iou": 0.5}, {"inclusive": True}):
        with pytest.raises(ConfigError, match=f"{next(iter(setting))} is for the protocols voc07 and voc10"):
            evaluate_files(*paths, **setting)
    with pytest.raises(ConfigError, match="no protocol 'voc2007'; did you mean 'voc07'"):
        evaluate_files(*paths, protocol="voc2007")  # type: ignore[arg-type]
    for iou in (0, 1.5, NAN):
        with pytest.raises(ConfigError, match="iou must be above 0"):
            evaluate_files(*paths, protocol="voc10", iou=iou)


# what predict writes


def named(*names: str) -> dict[str, Any]:
    """Ground truth of pictures of these names, with a cat in each."""
    boxes = [{"id": n, "image_id": n, "category_id": 3, "bbox": [5, 5, 20, 20 + n]} for n in range(len(names))]
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    return {"images": images, "categories": [{"id": 3, "name": "cat"}], "annotations": boxes}


def predicted(*names: str, category: str = "cat") -> dict[str, Any]:
    """What predict writes of pictures of these names: ids of its own, from 1."""
    boxes = [{"image_id": n + 1, "category_id": 1, "bbox": [5, 5, 20, 20 + n], "score": 0.9} for n in range(len(names))]
    images = [{"id": n + 1, "file_name": name, "height": 60, "width": 60} for n, name in enumerate(names)]
    return {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": category}]}


@pytest.mark.parametrize(
    ("truths", "predictions"),
    [
        (["a.jpg", "b.jpg"], ["photos/a.jpg", "photos/b.jpg"]),
        (["val/a.jpg", "val/b.jpg"], ["a.jpg", "b.jpg"]),
        (["north/000.jpg", "south/000.jpg"], ["/data/north/000.jpg", "/data/south/000.jpg"]),
        (["north\\000.jpg", "south\\000.jpg"], ["north/000.jpg", "south/000.jpg"]),
    ],
)
def test_predictions_belong_to_the_pictures_of_the_same_name(
    tmp_path: Path, truths: list[str], predictions: list[str]
) -> None:
    assert evaluate_files(*write(tmp_path, named(*truths), predicted(*predictions)))["AP"] == pytest.approx(1)
    # the boxes differ in height: exchanged they do not overlap by 95 %
    swapped = named(*truths[::-1])
    swapped["annotations"][0]["bbox"][3] = 90
    assert evaluate_files(*write(tmp_path, swapped, predicted(*predictions)))["AP"] < 0.9
    results = [
        {"image_id": name, "category_id": 3, "bbox": [5, 5, 20, 20 + n], "score": 0.9}
        for n, name in enumerate(predictions)
    ]
    assert evaluate_files(*write(tmp_path, named(*truths), results))["AP"] == pytest.approx(1)


def test_predictions_find_pictures_whose_ids_are_their_paths(tmp_path: Path) -> None:
    truth = named("", "")
    truth["images"] = [{"id": "north/a"}, {"id": "south/a"}]
    for number, entry in enumerate(truth["annotations"]):
        entry["image_id"] = ("north/a", "south/a")[number]
    found = predicted("x/north/a", "x/south/a")
    assert evaluate_files(*write(tmp_path, truth, found))["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            predicted("photos/c.jpg"),
            "images[0]: no picture 'c.jpg' among the 3 of GT; expected detections of its pictures alone",
        ),
        (predicted("000.jpg"), "images[0]: '000.jpg' may be any of 2 pictures of GT"),
        (
            predicted("x/a.jpg", "y/a.jpg"),
            "images[1]: file_name 'y/a.jpg' is the second picture of this name; GT has one",
        ),
        (predicted("a.jpg", category="cats"), "category 'cats' is none of GT's; did you mean 'cat'?"),
        ({**predicted("a.jpg"), "images": [{"id": 1}]}, "images[0]: file_name is missing"),
        ({**predicted("a.jpg"), "annotations": None}, "annotations: expected a list, as predict writes it, got null"),
        (
            {**predicted("a.jpg"), "images": [{"id": 1, "file_name": "clip.mp4", "frame": 0}]},
            "images[0]: frame 0 of clip.mp4; only pictures can be measured",
        ),
        (
            {**predicted("a.jpg"), "annotations": [{"image_id": 7}]},
            "annotations[0]: image_id 7 is not among the 1 ids in DT",
        ),
    ],
)
def test_predictions_without_counterpart_are_named(tmp_path: Path, found: Any, message: str) -> None:
    truth, detections = write(tmp_path, named("a.jpg", "north/000.jpg", "south/000.jpg"), found)
    with pytest.raises(DataError) as error:
        evaluate_files(truth, detections)
    expected = message.replace("GT", str(truth)).replace("DT", str(detections))
    assert str(error.value) == f"{detections}: {expected}"
