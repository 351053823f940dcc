"""The quick reader of COCO's json finds what the thorough one finds, and leaves to it whatever is unusual."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnv2det.data.formats.coco import CocoJson
from mnv2det.data.formats.records import Boxes, Records


def dataset(count: int = 12) -> dict[str, Any]:
    rng = random.Random(0)
    images = [
        {"id": rng.randrange(10**6), "file_name": f"a/{number}.jpg", "height": 80 + number, "width": 100, "licence": 1}
        for number in range(count)
    ]
    categories = [
        {"id": number, "name": name, "supercategory": "x"} for number, name in ((7, "cat"), (2, "car"), (90, "dog"))
    ]
    annotations: list[dict[str, Any]] = []
    for number in range(5 * count):
        x, y, w, h = rng.uniform(0, 60), rng.uniform(0, 40), rng.uniform(1, 60), rng.uniform(1, 60)
        entry: dict[str, Any] = {
            "id": 1000 - number,
            "image_id": rng.choice(images[1:])["id"],  # the first has no boxes
            "category_id": rng.choice([90, 7]),
            "bbox": [x, round(y), w, h],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        if number % 3:
            entry |= {"area": w * h / 2, "iscrowd": int(number % 7 == 0)}
        annotations.append(entry)
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def reader(folder: Path, data: Any, **arguments: Any) -> CocoJson:
    path = folder / "data.json"
    path.write_text(json.dumps(data))
    return CocoJson(path, folder / "images", **arguments)


def quick_of(source: CocoJson) -> Records | None:
    return source._read_quickly(source.path.read_bytes())


def assert_equal(found: Records, expected: Records) -> None:
    assert [problem.message for problem in found.all_problems()] == [p.message for p in expected.all_problems()]
    assert (found.pictures, found.classes) == (expected.pictures, expected.classes)
    assert (found.mask_ids, found.category_ids) == (expected.mask_ids, expected.category_ids)
    for field in fields(Boxes):
        ours, theirs = getattr(found.boxes, field.name), getattr(expected.boxes, field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
        else:
            assert list(ours) == list(theirs), field.name


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"crowds": "objects"},
        {"masks": "coco"},
        {"masks": "voc"},
        {"names": ["dog", "cat", "car"]},
        {"names": ["cat"]},
    ],
    ids=str,
)
def test_both_read_the_same(tmp_path: Path, arguments: dict[str, Any]):
    source = reader(tmp_path, dataset(), **arguments)
    quick = quick_of(source)
    assert quick is not None
    assert_equal(quick, source._read_slowly())


def test_boxes_that_cannot_be_trained_on_are_found_by_both(tmp_path: Path):
    data = dataset()
    data["annotations"][3]["bbox"] = [5, 5, 0, 9]
    data["annotations"][9]["bbox"] = [500, 5, 10, 9]
    source = reader(tmp_path, data)
    quick = quick_of(source)
    assert quick is not None
    assert len(quick.all_problems()) == 2
    assert_equal(quick, source._read_slowly())


def change(path: str, value: Any) -> Any:
    """The data with one value changed; a path as in ``annotations.3.bbox``."""
    data = copy.deepcopy(dataset())
    *parents, last = path.split(".")
    inner: Any = data
    for key in parents:
        inner = inner[int(key)] if key.isdecimal() else inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("annotations.3.bbox", [1, 2, 3]),
        ("annotations.3.bbox", [1, 2, 3, "4"]),
        ("annotations.3.bbox", [1, 2, 3, 1e10]),
        ("annotations.3.bbox", []),
        ("annotations.3.bbox", None),
        ("annotations.3.area", 1e12),
        ("annotations.3.area", "big"),
        ("annotations.3.iscrowd", 2),
        ("annotations.3.iscrowd", True),
        ("annotations.3.image_id", 5_000_000),
        ("annotations.3.image_id", 2**70),
        ("annotations.3.category_id", 8),
        ("annotations.3.id", "text"),
        ("images.2.id", "text"),
        ("images.2.height", 0),
        ("images.2.height", None),
        ("images.2.file_name", "../../2.jpg"),
        ("images.2.file_name", None),
        ("categories.1.id", 7),
        ("annotations", []),
        ("annotations", {}),
        ("categories", None),
    ],
)
def test_what_is_unusual_is_left_to_the_thorough_one(tmp_path: Path, path: str, value: Any):
    assert quick_of(reader(tmp_path, change(path, value))) is None


def test_an_image_that_occurs_twice_is_left_to_the_thorough_one(tmp_path: Path):
    data = dataset()
    data["images"].append(dict(data["images"][0]))
    assert quick_of(reader(tmp_path, data)) is None


@pytest.mark.parametrize("outline", [None, [], [[1, 2]], "text"])
def test_a_broken_segmentation_is_left_to_the_thorough_one(tmp_path: Path, outline: Any):
    source = reader(tmp_path, change("annotations.3.segmentation", outline), masks="coco")
    assert quick_of(source) is None
    assert any(problem.kind == "segmentation_broken" for problem in source.read().all_problems())


def test_large_pictures_are_selected(tmp_path: Path):
    source = reader(tmp_path, dataset(), masks="coco", least_pixels=6000)
    found, expected = source.read(), source._read_slowly()
    source._select_large(expected)
    assert 0 < len(found.pictures) < 12
    assert_equal(found, expected)
