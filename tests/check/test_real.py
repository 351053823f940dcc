"""The data check on real data: what is truly wrong there, and what is planted, is found, and nothing else."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from check_tools import STATISTICS, cut, found, jpeg, kinds, picture, save
from PIL import Image

from mnv2det.check.findings import KINDS, Finding
from mnv2det.check.run import Report, check_data


@pytest.mark.shared
def test_bccd_has_two_boxes_without_area(shared: Path):
    report = check_data(shared / "bccd", workers=2)
    wrong = [finding for finding in report.findings if finding.severity == "error"]
    assert [(f.kind, f.split, f.image, f.annotation) for f in wrong] == [
        ("box_no_area", "train", "BloodImage_00343", 4),
        ("box_no_area", "val", "BloodImage_00338", 13),
    ]
    near = [finding for finding in report.findings if finding.kind == "image_near_leak"]
    assert [finding.image for finding in near] == ["BloodImage_00038"]  # two exposures of one field
    assert report.anchors is not None
    assert 0.05 < report.anchors.without < 0.1
    assert report.anchors.classes["Platelets"]["without"] > 0.5


@pytest.mark.shared
@pytest.mark.parametrize(("name", "notes"), [("voc100", {"difficult": 38}), ("camvid", {}), ("coco100", {"crowd": 5})])
def test_no_error_where_there_is_none(shared: Path, name: str, notes: dict[str, int]):
    report = check_data(shared / name, workers=2)
    assert kinds(report.findings, "error") == []
    assert Counter(kinds(report.findings, "note")) == notes


def _key(finding: Finding) -> tuple[Any, ...]:
    return finding.kind, finding.split, finding.file, finding.image, finding.annotation


def _coco_parts(shared: Path, root: Path) -> dict[str, dict[str, Any]]:
    """coco100 as a training part of 60 images and a validation part of 40."""
    data = json.loads((shared / "coco100/annotations/instances_val2017.json").read_text())
    parts = {}
    for name, images in (("train", data["images"][:60]), ("val", data["images"][60:])):
        (root / name).mkdir(parents=True)
        for entry in images:
            shutil.copyfile(shared / "coco100/val2017" / entry["file_name"], root / name / entry["file_name"])
        ids = {entry["id"] for entry in images}
        rows = [row for row in data["annotations"] if row["image_id"] in ids]
        parts[name] = {"images": images, "annotations": rows, "categories": list(data["categories"])}
    return parts


def _write_parts(root: Path, parts: dict[str, dict[str, Any]]) -> Path:
    (root / "annotations").mkdir(exist_ok=True)
    for name, data in parts.items():
        (root / "annotations" / f"{name}.json").write_text(json.dumps(data))
    return root


def _plant(root: Path, parts: dict[str, dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    """Twenty faults; gives the findings they must become."""
    train, val = parts["train"], parts["val"]
    images = [entry for entry in train["images"] if any(row["image_id"] == entry["id"] for row in train["annotations"])]
    names = [f"train/{entry['file_name']}" for entry in images]
    planted: list[tuple[Any, ...]] = []

    def box(number: int, kind: str | None, bbox: Any, **other: Any) -> None:
        identifier = 900000 + len(train["annotations"])
        row = {"id": identifier, "image_id": images[number]["id"], "category_id": 1, "area": 50.0, "bbox": bbox}
        train["annotations"].append({**row, "iscrowd": 0, **other})
        if kind:
            planted.append((kind, "train", names[number], images[number]["id"], identifier))

    def of_image(kind: str, number: int) -> None:
        planted.append((kind, "train", names[number], images[number]["id"], None))

    (root / names[0]).unlink()
    of_image("image_missing", 0)
    cut(root / names[1])
    of_image("image_broken", 1)
    (root / names[2]).write_bytes(b"this is no picture")
    of_image("image_broken", 2)
    data = (root / names[3]).read_bytes()
    (root / names[3]).write_bytes(data[: len(data) // 2] + b"\xff\xd9")  # the rest would be grey
    of_image("image_damaged", 3)
    images[4]["width"] += 7
    of_image("image_size", 4)
    place = "annotations/train.json"
    train["images"].append({"id": 900001, "file_name": "../../etc/passwd", "height": 9, "width": 9})
    planted.append(("path_outside", "train", place, 900001, None))
    train["images"].append(dict(images[5]))
    planted.append(("image_twice", "train", place, images[5]["id"], None))
    picture_6 = cv2.imread(str(root / names[6]))
    (root / "val" / "leak.jpg").write_bytes(jpeg(cv2.resize(picture_6, (320, 240))[..., ::-1].copy(), 80))
    val["images"].append({"id": 900002, "file_name": "leak.jpg", "height": 240, "width": 320})
    of_image("image_leak", 6)
    shutil.copyfile(root / names[7], root / "train" / "copy.jpg")
    train["images"].append({**images[7], "id": 900003, "file_name": "copy.jpg"})
    planted.append(("image_duplicate", "train", "train/copy.jpg", 900003, None))
    save(root / "train" / "extra.jpg", picture(1))
    planted.append(("image_unlisted", "train", "train/extra.jpg", None, None))
    size = [(entry["width"], entry["height"]) for entry in images]
    box(8, "box_no_area", [10, 10, 0, 20])
    box(9, "box_outside", [size[9][0] + 5, 10, 20, 20])
    box(10, "box_beyond", [size[10][0] - 60, size[10][1] - 60, 90, 59])
    again = next(row for row in train["annotations"] if row["image_id"] == images[11]["id"])
    box(11, "box_duplicate", again["bbox"], category_id=again["category_id"], iscrowd=again["iscrowd"])
    box(12, "box_malformed", [float("nan"), 1, 2, 3])
    box(13, "class_unknown", [10, 10, 20, 20], category_id=999)
    box(14, "annotation_broken", [10, 10, 20, 20], iscrowd=5)
    box(15, "crowd", [10, 10, 20, 20], iscrowd=1)
    box(16, None, [10, 10, 20, 20], image_id=424242)
    planted.append(("annotation_orphan", "train", place, None, train["annotations"][-1]["id"]))
    train["categories"].append({"id": 999_1, "name": "unicorn"})
    planted.append(("class_unused", "train", place, None, None))
    return Counter(planted)


@pytest.mark.shared
def test_twenty_planted_faults_in_coco100_are_found_and_nothing_else(shared: Path, tmp_path: Path):
    root = tmp_path / "data"
    parts = _coco_parts(shared, root)
    before = check_data(_write_parts(root, parts), workers=2)
    assert kinds(before.findings, "error") == []
    planted = _plant(root, parts)
    assert sum(planted.values()) == 20
    after = check_data(_write_parts(root, parts), workers=2, fix=tmp_path / "clean")

    def keys(report: Report) -> Counter[tuple[Any, ...]]:
        return Counter(_key(finding) for finding in report.findings if finding.kind not in STATISTICS)

    assert keys(after) - keys(before) == planted
    assert not keys(before) - keys(after)
    clean = check_data(tmp_path / "clean", workers=2)
    fixed = {kind for kind, *_ in planted if KINDS[kind].fix}
    assert len(fixed) >= 13
    assert not fixed & {finding.kind for finding in clean.findings}
    assert kinds(clean.findings, "error") == ["class_unknown"]


@pytest.mark.shared
def test_planted_mask_faults_in_camvid_are_found(shared: Path, tmp_path: Path):
    source, home = shared / "camvid/VOCdevkit/CamVid", tmp_path / "CamVid"
    stems = [line.strip() for line in (source / "ImageSets/Segmentation/val.txt").read_text().split()][::10]
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (home / folder).mkdir(parents=True)
        for stem in stems:
            shutil.copyfile(source / folder / f"{stem}.{suffix}", home / folder / f"{stem}.{suffix}")
    (home / "ImageSets/Segmentation").mkdir(parents=True)
    (home / "ImageSets/Segmentation/val.txt").write_text("\n".join(stems))
    assert found(tmp_path) == []
    masks = [home / "SegmentationClass" / f"{stem}.png" for stem in stems]
    ids = np.array(Image.open(masks[0]))
    ids[:5] = 200
    Image.fromarray(ids).save(masks[0])
    Image.fromarray(ids[:, 1:]).save(masks[1])
    cut(masks[2])
    masks[3].unlink()
    assert found(tmp_path) == ["mask_broken", "mask_foreign", "mask_foreign", "mask_missing", "mask_size"]
