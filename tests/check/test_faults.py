"""Each fault by itself is found, and nothing else with it; the cleaned copy is free of it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_tools import STATISTICS, Coco, Voc, cut, found, item, jpeg, kinds, picture, save, two_parts, write, xml
from PIL import Image

from mnv2det.check.findings import KINDS
from mnv2det.check.run import check_data
from mnv2det.errors import ConfigError

pytestmark = pytest.mark.heavy

# COCO


def _missing(train: Coco, val: Coco) -> None:
    (train.folder / "1.jpg").unlink()


def _truncated(train: Coco, val: Coco) -> None:
    cut(train.folder / "1.jpg")


def _size(train: Coco, val: Coco) -> None:
    train.images[0]["width"] = 120


def _no_size(train: Coco, val: Coco) -> None:
    train.images[0]["height"] = "forty"


def _outside_path(train: Coco, val: Coco) -> None:
    train.images.append({"id": 99, "file_name": "../../../../etc/passwd", "height": 4, "width": 4})


def _absolute_path(train: Coco, val: Coco) -> None:
    train.images.append({"id": 99, "file_name": "/etc/passwd", "height": 4, "width": 4})


def _twice(train: Coco, val: Coco) -> None:
    train.images.append(dict(train.images[0]))


def _leak(train: Coco, val: Coco) -> None:
    val.add("copy.jpg", 98, picture(2))
    (val.folder / "copy.jpg").write_bytes(jpeg(picture(2), 75))


def _duplicate(train: Coco, val: Coco) -> None:
    train.add("copy.jpg", 98, picture(2))


def _no_name(train: Coco, val: Coco) -> None:
    del train.images[0]["file_name"]


def _no_area(train: Coco, val: Coco) -> None:
    train.box(1, [3, 3, 0, 9])


def _beside(train: Coco, val: Coco) -> None:
    train.box(1, [70, 3, 9, 9])


def _beyond(train: Coco, val: Coco) -> None:
    train.box(1, [50, 3, 19, 9])


def _again(train: Coco, val: Coco) -> None:
    train.box(1, train.annotations[0]["bbox"])


def _nan(train: Coco, val: Coco) -> None:
    train.box(1, [float("nan"), 3, 9, 9])


def _huge(train: Coco, val: Coco) -> None:
    train.box(1, [3, 3, 10**400, 9])


def _strings(train: Coco, val: Coco) -> None:
    train.box(1, ["3", "3", "9", "9"])


def _orphan(train: Coco, val: Coco) -> None:
    train.box(12345, [3, 3, 9, 9])


def _crowd_flag(train: Coco, val: Coco) -> None:
    train.box(1, [3, 3, 9, 9], iscrowd=7)


def _unknown(train: Coco, val: Coco) -> None:
    train.box(1, [3, 3, 9, 9], category_id=2)


def _category_twice(train: Coco, val: Coco) -> None:
    train.categories.append({"id": 1, "name": "cow"})


def _category_in_val(train: Coco, val: Coco) -> None:
    val.categories.append({"id": 3, "name": "cta"})


def _unused(train: Coco, val: Coco) -> None:
    train.categories.append({"id": 3, "name": "cow"})


def _alike(train: Coco, val: Coco) -> None:
    train.categories.append({"id": 3, "name": "Cats"})
    train.box(1, [3, 3, 9, 9], category_id=3)


def _two_classes(train: Coco, val: Coco) -> None:
    train.box(1, train.annotations[0]["bbox"], category_id=7)


FAULTS: list[tuple[Any, list[str]]] = [
    (_missing, ["image_missing"]),
    (_truncated, ["image_broken"]),
    (_size, ["image_size"]),
    (_no_size, ["image_size"]),
    (_outside_path, ["path_outside"]),
    (_absolute_path, ["path_outside"]),
    (_twice, ["image_twice"]),
    (_leak, ["image_leak"]),
    (_duplicate, ["image_duplicate"]),
    (_no_name, ["annotation_broken"]),
    (_no_area, ["box_no_area"]),
    (_beside, ["box_outside"]),
    (_beyond, ["box_beyond"]),
    (_again, ["box_duplicate"]),
    (_nan, ["box_malformed"]),
    (_huge, ["box_malformed"]),
    (_strings, ["box_malformed"]),
    (_orphan, ["annotation_orphan"]),
    (_crowd_flag, ["annotation_broken"]),
    (_unknown, ["class_unknown"]),
    (_category_twice, ["class_broken"]),
    (_category_in_val, ["class_unknown"]),
    (_unused, ["class_unused"]),
    (_alike, ["class_similar"]),
    (_two_classes, ["box_two_classes"]),
]


def test_good_data_has_no_finding(tmp_path: Path):
    report = check_data(write(*two_parts(tmp_path)), workers=2)
    assert [finding.kind for finding in report.findings if finding.kind not in STATISTICS] == []
    assert report.to_json()["splits"]["train"]["classes"] == {
        "cat": {"boxes": 8, "images": 8},
        "dog": {"boxes": 8, "images": 8},
    }


@pytest.mark.parametrize(("plant", "expected"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_one_fault_is_one_finding(tmp_path: Path, plant: Any, expected: list[str]):
    parts = two_parts(tmp_path / "data")
    plant(*parts)
    root = write(*parts)
    assert found(root) == expected
    # and the cleaned copy is free of it, where that is promised
    before = sorted(path for path in tmp_path.rglob("*"))
    report = check_data(root, workers=1, fix=tmp_path / "clean")
    assert report.fixed is not None
    fixable = [kind for kind in expected if KINDS[kind].fix]
    assert [finding.kind for finding, action in report.fixed if action] == fixable
    assert found(tmp_path / "clean") == [kind for kind in expected if not KINDS[kind].fix]
    assert sorted(path for path in tmp_path.rglob("*") if tmp_path / "clean" not in [path, *path.parents]) == before


def test_findings_name_their_place(tmp_path: Path):
    train, val = two_parts(tmp_path)
    identifier = train.box(3, [70, 3, 9, 9])
    report = check_data(write(train, val), workers=1)
    one = next(finding for finding in report.findings if finding.kind == "box_outside")
    assert one.to_json() == {
        "kind": "box_outside",
        "severity": "error",
        "split": "train",
        "file": "train/3.jpg",
        "image": 3,
        "annotation": identifier,
        "value": "'cat' [70, 3, 9, 9]",
        "expected": "a box inside 60x40",
    }


def test_an_image_listed_twice_is_named_by_its_id(tmp_path: Path):
    train, val = two_parts(tmp_path)
    _twice(train, val)
    report = check_data(write(train, val), workers=1)
    assert [finding.image for finding in report.findings if finding.kind == "image_twice"] == [train.images[0]["id"]]


def test_a_wrong_size_says_what_may_have_happened(tmp_path: Path):
    train, val = two_parts(tmp_path)
    train.images[0] |= {"width": 120, "height": 80}
    train.images[1] |= {"width": 40, "height": 60}
    report = check_data(write(train, val), workers=1)
    texts = [finding.expected for finding in report.findings if finding.kind == "image_size"]
    assert texts == [
        "60x40, as the picture is; resized after it was annotated? Then its boxes must be, too",
        "60x40, as the picture is; sides swapped?",
    ]


def test_links_are_followed_and_noted(tmp_path: Path):
    train, val = two_parts(tmp_path / "data")
    save(tmp_path / "elsewhere.jpg", picture(77))
    (train.folder / "link.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    train.images.append({"id": 99, "file_name": "link.jpg", "height": 40, "width": 60})
    (train.folder / "secret.jpg").symlink_to("/etc/passwd")
    train.images.append({"id": 98, "file_name": "secret.jpg", "height": 40, "width": 60})
    root = write(train, val)
    assert found(root) == ["image_broken"]
    assert found(root, "note") == ["link_outside", "link_outside"]
    check_data(root, workers=1, fix=tmp_path / "clean")
    copied = tmp_path / "clean" / "train" / "link.jpg"
    assert copied.read_bytes() == (tmp_path / "elsewhere.jpg").read_bytes()
    assert not any(path.is_symlink() for path in (tmp_path / "clean").rglob("*"))
    assert not (tmp_path / "clean" / "train" / "secret.jpg").exists()


def test_pictures_without_an_entry_are_noted(tmp_path: Path):
    root = write(*two_parts(tmp_path))
    save(root / "train" / "extra.jpg", picture(55))
    report = check_data(root, workers=1)
    assert [(f.kind, f.file) for f in report.findings if f.severity == "note"] == [
        ("image_unlisted", "train/extra.jpg")
    ]


def test_the_copy_of_a_folder_named_by_way_of_another(tmp_path: Path, monkeypatch):
    write(*two_parts(tmp_path / "data"))
    monkeypatch.chdir(tmp_path / "data" / "train")
    for source, target in (("../../data", "one"), ("../train/../", "two")):
        check_data(source, workers=1, fix=tmp_path / target)
        assert sorted(path.name for path in (tmp_path / target / "val").iterdir()) == [
            f"{n}.jpg" for n in range(31, 39)
        ]
    monkeypatch.chdir(tmp_path / "data")
    report = check_data(".", workers=1, fix="../three")
    assert report.fixed is not None
    assert {finding.file for finding, _ in report.fixed} <= {"annotations/instances_train.json", ""}
    assert found(tmp_path / "three") == []


def test_a_leak_is_told_where_the_picture_can_be_spared(tmp_path: Path):
    parts = [*two_parts(tmp_path), Coco(tmp_path, "test", 61)]
    for part in parts:
        part.add("same.jpg", 99, picture(99))
    report = check_data(write(*parts), workers=1, fix=tmp_path.parent / f"{tmp_path.name}_clean")
    leaks = [(finding.split, finding.value) for finding in report.findings if finding.kind == "image_leak"]
    assert leaks == [
        ("train", "is val: val/same.jpg"),
        ("train", "is test: test/same.jpg"),
        ("val", "is test: test/same.jpg"),
    ]
    clean = tmp_path.parent / f"{tmp_path.name}_clean"
    assert [path.parent.name for path in clean.rglob("same.jpg")] == ["test"]


def test_a_decoders_complaint_is_a_warning(tmp_path: Path):
    train, val = two_parts(tmp_path)
    data = (train.folder / "1.jpg").read_bytes()
    (train.folder / "1.jpg").write_bytes(data[:-2] + b"\x11\x22\x33" + data[-2:])
    assert found(write(train, val)) == ["image_damaged"]


# VOC


def test_lists_of_boxes_and_of_masks_are_one_part(tmp_path: Path):
    voc = Voc(tmp_path, masks=True)
    voc.write()
    (voc.home / "ImageSets/Segmentation").mkdir()
    # one image of both lists, one of the masks' alone without an xml, one that no list has
    voc.add("val", "only", picture(70))
    voc.add("val", "none", picture(71))
    (voc.home / "Annotations/only.xml").unlink()
    (voc.home / "ImageSets/Segmentation/train.txt").write_text("p0\nonly\n")
    report = check_data(tmp_path, workers=1)
    assert kinds(report.findings) == []
    assert [(f.kind, f.file) for f in report.findings if f.severity == "note"] == [
        ("image_unlisted", "VOCdevkit/Mine/JPEGImages/none.jpg")
    ]
    metrics = report.to_json()["splits"]["train"]
    assert (metrics["images"], metrics["annotated"], metrics["boxes"]) == (5, 4, 8)
    (voc.home / "SegmentationClass/only.png").unlink()
    (voc.home / "SegmentationClass/p1.png").unlink()  # only needed for the list of masks
    assert found(tmp_path) == ["mask_missing"]


def _voc_faults(voc: Voc) -> None:
    (voc.home / "Annotations" / "p1.xml").unlink()
    voc.annotate("p2", xml(item(box=(9, 9, 9, 20)), item(box=(50, 9, 70, 20)), item(box=(99, 9, 120, 20)), item()))
    voc.annotate(
        "p4", xml(item("cta", (1, 1, 9, 9)), item(box=("x", 1, 2, 3)), item(""), item(), item(), size=(40, 61))
    )
    voc.add("train", "leak", picture(105))
    voc.add("train", "junk", picture(60), "<annotation")
    voc.lists["train"] += ["../../../../etc/passwd", "p0"]


VOC_EXPECTED = [
    "annotation_broken", "annotation_broken", "annotation_missing", "box_beyond", "box_duplicate", "box_malformed",
    "box_no_area", "box_outside", "class_unknown", "image_leak", "image_size", "image_twice", "path_outside",
]  # fmt: skip


def test_faults_in_voc_layout(tmp_path: Path):
    voc = Voc(tmp_path / "data")
    assert found(voc.write()) == []
    _voc_faults(voc)
    report = check_data(voc.write(), workers=1, fix=tmp_path / "clean")
    assert kinds(report.findings) == VOC_EXPECTED
    unknown = next(finding for finding in report.findings if finding.kind == "class_unknown")
    assert (unknown.value, unknown.expected) == ("'cta'", "'cat'")
    assert found(tmp_path / "clean") == ["class_unknown"]
    home = tmp_path / "clean" / "VOCdevkit" / "Mine"
    assert (home / "ImageSets/Main/train.txt").read_text() == "p0\np2\np3\n"
    # what had no fault is the same to the byte
    assert (home / "Annotations/p0.xml").read_bytes() == (voc.home / "Annotations/p0.xml").read_bytes()
    assert (home / "Annotations/p2.xml").read_text() == xml(item(box=(50, 9, 60, 20)), item())


def test_the_copy_can_be_trained_on(tmp_path: Path):
    from mnv2det.data.formats.voc import VOC

    voc = Voc(tmp_path / "data")
    _voc_faults(voc)
    check_data(voc.write(), workers=1, fix=tmp_path / "clean")
    dataset = VOC(root=tmp_path / "clean", sets=("Mine/train",)).dataset()
    assert [dataset.image_id(index) for index in range(len(dataset))] == ["p0", "p2", "p3"]
    assert [len(dataset.read(index).target["labels"]) for index in range(3)] == [2, 2, 2]


def test_masks(tmp_path: Path):
    voc = Voc(tmp_path / "data", masks=True)
    assert found(voc.write()) == []
    ids = np.zeros((40, 60), np.uint8)
    ids[:10], ids[10:12] = 77, 255
    voc.mask("p0", ids)
    voc.mask("p1", np.zeros((40, 61)))
    Image.new("RGB", (60, 40)).save(voc.home / "SegmentationClass" / "p2.png")
    report = check_data(voc.root, workers=1, fix=tmp_path / "clean")
    assert kinds(report.findings) == ["mask_broken", "mask_foreign", "mask_size"]
    one = next(finding for finding in report.findings if finding.kind == "mask_foreign")
    assert (one.value, one.expected) == ("id 77 in 600 pixels", "0 ... 20, or 255 = ignore")
    assert found(tmp_path / "clean") == ["mask_broken", "mask_size"]
    with Image.open(tmp_path / "clean/VOCdevkit/Mine/SegmentationClass/p0.png") as cleaned:
        assert cleaned.mode == "P"
        assert cleaned.getpalette()[:6] == [0, 255, 7, 1, 254, 7]
        np.testing.assert_array_equal(np.array(cleaned), np.where(ids == 77, 255, ids))
    with pytest.raises(ConfigError, match="for a folder"):
        check_data("configs/ssdlite_shapes.yaml", mask_count=3)
    assert found(voc.root, mask_count=2).count("mask_foreign") == 4


def test_a_class_list_longer_than_vocs_is_guessed_from_the_ids(tmp_path: Path):
    voc = Voc(tmp_path, masks=True)
    ids = np.arange(2400).reshape(40, 60) // 80  # 0 ... 29 without a gap
    voc.mask("p0", ids)
    assert found(voc.write()) == []
    ids[0, 0] = 40
    voc.mask("p1", ids)
    assert found(voc.root) == ["mask_foreign"]


# where a copy may be written


def test_fix_writes_nowhere_else(tmp_path: Path):
    data = tmp_path / "data"
    root = write(*two_parts(data))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for name, reason in (
        ("full", "not empty"),
        ("file", "not empty"),
        ("data", "not empty"),
        ("data/clean", "lies in the data"),
        ("data/train/x", "lies in the data"),
        ("link/clean", "lies in the data"),
        (".", "not empty"),
    ):
        with pytest.raises(ConfigError, match=reason):
            check_data(root, workers=1, fix=tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "clean").mkdir()
    check_data(root, workers=1, fix=tmp_path / "clean")
    assert found(tmp_path / "clean") == []


def test_a_failing_copy_leaves_nothing_behind(tmp_path: Path, monkeypatch):
    root = write(*two_parts(tmp_path / "data"))
    copy = shutil.copyfile

    def fail(source: Path, target: Path) -> None:
        if Path(source).name == "5.jpg":
            raise OSError(28, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match="No space left"):
        check_data(root, workers=1, fix=tmp_path / "clean")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
