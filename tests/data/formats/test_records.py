"""What all formats share: no box reaches a transform without area, problems come in reading order, arrays are flat."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_tools import Voc, item, xml
from hypothesis import given, settings
from hypothesis import strategies as st

import mnv2det.data  # noqa: F401 - registers augmentations
from mnv2det.config import BadData
from mnv2det.data.formats.base import Format, RecordsDataset
from mnv2det.data.formats.cleaning import Cleaning
from mnv2det.data.formats.records import Box, Picture, Records, clip_boxes
from mnv2det.data.formats.voc import VOC
from mnv2det.errors import ConfigError, DataError
from mnv2det.registry import AUGMENTATIONS
from mnv2det.structures import Preprocess, Sample


def records_of(*pictures: Picture) -> Records:
    return Records(Path("x"), "x", "x", classes={"labels": ["cat"]}, pictures=list(pictures))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 2, 3, 4), [1, 2, 3, 4]),
        ((-5, -5, 900, 900), [0, 0, 500, 300]),
        ((499.99999, 1, 500, 9), "no_area"),  # no width in float32
        ((7, 1, 7, 9), "no_area"),
        ((9, 1, 7, 9), "no_area"),
        ((math.nan, 1, 7, 9), "no_area"),
        ((500, 1, 510, 9), "outside"),
        ((-9, 1, 0, 9), "outside"),
    ],
)
def test_a_box_is_clipped_or_refused(box: tuple[float, ...], expected: Any):
    clipped = clip_boxes(np.array([box], np.float64), np.array([[300, 500]]))
    assert clipped.corners.dtype == np.float32
    if isinstance(expected, str):
        assert getattr(clipped, expected).tolist() == [True]
        assert clipped.valid.tolist() == [False]
    else:
        assert clipped.valid.tolist() == [True]
        assert clipped.corners[0].tolist() == expected


def test_a_voc_box_that_float32_makes_empty_is_refused(tmp_path: Path):
    voc = Voc(tmp_path)
    voc.annotate("p0", xml(item(), item(box=(60.99999999, 6, 70, 15))))
    voc.write()
    with pytest.raises(DataError, match=r"p0\.xml: object 2 'cat': box 61 6 70 15 has no area"):
        VOC(root=tmp_path, sets=("Mine/train",)).dataset()
    data = VOC(root=tmp_path, sets=("Mine/train",)).dataset(BadData.skip)
    assert len(data.target(0)["boxes"]) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(AUGMENTATIONS.names()),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.lists(st.floats(-1, 301), min_size=4, max_size=4),
    st.floats(0, 1e-4),
    st.integers(0, 99),
)
def test_what_is_valid_stays_valid_in_every_augmentation(name, size, numbers, sliver, seed):
    corners = np.array([numbers, [*numbers[:2], numbers[0] + sliver, numbers[3]]], np.float64)
    clipped = clip_boxes(corners, np.tile(np.array(size), (2, 1)))
    boxes = clipped.corners[clipped.valid]
    target: dict[str, Any] = {"boxes": boxes, "labels": np.zeros(len(boxes), np.int64)}
    target |= {"ignore": np.zeros(len(boxes), np.bool_), "area": np.ones(len(boxes), np.float32)}
    transform = AUGMENTATIONS.build(name, {}, Preprocess((32, 48)), place="augment")
    result = transform(Sample(np.zeros((*size, 3), np.uint8), target, 1), seed)[1]
    if "boxes" in result:
        assert (result["boxes"][:, :2] < result["boxes"][:, 2:]).all()
        assert len(result["boxes"]) == len(result["labels"]) == len(result["ignore"])


def test_problems_come_in_reading_order():
    records = records_of(Picture(1, "1.png", (40, 60)))
    records.add_problem("annotation_broken", Path("x"), "first", position=0)
    records.add_box(Box(0, "cat", (5, 5, 5, 9), position=1))
    records.add_problem("annotation_broken", Path("x"), "third", position=2)
    records.add_box(Box(0, "cat", (90, 5, 99, 9), position=3))
    messages = [problem.message for problem in records.all_problems()]
    assert messages == [
        "x: first",
        "x: annotation 2: box 5 5 5 9 has no area",
        "x: third",
        "x: annotation 4: box 90 5 99 9 lies outside the 60x40 image",
    ]


def test_a_picture_that_a_problem_names_is_left_out_with_its_boxes():
    records = records_of(Picture("a", "a.png", (40, 60)), Picture("b", "b.png", (40, 60)))
    records.add_box(Box(0, "cat", (1, 1, 9, 9)))
    records.add_box(Box(1, "cat", (2, 2, 9, 9), position=1))
    records.add_problem("annotation_missing", Path("x/a.xml"), "none", index=0)
    data = RecordsDataset(records, BadData.skip)
    assert [data.image_id(index) for index in range(len(data))] == ["b"]
    assert data.target(0)["boxes"].tolist() == [[2, 2, 9, 9]]
    assert data.problems == ["x/a.xml: none"]


def test_skip_cannot_leave_out_what_concerns_everything():
    records = records_of(Picture("a", "a.png", (40, 60)))
    records.add_problem("class_broken", Path("x"), "no classes", fatal=True)
    with pytest.raises(DataError, match="x: no classes"):
        RecordsDataset(records, BadData.skip)


def test_a_data_set_keeps_no_object_per_image_or_box():
    records = records_of(*[Picture(f"é\ud800{n}", f"{n}.png", (40, 60)) for n in range(50)])
    for number in range(50):
        records.add_box(Box(number, "cat", (1, 1, 9, 9), position=number))
    data = RecordsDataset(records)
    assert data.image_id(7) == "é\ud8007"
    for value in (*vars(data).values(), *vars(data._table).values()):
        assert not isinstance(value, list | dict | tuple) or len(value) < 50
        assert not isinstance(value, np.ndarray) or value.dtype != object


def test_a_format_that_writes_no_copies_says_so(tmp_path: Path):
    class Reader(Format):
        def read(self) -> Records:
            return records_of()

    with pytest.raises(ConfigError, match="--fix: the format of x writes no cleaned copy"):
        Reader().write_clean(Reader().read(), Cleaning(), tmp_path, tmp_path)
