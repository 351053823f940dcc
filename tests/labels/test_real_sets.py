"""Real data sets written in each format and read again."""

from __future__ import annotations

import os
from pathlib import Path

import label_sets as sets
import numpy as np
import pytest

from mnv2det.data.formats.records import Records
from mnv2det.data.formats.voc import VOC
from mnv2det.labels.base import LabelledBox, LabelledPart, LabelledPicture, picture_size
from mnv2det.registry import LABELS

FORMATS = ("yolo", "labelme", "csv")


def part_of(records: Records, role: str) -> LabelledPart:
    """A split as it was read, without the boxes that are wrong."""
    boxes, kept = records.boxes, records.kept()[1]
    corners = records.clipped(records.sizes()).corners
    pictures = []
    for index, picture in enumerate(records.pictures):
        own = [
            LabelledBox(boxes.names[boxes.label[row]], tuple(corners[row].tolist()))
            for row in np.flatnonzero(kept & (boxes.image == index))
        ]
        path = records.path(picture.file)
        pictures.append(LabelledPicture(path, os.path.basename(picture.file), picture_size(path), own))
    return LabelledPart(role, pictures, records.classes["labels"])  # type: ignore[arg-type]


@pytest.mark.shared
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("folder", "home"), [("bccd", "BCCD"), ("pennfudan", "PennFudan")])
def test_a_real_data_set_comes_back(tmp_path: Path, shared: Path, name: str, folder: str, home: str):
    roles = ("train", "val")
    parts = [part_of(VOC(root=shared / folder, sets=(f"{home}/{role}",)).read(), role) for role in roles]
    sets.assert_comes_back(LABELS.get(name)(), parts, tmp_path / name, ignored=True)


@pytest.mark.shared
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("folder", ["bccd", "raccoon", "coco100", "camvid", "pennfudan", "cases/c07", "cases/c11"])
def test_data_sets_in_other_formats_are_not_claimed(shared: Path, name: str, folder: str):
    answer = LABELS.get(name)().recognise(sets.Tree(shared / folder))
    assert isinstance(answer, str), answer
