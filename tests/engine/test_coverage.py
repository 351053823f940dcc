"""Data from which nothing can be learned or measured is named before training starts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_tools import Voc, item, kinds, picture, xml

from mnv2det.check.run import check_data
from mnv2det.data.formats.base import RecordsDataset
from mnv2det.data.formats.voc import VOC
from mnv2det.engine import coverage
from mnv2det.engine.coverage import check_coverage
from mnv2det.errors import DataError
from mnv2det.registry import DATASETS

CLASSES = ["other", "block"]


def masks(root: Path, **ids: np.ndarray) -> Voc:
    """Six pictures, 40x60, with masks of the ids given by name, and of ids 0, 1 and 2 for the others."""
    voc = Voc(root, masks=True)
    for name, mask in ids.items():
        voc.mask(name, np.broadcast_to(mask, (40, 60)))
    voc.write()
    return voc


def parts(root: Path, **arguments: Any) -> tuple[RecordsDataset, RecordsDataset]:
    given = {"boxes": None, "masks": "required", "lists": "Main", **arguments}
    train, val = (VOC(root=root, sets=(f"Mine/{name}",), **given).dataset() for name in ("train", "val"))
    return train, val


def gaps(root: Path, **arguments: Any) -> list[str]:
    train, val = parts(root, **arguments)
    return check_coverage(train, val, train.classes)


def binary(root: Path, count: int = 6) -> Voc:
    mask = np.zeros((40, 60), np.uint8)
    mask[:10] = 255
    return masks(root, **{f"p{number}": mask for number in range(count)})


REFUSAL = (
    "no pixel has id 1 ('block'), but 25% have 255 = ignore; write 1 for 'block' where masks of 0 and 255 mean two"
    " classes"
)


def test_masks_of_0_and_255_for_two_classes_are_refused(tmp_path: Path):
    binary(tmp_path)
    with pytest.raises(DataError) as error:
        gaps(tmp_path, mask_names=CLASSES)
    assert str(error.value) == f"data.train: {REFUSAL}"
    report = check_data(tmp_path, workers=0, mask_count=2)
    findings = [finding for finding in report.findings if finding.severity == "error"]
    said = [(finding.kind, finding.split, finding.value) for finding in findings]
    assert said == [("mask_binary", "train", REFUSAL.replace("'block'", "'id 1'"))]
    assert "class_unused" not in [f.kind for f in report.findings if "pixels" in f.value]


def test_one_mask_with_the_class_is_looked_for_beyond_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    voc = binary(tmp_path, count=4)
    for name in ("p1", "p4", "p5"):
        voc.mask(name, np.ones((40, 60)))
    monkeypatch.setattr(coverage, "SAMPLE", 1)
    assert gaps(tmp_path, mask_names=CLASSES) == []


def test_ignored_borders_are_no_second_class(tmp_path: Path):
    edge = np.zeros((40, 60), np.uint8)
    edge[0, 0] = 255
    masks(tmp_path, **dict.fromkeys([f"p{number}" for number in range(6)], edge))
    expected = ["data.train: no pixel of 'block' in 4 masks"]
    assert gaps(tmp_path, mask_names=CLASSES) == expected


def test_classes_without_a_pixel_are_named(tmp_path: Path):
    masks(tmp_path)
    names = ["sky", "road", "tree", *(f"c{number}" for number in range(10))]
    notes = gaps(tmp_path, mask_names=names)
    listed = ", ".join(f"'c{number}'" for number in range(8))
    assert notes == [f"data.train: no pixel of {listed} and 2 others in 4 masks"]
    assert gaps(tmp_path, mask_names=names[:3]) == []


def test_a_mask_that_cannot_be_read_is_left_to_training(tmp_path: Path):
    voc = masks(tmp_path)
    (voc.home / "SegmentationClass/p0.png").write_bytes(b"junk")
    assert gaps(tmp_path, mask_names=["a", "b", "c"]) == []


def test_a_validation_set_without_a_box_is_named_by_training_and_check(tmp_path: Path):
    voc = Voc(tmp_path)
    for number in (4, 5):
        voc.annotate(f"p{number}", xml())
    voc.write()
    given = {"boxes": "required", "masks": None, "names": ["cat", "dog"]}
    assert gaps(tmp_path, **given) == ["data.val: no boxes to measure"]
    report = check_data(tmp_path, workers=0)
    found = [f for f in report.findings if f.kind in ("part_unannotated", "class_unmeasured")]
    assert [(f.severity, f.split, f.value) for f in found] == [("warning", "val", "no boxes to measure")]


def test_boxes_that_are_all_ignored_are_said_to_be(tmp_path: Path):
    voc = Voc(tmp_path)
    for number in range(4):
        voc.annotate(f"p{number}", xml(item("cat", extra="<difficult>1</difficult>"), size=picture(0).shape[:2]))
    voc.write()
    given = {"boxes": "required", "masks": None, "names": ["cat", "dog"]}
    assert gaps(tmp_path, **given) == ["data.train: no boxes to learn from (4 are ignored)"]
    assert "part_unannotated" in kinds(check_data(tmp_path, workers=0).findings)


def test_generated_data_lacks_nothing():
    train, val = (
        DATASETS.build("shapes", {"count": 8, "split": name}, place="", root=Path()) for name in ("train", "val")
    )
    assert check_coverage(train, val, train.classes) == []
