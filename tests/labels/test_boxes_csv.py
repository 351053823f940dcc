"""Tables with a row for each box."""

from __future__ import annotations

import random
from pathlib import Path

import label_sets as sets
import pytest

from mnv2det.errors import DataError
from mnv2det.labels.base import Tree
from mnv2det.labels.boxes_csv import CsvLabels

CSV = CsvLabels()
TENSORFLOW = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
CORNERS = [24.0, 12.0, 40.0, 36.0]


def boxes(records) -> dict[str, list[tuple[str, list[float]]]]:
    return {file: [box[:2] for box in found] for file, found in sets.boxes_of(records).items()}


def test_the_columns_of_tensorflow_count_pixels_as_voc_does(tmp_path: Path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        sets.picture(tmp_path / "images" / name)
    rows = "a.jpg,64,48,dog,25,13,40,36\na.jpg,64,48,cat,1,1,64,48\n"
    sets.write(tmp_path / "data/train_labels.csv", TENSORFLOW + rows)
    sets.write(tmp_path / "data/test_labels.csv", TENSORFLOW + "b.jpg,64,48,dog,25,13,40,36\nc.jpg,64,48,,,,,\n")
    splits = sets.read(CSV, tmp_path)
    assert boxes(splits["train"]) == {"images/a.jpg": [("dog", CORNERS), ("cat", [0, 0, 64, 48])]}
    assert boxes(splits["test"]) == {"images/b.jpg": [("dog", CORNERS)], "images/c.jpg": []}
    assert splits["train"].boxes.stated[0].tolist() == [25, 13, 40, 36]
    assert splits["train"].boxes.ids == [2, 3]
    assert splits["train"].pictures[0].annotation == "data/train_labels.csv"
    assert not any(records.all_problems() for records in splits.values())


def test_the_columns_of_open_images(tmp_path: Path):
    header = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    rows = "a0,xclick,/m/01,1,0.375,0.625,0.25,0.75,-1,0,0,0,0\na0,xclick,/m/02,1,0,1.0004,0,1,0,0,1,0,0\n"
    sets.picture(tmp_path / "validation/a0.jpg")
    sets.write(tmp_path / "validation-annotations-bbox.csv", f"{header}\n{rows}")
    sets.write(tmp_path / "class-descriptions-boxable.csv", '/m/01,Tortoise\n/m/02,"Container, small"\n')
    (part,) = sets.recognised(CSV, tmp_path).parts
    records = part.format.read()
    assert part.role == "val"
    assert sets.boxes_of(records) == {
        "validation/a0.jpg": [("Tortoise", CORNERS, False), ("Container, small", [0, 0, 64, 48], True)]
    }
    assert not records.all_problems()


@pytest.mark.parametrize(
    "text",
    [
        "image,label,x1,y1,x2,y2\nimg/a.jpg,dog,24,12,40,36\n",
        "\ufeffImage Name;Class;X_Min;Y_Min;X_Max;Y_Max\r\na.jpg;dog;24;12;40;36\r\n",
        "path\tname\tx\ty\tw\th\nC:\\data\\img\\a.jpg\tdog\t24\t12\t16\t24\n",
        "image,x,y,width,height,label\na.jpg,24,12,16,24,dog\n",
        "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\ndog,24,12,16,24,a.jpg,64,48\n",
        '"image","xmin","ymin","xmax","ymax","label"\n"a.jpg",24.0,1.2e1,40,36,"dog"\n',
        "./img/a.jpg,24,12,40,36,dog\n",
    ],
)
def test_other_columns_and_separators_count_from_0(tmp_path: Path, text: str):
    sets.picture(tmp_path / "img/a.jpg")
    sets.write(tmp_path / "labels.csv", text)
    records = sets.read(CSV, tmp_path)["all"]
    assert boxes(records) == {"img/a.jpg": [("dog", CORNERS)]}
    assert not records.all_problems()


def test_retinanet_has_no_header_and_empty_fields_for_a_picture_without_a_box(tmp_path: Path):
    for name in ("a.jpg", "b.jpg"):
        sets.picture(tmp_path / "img" / name)
    sets.write(tmp_path / "annotations.csv", "img/a.jpg,24,12,40,36,dog\nimg/b.jpg,,,,,\n")
    sets.write(tmp_path / "classes.csv", "dog,0\n")
    answer = sets.recognised(CSV, tmp_path)
    records = answer.parts[0].format.read()
    assert boxes(records) == {"img/a.jpg": [("dog", CORNERS)], "img/b.jpg": []}
    assert all(picture.boxed for picture in records.pictures)
    assert [(remark.kind, remark.file) for remark in answer.remarks] == [("csv_skipped", "classes.csv")]


def test_a_column_says_the_split(tmp_path: Path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        sets.picture(tmp_path / name)
    rows = "TRAIN,a.jpg,dog,24,12,40,36\nValidation,b.jpg,dog,24,12,40,36\ntrian,c.jpg,dog,24,12,40,36\n"
    sets.write(tmp_path / "all.csv", f"set,file,class,x1,y1,x2,y2\n{rows}")
    splits = sets.read(CSV, tmp_path)
    assert {role: list(boxes(records)) for role, records in splits.items()} == {
        "train": ["a.jpg"],
        "val": ["b.jpg"],
        "all": ["c.jpg"],
    }


@pytest.mark.parametrize(
    ("row", "kind", "what"),
    [
        ("a.jpg,64,48,dog,1,1,nan,9", "box_malformed", "'nan': expected a number"),
        ("a.jpg,64,48,dog,1,1,,9", "box_malformed", "'': expected a number"),
        ("a.jpg,64,48,dog,1,1,1_0,9", "box_malformed", "'1_0': expected a number"),
        ("a.jpg,64,48,,1,1,9,9", "annotation_broken", "class ''"),
        (b"a.jpg,64,48,Gr\xf6\xdfe,1,1,9,9", "annotation_broken", "expected a name in UTF-8"),
        ("a.jpg,64,48,dog,1,1,9", "annotation_broken", "7 columns; expected 8"),
        ("a.jpg,64,48,dog,1,1,9,9,9", "annotation_broken", "9 columns; expected 8"),
        ('a.jpg,64,48,"dog,1,1,9,9', "annotation_broken", "quotes that do not end"),
        ("gone.jpg,64,48,dog,1,1,9,9", "annotation_orphan", "no picture 'gone.jpg'"),
        ("same.jpg,64,48,dog,1,1,9,9", "annotation_orphan", "2 pictures are called 'same.jpg'"),
        ("../../etc/passwd,64,48,dog,1,1,9,9", "annotation_orphan", "no picture '../../etc/passwd'"),
        ("a.jpg,64,48,dog,9,9,1,9", "box_no_area", "has no area"),
        ("a.jpg,64,48,dog,90,1,99,9", "box_outside", "lies outside"),
        ("a.jpg,60,48,dog,1,1,9,9", "image_size", "width 60, height 48: the picture is 64x48"),
    ],
)
def test_a_broken_row_is_named_and_the_others_are_read(tmp_path: Path, row: str | bytes, kind: str, what: str):
    for name in ("a.jpg", "b.jpg", "x/same.jpg", "y/same.jpg"):
        sets.picture(tmp_path / name)
    line = row.encode() if isinstance(row, str) else row
    good = "b.jpg,64,48,dog,25,13,40,36\n" + "".join(f"{name}/same.jpg,64,48,,,,,\n" for name in "xy")
    known = b"a.jpg,64,48,,,,,\n"
    sets.write(
        tmp_path / "labels.csv", TENSORFLOW.encode() + good.encode() + line + b"\n\n" + good[:28].encode() + known
    )
    records = sets.read(CSV, tmp_path)["all"]
    (problem,) = records.all_problems()
    assert problem.kind == kind
    assert problem.message.startswith(str(tmp_path / "labels.csv"))
    assert "line 5" in problem.message
    assert what in problem.message
    assert records.kept()[1].sum() == 2


def test_val_pictures_are_not_taken_from_train(tmp_path: Path):
    sets.picture(tmp_path / "train/1.jpg")
    sets.write(tmp_path / "labels.csv", "val/1.jpg,24,12,40,36,dog\ntrain/1.jpg,24,12,40,36,dog\n")
    records = sets.read(CSV, tmp_path)["all"]
    assert sets.kinds(records) == ["annotation_orphan"]
    assert len(records.boxes) == 1


def test_pictures_that_no_row_names_are_reported(tmp_path: Path):
    for name in ("a.jpg", "b.jpg"):
        sets.picture(tmp_path / name)
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    sets.write(tmp_path / "labels.csv", "a.jpg,24,12,40,36,dog\nc.jpg,24,12,40,36,dog\n")
    records = sets.read(CSV, tmp_path)["all"]
    assert [(p.kind, p.file.name) for p in records.all_problems()] == [
        ("image_broken", "c.jpg"),
        ("annotation_missing", "b.jpg"),
    ]
    assert records.kept()[0].tolist() == [True, False, False]


def test_a_class_list_to_hold_to_names_the_boxes_that_it_lacks(tmp_path: Path):
    sets.picture(tmp_path / "a.jpg")
    sets.write(tmp_path / "labels.csv", "a.jpg,24,12,40,36,dog\n")
    (part,) = sets.recognised(CSV, tmp_path).parts
    part.format.names = ["cat"]
    assert sets.kinds(part.format.read()) == ["class_unknown"]


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", b"\0\1\2", "step,loss\n1,2\n", "image,label\na.jpg,dog\n", '"', "image,caption,x1,y1,x2,y2\n"],
)
def test_foreign_tables_are_not_claimed(tmp_path: Path, text: str | bytes):
    sets.picture(tmp_path / "a.jpg")
    assert CSV.recognise(Tree(tmp_path)) == "no csv with a row for each box"
    sets.write(tmp_path / "results.csv", text)
    answer = CSV.recognise(Tree(tmp_path))
    assert isinstance(answer, str)
    assert answer.startswith("results.csv: ")


def test_a_table_that_lacks_one_column_beside_a_whole_one_is_an_error(tmp_path: Path):
    sets.picture(tmp_path / "a.jpg")
    sets.write(tmp_path / "train.csv", TENSORFLOW + "a.jpg,64,48,dog,25,13,40,36\n")
    sets.write(tmp_path / "val.csv", TENSORFLOW.replace("ymax", "yma") + "a.jpg,64,48,dog,25,13,40,36\n")
    with pytest.raises(DataError, match=r"val\.csv: no column ymax, y2, bottom in 'filename,"):
        CSV.recognise(Tree(tmp_path))


def test_rows_without_pictures_are_no_data_set(tmp_path: Path):
    sets.write(tmp_path / "labels.csv", "a.jpg,24,12,40,36,dog\n")
    assert CSV.recognise(Tree(tmp_path)) == "labels.csv: rows of boxes, but no picture"


def test_what_is_written_comes_back(tmp_path: Path):
    parts = sets.random_parts(tmp_path / "source", random.Random(0), ignored=True)
    sets.assert_comes_back(CSV, parts, tmp_path / "out", ignored=False)
    assert (tmp_path / "out/val.csv").read_text().splitlines()[0] == TENSORFLOW.strip()


def test_ignored_boxes_are_counted(tmp_path: Path):
    parts = sets.random_parts(tmp_path / "source", random.Random(0), ignored=True)
    ignored = sum(box.ignore for part in parts for picture in part.pictures for box in picture.boxes)
    (tmp_path / "out").mkdir()
    assert CSV.write(parts, tmp_path / "out", sets.Placer()) == [
        f"{ignored} ignored boxes left out: the table cannot hold them"
    ]
    assert ignored > 0


def test_damage_is_an_error_or_a_problem_and_never_a_silent_loss(tmp_path: Path):
    sets.assert_survives_damage(CSV, tmp_path, (".csv",), (".csv",))
