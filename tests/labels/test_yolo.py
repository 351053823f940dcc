"""YOLO's text files in the layouts of the tools that write them."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import label_sets as sets
import numpy as np
import pytest

from mnv2det.errors import DataError
from mnv2det.labels.base import LabelledBox, LabelledPart, LabelledPicture, Placer, Tree
from mnv2det.labels.yolo import YoloLabels

YOLO = YoloLabels()
BOX = "0 0.5 0.5 0.25 0.5\n"  # 16 x 24 pixels in the middle of 64 x 48
CORNERS = [24.0, 12.0, 40.0, 36.0]


def labelled(folder: Path, picture: str, label: str, text: str = BOX) -> None:
    sets.picture(folder / picture)
    sets.write(folder / label, text)


def coco8(folder: Path) -> Path:
    """As docs.ultralytics.com/datasets/detect/coco8 has it: the yaml names a path of another machine."""
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(["person", "bicycle", "no"]))
    text = "path: ../datasets/coco8 # root\ntrain: images/train # 4 images\nval: images/val\ntest: # optional\nnames:\n"
    sets.write(folder / "coco8.yaml", text + names + "download: https://ultralytics.com/assets/coco8.zip\n")
    for role in ("train", "val"):
        for number in range(2):
            labelled(folder, f"images/{role}/00{number}.jpg", f"labels/{role}/00{number}.txt")
    sets.write(folder / "labels/train.cache", b"\x80\x04")
    return folder


def test_the_layout_of_ultralytics(tmp_path: Path):
    splits = sets.read(YOLO, coco8(tmp_path))
    assert list(splits) == ["train", "val"]
    for role, records in splits.items():
        assert not records.all_problems()
        assert records.classes["labels"] == ["person", "bicycle", "no"]
        assert sets.boxes_of(records) == {f"images/{role}/00{n}.jpg": [("person", CORNERS, False)] for n in range(2)}
        assert records.boxes.stated.tolist() == [[0.5, 0.5, 0.25, 0.5]] * 2
        assert records.pictures[0].annotation == f"labels/{role}/000.txt"
        assert records.pictures[0].size == (48, 64)


@pytest.mark.parametrize("prefix", ["../", "", "/content/project-1/", "C:\\data\\"])
def test_the_layout_of_roboflow_whose_paths_are_wrong(tmp_path: Path, prefix: str):
    for role in ("train", "valid", "test"):
        labelled(tmp_path, f"{role}/images/a b.jpg", f"{role}/labels/a b.txt")
    paths = "".join(
        f"{key}: {prefix}{role}/images\n" for key, role in (("train", "train"), ("val", "valid"), ("test", "test"))
    )
    sets.write(tmp_path / "data.yaml", f"{paths}\nnc: 2\nnames: ['a', '007']\n\nroboflow:\n  license: CC\n")
    sets.write(tmp_path / "README.roboflow.txt", "exported by\n")
    splits = sets.read(YOLO, tmp_path)
    assert list(splits) == ["train", "val", "test"]
    assert [list(sets.boxes_of(records)) for records in splits.values()] == [
        [f"{role}/images/a b.jpg"] for role in ("train", "valid", "test")
    ]
    assert splits["val"].classes["labels"] == ["a", "007"]
    assert not any(records.all_problems() for records in splits.values())


def test_the_layout_of_darknet_as_cvat_writes_it(tmp_path: Path):
    for name in ("a", "b"):
        labelled(tmp_path, f"obj_train_data/{name}.PNG", f"obj_train_data/{name}.txt")
    sets.write(
        tmp_path / "obj.data", "classes = 1\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n"
    )
    sets.write(tmp_path / "obj.names", "dog\n")
    sets.write(tmp_path / "train.txt", "data/obj_train_data/a.PNG\n")
    sets.write(tmp_path / "valid.txt", "data/obj_train_data/b.PNG\r\n\r\ndata/obj_train_data/gone.PNG\r\n")
    splits = sets.read(YOLO, tmp_path)
    assert [list(sets.boxes_of(records)) for records in splits.values()] == [
        ["obj_train_data/a.PNG"],
        ["obj_train_data/b.PNG", ""],
    ]
    assert splits["train"].classes["labels"] == ["dog"]
    assert sets.kinds(splits["val"]) == ["image_missing"]
    assert "valid.txt, line 3: no picture 'data/obj_train_data/gone.PNG'" in sets.messages(splits["val"])


def test_lists_at_the_top_are_splits(tmp_path: Path):
    for name in ("a", "b"):
        labelled(tmp_path, f"images/{name}.png", f"labels/{name}.txt")
    sets.write(tmp_path / "classes.txt", "dog\n")
    sets.write(tmp_path / "train.txt", "./images/a.png\n")
    sets.write(tmp_path / "val.txt", "\ufeff/home/me/images/b.png\n".encode("utf-16"))
    splits = sets.read(YOLO, tmp_path)
    assert [list(sets.boxes_of(records)) for records in splits.values()] == [["images/a.png"], ["images/b.png"]]


def test_the_layout_of_labelimg_beside_the_pictures(tmp_path: Path):
    labelled(tmp_path, "a.JPG", "a.txt", "1 0.5 0.5 0.25 0.5\n")
    sets.picture(tmp_path / "b.jpeg")
    sets.write(tmp_path / "classes.txt", "dog\ncat\n")
    sets.write(tmp_path / "requirements.txt", "numpy==1 2 3 4 5\n")
    records = sets.read(YOLO, tmp_path)["all"]
    assert sets.boxes_of(records) == {"a.JPG": [("cat", CORNERS, False)], "b.jpeg": []}
    assert all(picture.boxed for picture in records.pictures)
    assert not records.all_problems()


def test_the_layout_of_label_studio(tmp_path: Path):
    labelled(tmp_path, "images/1f-a.jpg", "labels/1f-a.txt")
    sets.write(tmp_path / "classes.txt", "dog\ncat")
    sets.write(tmp_path / "notes.json", "{}")
    records = sets.read(YOLO, tmp_path)["all"]
    assert sets.boxes_of(records) == {"images/1f-a.jpg": [("dog", CORNERS, False)]}
    assert records.classes["labels"] == ["dog", "cat"]


def test_a_txt_is_the_value_of_a_split_and_folders_fill_in_what_the_yaml_lacks(tmp_path: Path):
    for role in ("train", "test"):
        labelled(tmp_path, f"images/{role}/a.jpg", f"labels/{role}/a.txt")
    sets.write(tmp_path / "data.yaml", "path: .\ntrain: lists/train.txt\nval: images/val\nnames: {0: a}\n")
    sets.write(tmp_path / "lists/train.txt", "./images/train/a.jpg\n")
    answer = sets.recognised(YOLO, tmp_path)
    assert [part.role for part in answer.parts] == ["train", "test"]
    assert ["val: 'images/val' is not there" in remark.what for remark in answer.remarks] == [True]


def test_a_yaml_without_names_still_has_the_splits(tmp_path: Path):
    for role in ("one", "two"):
        labelled(tmp_path, f"images/{role}/a.jpg", f"labels/{role}/a.txt")
    sets.write(tmp_path / "data.yaml", "train: images/one\nval: images/two\nnc: 1\n")
    sets.write(tmp_path / "classes.txt", "dog\n")
    splits = sets.read(YOLO, tmp_path)
    assert {role: list(sets.boxes_of(records)) for role, records in splits.items()} == {
        "train": ["images/one/a.jpg"],
        "val": ["images/two/a.jpg"],
    }
    assert splits["val"].classes["labels"] == ["dog"]


def test_splits_that_the_yaml_declares_elsewhere_are_taken_by_the_names_of_folders(tmp_path: Path):
    for role in ("train", "val"):
        labelled(tmp_path, f"images/{role}/a.jpg", f"labels/{role}/a.txt")
    sets.write(tmp_path / "data.yaml", "train: /data/photos\nval: /data/others\nnames: [dog]\n")
    answer = sets.recognised(YOLO, tmp_path)
    assert [part.role for part in answer.parts] == ["train", "val"]
    assert [remark.kind for remark in answer.remarks] == ["lists_missing", "lists_missing"]


def test_pictures_that_no_split_names_are_said(tmp_path: Path):
    for name in ("train/a", "more/b"):
        labelled(tmp_path, f"images/{name}.jpg", f"labels/{name}.txt")
    sets.write(tmp_path / "data.yaml", "train: images/train\nnames: [dog]\n")
    answer = sets.recognised(YOLO, tmp_path)
    assert [(remark.kind, remark.file) for remark in answer.remarks] == [("image_unlisted", "images/more/b.jpg")]
    assert answer.remarks[0].what.startswith("1 pictures are in no split")


def test_a_validation_split_of_the_training_pictures_is_said(tmp_path: Path):
    labelled(tmp_path, "images/train2017/a.jpg", "labels/train2017/a.txt")
    sets.write(tmp_path / "coco128.yaml", "train: images/train2017\nval: images/train2017\nnames: [a]\n")
    answer = sets.recognised(YOLO, tmp_path)
    assert [part.role for part in answer.parts] == ["train"]
    assert ["pictures of another split" in remark.what for remark in answer.remarks] == [True]


def test_the_last_images_in_a_path_becomes_labels(tmp_path: Path):
    labelled(tmp_path, "images/x/Images/a.jpg", "images/x/labels/a.txt")
    sets.write(tmp_path / "data.yaml", "train: images\nnames: [a]\n")
    assert sets.boxes_of(sets.read(YOLO, tmp_path)["train"]) == {"images/x/Images/a.jpg": [("a", CORNERS, False)]}


def test_polygons_and_oriented_boxes_have_an_outline(tmp_path: Path):
    text = BOX + "1 0.25 0.25 0.75 0.25 0.25 0.75\n0.0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n"
    labelled(tmp_path, "images/a.jpg", "labels/a.txt", text)
    sets.write(tmp_path / "classes.txt", "a\nb\n")
    records = sets.read(YOLO, tmp_path)["all"]
    assert not records.all_problems()
    assert [(name, corners) for name, corners, _ in sets.boxes_of(records)["images/a.jpg"]] == [
        ("a", CORNERS),
        ("b", [16.0, 12.0, 48.0, 36.0]),
        ("a", [16.0, 12.0, 48.0, 36.0]),
    ]
    assert [bool(runs) for runs in records.boxes.runs] == [False, True, True]
    assert abs(records.boxes.pixels[1] - 32 * 24 / 2) < 20
    assert records.boxes.area[1] == records.boxes.pixels[1]


@pytest.mark.parametrize(
    ("line", "kind", "what"),
    [
        ("0 0.5 0.5 0.25 0.5 0.9", "box_malformed", "6 numbers.*prediction"),
        ("0 0.5 0.5 0.25", "box_malformed", "4 numbers"),
        ("0", "box_malformed", "1 numbers"),
        ("0 nan 0.5 0.25 0.5", "box_malformed", "'nan': expected a number"),
        ("0 0.5 0.5 0.25 1e400", "box_malformed", "expected a number"),
        ("0 0,5 0.5 0.25 0.5", "box_malformed", "'0,5': expected a number"),
        ("0 32 24 16 24", "box_outside", "32: expected shares"),
        ("0 1.002 0.5 0.25 0.5", "box_outside", "1.002"),
        ("0 0.5 0.5 -0.25 0.5", "box_outside", "-0.25"),
        ("0 0.5 0.5 0 0.5", "box_no_area", "has no area"),
        ("1 0.5 0.5 0.25 0.5", "class_unknown", "class 1 has no name"),
        ("-1 0.5 0.5 0.25 0.5", "class_unknown", "class '-1'"),
        ("0.5 0.5 0.5 0.25 0.5", "class_unknown", "class '0.5'"),
        ("dog 0.5 0.5 0.25 0.5", "annotation_broken", "class 'dog': expected its number"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "box_malformed", "8 numbers"),
        ("0 0.1 0.1 0.2 1.2 0.3 0.3", "box_outside", "1.2"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_read(tmp_path: Path, line: str, kind: str, what: str):
    labelled(tmp_path, "images/a.jpg", "labels/a.txt", f"{BOX}\n{line}\n{BOX}")
    sets.write(tmp_path / "classes.txt", "dog\n")
    records = sets.read(YOLO, tmp_path)["all"]
    (problem,) = records.all_problems()
    assert problem.kind == kind
    assert problem.message.startswith(str(tmp_path / "labels/a.txt"))
    assert "line 3: " in problem.message
    assert re.search(what, problem.message)
    assert (problem.index, problem.position) == (0, 2)
    assert records.kept()[1].sum() == 2


def test_rounding_beyond_the_edge_is_clipped_without_a_word(tmp_path: Path):
    labelled(tmp_path, "images/a.jpg", "labels/a.txt", "0 0.1 0.5 0.2000009 1.0005\n0 -1e-7 0 0.5 0 0.5 1.0000001\n")
    sets.write(tmp_path / "classes.txt", "dog\n")
    records = sets.read(YOLO, tmp_path)["all"]
    assert not records.all_problems()
    np.testing.assert_allclose(records.boxes.corners[0], [0, 0, 12.8, 48], atol=1e-4)
    assert records.boxes.corners[1].tolist() == [0, 0, 32, 48]


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    labelled(tmp_path, "images/a.jpg", "labels/a.txt")
    labelled(tmp_path, "images/b.jpg", "labels/b.txt", b"\xff\xd8\0\0" * 100)
    labelled(tmp_path, "images/c.jpg", "labels/c.txt")
    (tmp_path / "images/c.jpg").write_bytes(b"no picture")
    labelled(tmp_path, "images/d.jpg", "labels/d.txt")
    with (tmp_path / "labels/d.txt").open("r+b") as file:
        file.truncate(2**40)  # a sparse file
    sets.write(tmp_path / "labels/gone.txt", BOX)
    sets.write(tmp_path / "labels/classes.txt", "dog\n")
    records = sets.read(YOLO, tmp_path)["all"]
    assert sorted(sets.kinds(records)) == [
        "annotation_broken",
        "annotation_broken",
        "annotation_orphan",
        "image_broken",
    ]
    assert len(records.boxes) == 1
    assert "b.txt: binary data" in sets.messages(records)
    assert "d.txt: a file of 1099511627776 bytes" in sets.messages(records)
    assert "gone.txt: no picture of its name" in sets.messages(records)


def test_classes_without_a_list_are_called_by_number_and_that_is_said(tmp_path: Path):
    labelled(tmp_path, "images/a.jpg", "labels/a.txt", "10 0.5 0.5 0.1 0.1\n9 0.5 0.5 0.1 0.1\n")
    answer = sets.recognised(YOLO, tmp_path)
    assert "called by their numbers" in answer.remarks[0].what
    assert answer.parts[0].format.read().classes["labels"] == ["9", "10"]


def test_a_class_list_to_hold_to_names_the_boxes_that_it_lacks(tmp_path: Path):
    labelled(tmp_path, "images/a.jpg", "labels/a.txt", BOX + "1 0.5 0.5 0.25 0.5\n")
    sets.write(tmp_path / "classes.txt", "dog\ncat\n")
    (part,) = sets.recognised(YOLO, tmp_path).parts
    part.format.names = ["cat", "bird"]
    records = part.format.read()
    assert records.classes["labels"] == ["cat", "bird"]
    assert [(p.kind, p.position) for p in records.all_problems()] == [("class_unknown", 0)]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images\nnames: [a]\nkpt_shape: [17, 3]\n", "keypoints"),
        ("train: images\nnames: [a\n", "cannot read the data set's yaml"),
        ("train: images\nnames: [[a]]\n", "names: expected a list"),
        ("train: images\nnames: {a: b}\n", "names: expected a list"),
        ("train: images\nnames: ['']\n", "names: expected a list"),
        ("[" * 5000, "cannot read the data set's yaml"),
        ("a: &a [x]\n" * 200000, "cannot read the data set's yaml"),
    ],
)
def test_a_yaml_that_cannot_be_used_is_one_line(tmp_path: Path, yaml: str, message: str):
    labelled(tmp_path, "images/a.jpg", "labels/a.txt")
    sets.write(tmp_path / "data.yaml", yaml)
    with pytest.raises(DataError, match=rf"data\.yaml: .*{message}"):
        YOLO.recognise(Tree(tmp_path))


def test_aliases_in_a_yaml_are_not_expanded(tmp_path: Path):
    labelled(tmp_path, "images/a.jpg", "labels/a.txt")
    bomb = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 10) if n else 'x'}]\n" for n in range(40))
    sets.write(tmp_path / "data.yaml", f"{bomb}train: *k39\nnc: *k39\nnames: *k39\n")
    with pytest.raises(DataError, match="names: expected a list"):
        YOLO.recognise(Tree(tmp_path))


def test_class_lists_that_contradict_each_other_are_refused(tmp_path: Path):
    labelled(tmp_path, "images/a.jpg", "labels/a.txt")
    sets.write(tmp_path / "classes.txt", "dog\ncat\n")
    sets.write(tmp_path / "labels/classes.txt", "dog\n")
    assert sets.read(YOLO, tmp_path)["all"].classes["labels"] == ["dog", "cat"]
    sets.write(tmp_path / "labels/classes.txt", "cat\n")
    with pytest.raises(DataError, match=r"labels/classes\.txt: its class names are not those of classes\.txt"):
        YOLO.recognise(Tree(tmp_path))


def test_foreign_folders_are_not_claimed(tmp_path: Path):
    devkit = tmp_path / "VOCdevkit/VOC2007"
    sets.picture(devkit / "JPEGImages/000001.jpg")
    sets.write(devkit / "Annotations/000001.xml", "<annotation/>")
    sets.write(devkit / "ImageSets/Main/train.txt", "000001\n")
    sets.write(tmp_path / "requirements.txt", "numpy\n")
    sets.write(tmp_path / "config.yaml", "names: [a]\npath: x\n")
    assert YOLO.recognise(Tree(tmp_path)) == "no labels: no .txt beside or for any of 1 pictures"
    sets.write(devkit / "JPEGImages/000001.txt", "a dog on a sofa\n")
    answer = YOLO.recognise(Tree(tmp_path))
    assert isinstance(answer, str)
    assert "is no line of YOLO's" in answer
    shutil.rmtree(devkit)
    assert YOLO.recognise(Tree(tmp_path)) == "no pictures"


def test_what_is_written_comes_back(tmp_path: Path):
    parts = sets.random_parts(tmp_path / "source", random.Random(0), ignored=True)
    sets.assert_comes_back(YOLO, parts, tmp_path / "out", ignored=False)
    assert (tmp_path / "out/labels/val/e.txt").read_text() == ""
    ignored = sum(box.ignore for part in parts for picture in part.pictures for box in picture.boxes)
    again = tmp_path / "again"
    again.mkdir()
    assert YOLO.write(parts, again, Placer()) == [f"{ignored} ignored boxes left out: YOLO's files cannot hold them"]
    assert ignored > 0


def test_pictures_that_differ_in_their_suffix_or_folder_keep_their_own_labels(tmp_path: Path):
    source = sets.picture(tmp_path / "a.png")
    names = ["a.png", "a.jpg", "images/a.png", "images/b/a.png"]
    boxes = [[LabelledBox("x", (number, 0, 10, 10))] for number in range(4)]
    pictures = [LabelledPicture(source, name, (48, 64), box) for name, box in zip(names, boxes, strict=True)]
    (tmp_path / "out").mkdir()
    YOLO.write([LabelledPart("train", pictures, ["x"])], tmp_path / "out", Placer())
    records = sets.read(YOLO, tmp_path / "out")["train"]
    lefts = [round(corners[0]) for boxes in sets.boxes_of(records).values() for _, corners, _ in boxes]
    assert sorted(lefts) == [0, 1, 2, 3]


def test_damage_is_an_error_or_a_problem_and_never_a_silent_loss(tmp_path: Path):
    sets.assert_survives_damage(YOLO, tmp_path, (".txt",), (".txt", ".yaml"))
