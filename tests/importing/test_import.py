"""What `mnv2det data import` makes of a folder, and `data export` of that."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from check_tools import Coco, Voc, item, picture, save, xml
from label_tools import assert_same_boxes, boxes
from PIL import Image

from mnv2det.check.run import check_data
from mnv2det.cli import main
from mnv2det.errors import ConfigError, DataError
from mnv2det.importing.export_data import export_data
from mnv2det.importing.folder import RECORD
from mnv2det.importing.import_data import import_data
from mnv2det.labels.recognise import recognise

NAMES = ("background", "road", "tree")


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def two_parts(root: Path) -> Path:
    train, val = Coco(root), Coco(root, "val", 21)
    train.write()
    return val.write()


def flat_voc(root: Path, count: int = 12) -> Path:
    """Pictures with the xml beside them, as labelImg leaves them: every one a cat, every fourth a dog."""
    for number in range(count):
        save(root / f"p{number}.jpg", picture(number), quality=90)
        objects = [item("cat"), *([item("dog", (31, 16, 50, 38))] if number % 4 == 0 else [])]
        (root / f"p{number}.xml").write_text(xml(*objects))
    return root


def test_splits_of_the_source_are_kept(tmp_path: Path):
    source = two_parts(tmp_path / "tool")
    before = content(source)
    result = import_data(source, tmp_path / "data")
    assert result.counts["train"] == {"pictures": 8, "boxes": 16}
    assert result.counts["val"] == {"pictures": 8, "boxes": 16}
    assert "test" not in result.counts
    assert (result.classes, result.left_out) == (["cat", "dog"], [])
    assert content(source) == before
    assert_same_boxes(boxes(tmp_path / "data"), boxes(source))
    report = check_data(tmp_path / "data")
    assert [f for f in report.findings if f.severity == "error"] == []


def test_without_splits_they_are_drawn_and_every_class_is_in_each(tmp_path: Path):
    source = flat_voc(tmp_path / "tool", 24)
    import_data(source, tmp_path / "data", val=0.25, test=0.25)
    names: dict[str, set[str]] = {}
    classes: dict[str, set[int]] = {}
    for role in ("train", "val", "test"):
        data = json.loads((tmp_path / "data/annotations" / f"{role}.json").read_text())
        names[role] = {entry["file_name"] for entry in data["images"]}
        classes[role] = {entry["category_id"] for entry in data["annotations"]}
    assert {role: len(found) for role, found in names.items()} == {"train": 12, "val": 6, "test": 6}
    assert len(set.union(*names.values())) == 24
    assert all(found == {1, 2} for found in classes.values())


def test_the_seed_decides_who_goes_where(tmp_path: Path):
    source = flat_voc(tmp_path / "tool")
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        import_data(source, tmp_path / name, seed=seed)
        data = json.loads((tmp_path / name / "annotations/val.json").read_text())
        drawn.append([entry["file_name"] for entry in data["images"]])
    assert drawn[0] == drawn[1] != drawn[2]


def test_nearly_the_same_pictures_stay_in_one_split(tmp_path: Path):
    source = flat_voc(tmp_path / "tool", 20)
    for number in range(20):  # a second exposure of each, a little brighter
        brighter = np.clip(cv2.imread(str(source / f"p{number}.jpg")).astype(int) + 3, 0, 255).astype(np.uint8)
        cv2.imwrite(str(source / f"again{number}.jpg"), brighter)
        (source / f"again{number}.xml").write_text((source / f"p{number}.xml").read_text())
    result = import_data(source, tmp_path / "data")
    assert any("40 pictures are nearly the same" in remark for remark in result.remarks)
    for role in ("train", "val", "test"):
        data = json.loads((tmp_path / "data/annotations" / f"{role}.json").read_text())
        files = {entry["file_name"] for entry in data["images"]}
        assert {f"again{n}.jpg" in files for n in range(20) if f"p{n}.jpg" in files} == {True}
    report = check_data(tmp_path / "data")
    assert not [f for f in report.findings if f.kind in ("image_leak", "image_near_leak")]


def test_a_clip_that_makes_all_pictures_is_split_by_time(tmp_path: Path):
    source = tmp_path / "tool"
    for number in range(20):
        save(source / f"walk_frame_{number:03}.jpg", picture(number), quality=90)
        (source / f"walk_frame_{number:03}.xml").write_text(xml(item()))
    result = import_data(source, tmp_path / "data", test=0)
    assert any("most pictures are of one clip" in remark for remark in result.remarks)
    data = json.loads((tmp_path / "data/annotations/val.json").read_text())
    assert [entry["file_name"] for entry in data["images"]] == [f"walk_frame_{n:03}.jpg" for n in range(16, 20)]


def test_what_cannot_be_trained_on_is_left_out_and_listed(tmp_path: Path):
    source = flat_voc(tmp_path / "tool")
    (source / "p1.xml").write_text(xml(item("cat"), item("cat", (20, 20, 20, 30))))
    (source / "p2.xml").write_text("<annotation><object>")
    (source / "p3.jpg").write_bytes((source / "p3.jpg").read_bytes()[:300])
    (source / "lonely.xml").write_text(xml(item("cat")))
    save(source / "blank.jpg", picture(99), quality=90)
    result = import_data(source, tmp_path / "data", test=0)
    listed = {(entry["kind"], entry["file"]) for entry in result.left_out}
    assert listed == {
        ("box_no_area", "p1.xml"),
        ("annotation_broken", "p2.xml"),
        ("image_broken", "p3.jpg"),
        ("annotation_orphan", "lonely.xml"),
        ("annotation_missing", "blank.jpg"),
    }
    assert json.loads((tmp_path / "data" / RECORD).read_text())["left_out"] == result.left_out
    kept = result.counts["train"]["pictures"] + result.counts["val"]["pictures"]
    assert kept == result.counts["source"]["pictures"] - 3
    assert "p1" in boxes(tmp_path / "data")


def test_a_phantom_class_goes(tmp_path: Path):
    source = Coco(tmp_path / "tool")
    source.categories.insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    result = import_data(source.write(), tmp_path / "data", test=0)
    assert result.classes == ["cat", "dog"]
    assert "1 classes without a box go: 'animals'" in result.remarks


def test_a_second_run_says_that_it_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = flat_voc(tmp_path / "tool")
    command = ["data", "import", str(source), "-o", str(tmp_path / "data"), "--workers", "1"]
    assert main(command) == 0
    before = content(tmp_path / "data")
    assert "written: " in capsys.readouterr().out
    assert main(command) == 0
    assert "done already: " in capsys.readouterr().out
    assert content(tmp_path / "data") == before
    assert main([*command, "--seed", "1"]) == 2
    assert "holds another import" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["tool", "tool/below", "."])
def test_it_does_not_write_into_what_it_reads(tmp_path: Path, target: str):
    source = flat_voc(tmp_path / "tool")
    with pytest.raises(ConfigError, match="lies in the folder that is read"):
        import_data(source, tmp_path / target)


def test_it_does_not_write_over_other_files(tmp_path: Path):
    source = flat_voc(tmp_path / "tool")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is no import"):
        import_data(source, tmp_path / "data")


def test_two_formats_in_one_folder_are_both_named(tmp_path: Path):
    source = two_parts(tmp_path / "tool")
    flat_voc(source / "more")
    with pytest.raises(DataError, match=r"more than one format: coco \(.*\); voc \(.*\); choose one with --format"):
        import_data(source, tmp_path / "data")
    assert import_data(source, tmp_path / "data", name="coco").counts["train"]["pictures"] == 8


def test_no_labels_says_what_was_seen_and_lacking(tmp_path: Path):
    for number in range(3):
        save(tmp_path / "tool" / f"{number}.jpg", picture(number), quality=90)
    with pytest.raises(DataError, match=r"no labels recognised in 3 pictures among 3 files; .*voc: no xml"):
        import_data(tmp_path / "tool", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_links_share_the_picture(tmp_path: Path):
    source = flat_voc(tmp_path / "tool")
    import_data(source, tmp_path / "data", link=True)
    linked = next((tmp_path / "data/images").glob("*.jpg"))
    assert linked.samefile(source / linked.name)


@pytest.mark.parametrize("layout", ["beside", "apart", "roboflow", "cvat"])
def test_vocs_xml_is_read_wherever_tools_put_it(tmp_path: Path, layout: str):
    source = tmp_path / "tool"
    folders = {
        "beside": ("", ""),
        "apart": ("images/", "annotations/"),
        "roboflow": ("train/", "train/"),
        "cvat": ("JPEGImages/", "Annotations/"),
    }
    pictures, xmls = folders[layout]
    for number in range(6):
        save(source / f"{pictures}p{number}.jpg", picture(number), quality=90)
        (source / xmls).mkdir(exist_ok=True)
        (source / f"{xmls}p{number}.xml").write_text(xml(item()))
    if layout == "roboflow":
        save(source / "valid/q.jpg", picture(50), quality=90)
        (source / "valid/q.xml").write_text(xml(item()))
    if layout == "cvat":
        (source / "ImageSets/Main").mkdir(parents=True)
        (source / "ImageSets/Main/default.txt").write_text("".join(f"p{number}\n" for number in range(6)))
    recognised = recognise(source)
    assert recognised.format == "voc"
    roles = {part.role for part in recognised.parts}
    assert roles == ({"train", "val"} if layout == "roboflow" else {"all"})
    result = import_data(source, tmp_path / "data", test=0)
    assert (
        result.counts["source"] == {"pictures": 7, "boxes": 7} if layout == "roboflow" else {"pictures": 6, "boxes": 6}
    )
    assert result.left_out == []
    assert boxes(tmp_path / "data")["p0"] == [("cat", [10, 5, 30, 15], False)]


@pytest.mark.parametrize("layout", ["roboflow", "cvat", "label studio"])
def test_cocos_json_is_read_wherever_tools_put_it(tmp_path: Path, layout: str):
    data = Coco(tmp_path / "coco")
    source = tmp_path / "tool"
    place, folder = {
        "roboflow": ("train/_annotations.coco.json", "train"),
        "cvat": ("annotations/instances_default.json", "images"),
        "label studio": ("result.json", "images"),
    }[layout]
    if layout == "label studio":
        for entry in data.images:
            entry["file_name"] = f"images/{entry['file_name']}"
    (source / folder).parent.mkdir(parents=True, exist_ok=True)
    os.rename(data.folder, source / folder)
    (source / place).parent.mkdir(parents=True, exist_ok=True)
    os.rename(data.write() and data.json, source / place)
    recognised = recognise(source)
    assert (recognised.format, len(recognised.parts)) == ("coco", 1)
    assert import_data(source, tmp_path / "data", test=0).counts["source"] == {"pictures": 8, "boxes": 16}


def test_outlines_come_through_as_masks(tmp_path: Path):
    source = Coco(tmp_path / "tool")
    for entry in source.annotations:
        x, y, width, height = entry["bbox"]
        entry["segmentation"] = [[x, y, x + width, y, x, y + height]]
    import_data(source.write(), tmp_path / "data", test=0)
    (before,) = recognise(source.root).parts
    whole = before.format.dataset()
    masks = {index: whole.read(index).target["mask"] for index in range(len(whole))}
    names = {os.path.basename(entry.file): index for index, entry in enumerate(before.format.read().pictures)}
    compared = 0
    for part in recognise(tmp_path / "data").parts:
        copy = part.format.dataset()
        for index, entry in enumerate(part.format.read().pictures):
            np.testing.assert_array_equal(copy.read(index).target["mask"], masks[names[os.path.basename(entry.file)]])
            compared += 1
    assert compared == 8
    assert any(mask.any() for mask in masks.values())


@pytest.mark.parametrize("name", ["yolo", "labelme", "voc", "csv"])
def test_outlines_that_a_format_is_not_written_with_are_counted(tmp_path: Path, name: str):
    source = Coco(tmp_path / "tool")
    for entry in source.annotations:
        x, y, width, height = entry["bbox"]
        entry["segmentation"] = [[x, y, x + width, y, x, y + height]]
    lines = export_data(source.write(), tmp_path / "out", name=name)
    assert f"16 outlines left out: {name} is written with boxes alone" in lines


def test_masks_of_class_ids_come_through(tmp_path: Path):
    source = Voc(tmp_path / "tool", masks=True)
    result = import_data(source.write(), tmp_path / "data")
    assert result.counts["train"]["pictures"] == 4
    for mask in (source.home / "SegmentationClass").glob("*.png"):
        copies = list((tmp_path / "data").rglob(mask.name))
        assert [copy.read_bytes() for copy in copies] == [mask.read_bytes()]


def mask(number: int) -> np.ndarray:
    ids = np.zeros((40, 60), np.uint8)
    ids[5:25, 10 + number : 30 + number] = 1
    ids[20:35, 30:50] = 2
    return ids


COLOURS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 64]], np.uint8)


@pytest.mark.parametrize("layout", ["ids", "palette", "class_dict.csv", "labelmap.txt", "suffix"])
def test_masks_beside_pictures_are_read_by_their_ids_or_colours(tmp_path: Path, layout: str):
    source = tmp_path / "tool"
    for number in range(6):
        ids = mask(number)
        stem = f"masks/p{number}"
        if layout == "suffix":
            stem = f"images/p{number}_mask"
        save(source / f"images/p{number}.jpg", picture(number), quality=90)
        image = Image.fromarray(ids if layout in ("ids", "suffix") else COLOURS[ids])
        if layout == "palette":
            image = Image.fromarray(ids, "P")
            image.putpalette(COLOURS.tobytes())
        (source / stem).parent.mkdir(exist_ok=True)
        image.save(source / f"{stem}.png")
    if layout == "class_dict.csv":
        rows = "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in zip(NAMES, COLOURS.tolist(), strict=True))
        (source / layout).write_text(f"name,r,g,b\n{rows}")
    elif layout == "labelmap.txt":
        rows = "".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in zip(NAMES, COLOURS.tolist(), strict=True))
        (source / layout).write_text(f"# label:color_rgb:parts:actions\n{rows}")
    else:
        (source / "classes.txt").write_text("\n".join(NAMES))
    result = import_data(source, tmp_path / "data", test=0)
    assert (result.classes, result.left_out) == (list(NAMES), [])
    for number in range(6):
        (copy,) = (tmp_path / "data").rglob(f"p{number}.png")
        np.testing.assert_array_equal(np.asarray(Image.open(copy)), mask(number))


def test_black_and_white_masks_are_background_and_object(tmp_path: Path):
    for number in range(5):
        save(tmp_path / f"tool/images/p{number}.jpg", picture(number), quality=90)
        save(tmp_path / f"tool/masks/p{number}.png", (mask(number) == 1).astype(np.uint8) * 255)
    save(tmp_path / "tool/images/alone.jpg", picture(9), quality=90)
    result = import_data(tmp_path / "tool", tmp_path / "data", test=0)
    assert result.classes == ["background", "object"]
    assert [(entry["kind"], entry["file"]) for entry in result.left_out] == [("mask_missing", "images/alone.jpg")]
    (copy,) = (tmp_path / "data").rglob("p3.png")
    np.testing.assert_array_equal(np.asarray(Image.open(copy)), mask(3) == 1)


def test_a_mask_of_strange_colours_is_left_out_by_name(tmp_path: Path):
    source = tmp_path / "tool"
    for number in range(5):
        save(source / f"images/p{number}.jpg", picture(number), quality=90)
        colours = COLOURS[mask(number)]
        if number == 2:
            colours[:, :20] = (9, 9, 200)
        save(source / f"masks/p{number}.png", colours)
    rows = "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in zip(NAMES, COLOURS.tolist(), strict=True))
    (source / "class_dict.csv").write_text(f"name,r,g,b\n{rows}")
    (entry,) = import_data(source, tmp_path / "data", test=0).left_out
    assert entry["file"] == "images/p2.jpg"
    assert "33% of its pixels are of colours of no class, such as (9, 9, 200)" in entry["reason"]


@pytest.mark.parametrize("splits", [True, False])
def test_a_folder_per_class_is_a_data_set_of_pictures(tmp_path: Path, splits: bool):
    for number in range(12):
        folder = f"{'train' if number < 8 else 'val'}/" if splits else ""
        save(tmp_path / "tool" / f"{folder}{'cat' if number % 2 else 'dog'}/p{number}.jpg", picture(number), quality=90)
    result = import_data(tmp_path / "tool", tmp_path / "data", test=0)
    assert result.classes == ["cat", "dog"]
    train = sorted(path.name for path in (tmp_path / "data/train/cat").iterdir())
    assert result.counts["train"]["pictures"] + result.counts["val"]["pictures"] == 12
    assert train == ["p1.jpg", "p3.jpg", "p5.jpg", "p7.jpg"] or not splits


def test_export_and_import_again_is_the_same(tmp_path: Path):
    source = two_parts(tmp_path / "tool")
    import_data(source, tmp_path / "data")
    wanted = boxes(tmp_path / "data")
    for name in ("coco", "voc"):
        assert export_data(tmp_path / "data", tmp_path / name, name=name) == []
        result = import_data(tmp_path / name, tmp_path / f"again_{name}")
        assert result.counts["train"] == {"pictures": 8, "boxes": 16}
        assert result.counts["val"] == {"pictures": 8, "boxes": 16}
        assert_same_boxes(boxes(tmp_path / f"again_{name}"), wanted)


def test_a_format_that_cannot_hold_it_is_refused(tmp_path: Path):
    source = two_parts(tmp_path / "tool")
    with pytest.raises(ConfigError, match="--format folders: cannot hold boxes"):
        export_data(source, tmp_path / "out", name="folders")
    with pytest.raises(ConfigError, match="did you mean 'coco'"):
        export_data(source, tmp_path / "out", name="cocoo")
    assert not (tmp_path / "out").exists()
