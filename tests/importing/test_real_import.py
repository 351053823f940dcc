"""Real data sets: imported, written for other tools, imported again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from label_tools import assert_same_boxes, boxes
from PIL import Image

from mnv2det.check.run import check_data
from mnv2det.importing.export_data import export_data
from mnv2det.importing.import_data import import_data
from mnv2det.labels.recognise import recognise

pytestmark = [pytest.mark.shared, pytest.mark.heavy]

# fmt: off
CAMVID = [
    "sky", "building", "pole", "road", "pavement", "tree", "signsymbol", "fence", "car", "pedestrian", "bicyclist",
]
# fmt: on
SETS = {"bccd": (364, 4888, 2), "pennfudan": (170, 423, 0), "raccoon": (200, 217, 0)}
FORMATS = ("coco", "voc", "yolo", "labelme", "csv")


@pytest.mark.parametrize("name", SETS)
def test_boxes_survive_every_format(shared: Path, tmp_path: Path, name: str):
    pictures, count, left_out = SETS[name]
    result = import_data(shared / name, tmp_path / "data", workers=2, link=True)
    assert result.counts["source"] == {"pictures": pictures, "boxes": count}
    assert len(result.left_out) == left_out
    kept = [result.counts[role] for role in ("train", "val", "test") if role in result.counts]
    assert sum(entry["pictures"] for entry in kept) == pictures
    assert sum(entry["boxes"] for entry in kept) == count - left_out
    report = check_data(tmp_path / "data", workers=2)
    assert [finding for finding in report.findings if finding.severity == "error"] == []
    wanted = boxes(tmp_path / "data")
    for target in FORMATS:
        export_data(tmp_path / "data", tmp_path / target, name=target, link=True, workers=2)
        assert recognise(tmp_path / target).format == target
        again = import_data(tmp_path / target, tmp_path / f"again_{target}", link=True, workers=2)
        assert again.classes == result.classes
        assert_same_boxes(boxes(tmp_path / f"again_{target}"), wanted)


@pytest.mark.parametrize("target", ["voc", "masks"])
def test_masks_survive_every_format(shared: Path, tmp_path: Path, target: str):
    source = shared / "camvid"
    result = import_data(source, tmp_path / "data", mask_names=CAMVID, workers=2, link=True)
    assert {role: count["pictures"] for role, count in result.counts.items()} == {
        "train": 367, "val": 101, "test": 233, "source": 701,
    }  # fmt: skip
    export_data(tmp_path / "data", tmp_path / target, name=target, link=True, workers=2)
    again = import_data(tmp_path / target, tmp_path / "again", link=True, workers=2)
    assert again.classes == CAMVID
    originals = {path.stem: path for path in (source / "VOCdevkit/CamVid/SegmentationClass").glob("*.png")}
    copies = {path.stem: path for path in (tmp_path / "again").rglob("*.png")}
    assert copies.keys() == originals.keys()
    for stem in list(originals)[::20]:
        np.testing.assert_array_equal(np.asarray(Image.open(copies[stem])), np.asarray(Image.open(originals[stem])))
