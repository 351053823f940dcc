"""labelme's json files as the program writes them."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import label_sets as sets
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask

from mnv2det.errors import DataError
from mnv2det.labels.base import Tree
from mnv2det.labels.labelme import LabelmeLabels

LABELME = LabelmeLabels()


def shape(label: Any, points: Any, kind: Any = "rectangle", group: Any = None, **other: Any) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": {},
    } | other


def document(file: str, shapes: list[Any], **other: Any) -> str:
    data = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": file, "imageData": None}
    return json.dumps(data | {"imageHeight": 48, "imageWidth": 64} | other)


def labelled(folder: Path, shapes: list[Any], stem: str = "a", **other: Any) -> None:
    sets.picture(folder / f"{stem}.jpg")
    sets.write(folder / f"{stem}.json", document(f"{stem}.jpg", shapes, **other))


def test_the_documented_example(tmp_path: Path):
    """examples/tutorial/apc2016_obj3.json of labelme, scaled down: polygons of version 4, with the picture inside."""
    sets.picture(tmp_path / "apc2016_obj3.jpg")
    shapes = [
        {
            "label": "shelf",
            "points": [[4, 2.5], [4, 40], [60, 40], [60, 2.5]],
            "group_id": None,
            "shape_type": "polygon",
        },
        {"label": "highland_6539_self_stick_notes", "points": [[10, 10.5], [20, 10.5], [15, 30]], "flags": {}},
    ]
    data = {"version": "4.0.0", "flags": {}, "shapes": shapes, "imagePath": "apc2016_obj3.jpg", "imageData": "/9j/4AAQ"}
    sets.write(tmp_path / "apc2016_obj3.json", json.dumps(data | {"imageHeight": 48, "imageWidth": 64}))
    records = sets.read(LABELME, tmp_path)["all"]
    assert not records.all_problems()
    assert sets.boxes_of(records) == {
        "apc2016_obj3.jpg": [
            ("shelf", [4.0, 2.5, 60.0, 40.0], False),
            ("highland_6539_self_stick_notes", [10.0, 10.5, 20.0, 30.0], False),
        ]
    }
    assert all(records.boxes.runs)
    assert abs(records.boxes.pixels[0] - 56 * 37.5) < 60
    assert records.pictures[0].annotation == "apc2016_obj3.json"


def test_rectangles_have_two_corners_in_any_order_and_no_outline(tmp_path: Path):
    labelled(tmp_path, [shape("a", [[30, 40], [10.5, 20]]), shape("a", [[1, 2], [5, 2], [5, 9], [1, 9]])])
    records = sets.read(LABELME, tmp_path)["all"]
    assert [box[1] for box in sets.boxes_of(records)["a.jpg"]] == [[10.5, 20, 30, 40], [1, 2, 5, 9]]
    assert records.boxes.stated.tolist() == [[30, 40, 10.5, 20], [1, 2, 5, 9]]
    assert records.boxes.runs == [b"", b""]


def test_a_circle_has_a_center_and_a_point_on_it(tmp_path: Path):
    labelled(tmp_path, [shape("a", [[30, 20], [33, 24]], "circle")])
    records = sets.read(LABELME, tmp_path)["all"]
    np.testing.assert_allclose(records.boxes.corners[0], [25, 15, 35, 25], atol=1e-9)
    assert abs(records.boxes.pixels[0] - np.pi * 25) < 6


def test_shapes_of_a_group_are_one_object(tmp_path: Path):
    shapes = [
        shape("car", [[0, 0], [10, 10]], group=1),
        shape("dog", [[20, 20], [24, 24]], group=1),
        shape("car", [[30, 30], [40, 30], [40, 40], [30, 40]], "polygon", group=1),
        shape("car", [[50, 0], [60, 10]], group=2),
    ]
    labelled(tmp_path, shapes)
    records = sets.read(LABELME, tmp_path)["all"]
    assert sets.boxes_of(records)["a.jpg"] == [
        ("car", [0, 0, 40, 40], False),
        ("dog", [20, 20, 24, 24], False),
        ("car", [50, 0, 60, 10], False),
    ]
    assert records.boxes.pixels.tolist() == [200, 0, 0]
    assert not records.all_problems()


def bitmap(rows: list[str]) -> str:
    pixels = np.array([[int(letter) for letter in row] for row in rows], np.uint8) * 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_mask_is_the_pixels_of_its_png(tmp_path: Path):
    """As labelme 5.3 and newer write what its AI tools draw: both points lie inside."""
    labelled(tmp_path, [shape("a", [[10, 20], [13, 22]], "mask", mask=bitmap(["0000", "0110", "0111"]))])
    records = sets.read(LABELME, tmp_path)["all"]
    assert sets.boxes_of(records)["a.jpg"] == [("a", [11, 21, 14, 23], False)]
    covered = mask.decode({"size": [48, 64], "counts": records.boxes.runs[0]})
    assert np.argwhere(covered).tolist() == [[21, 11], [21, 12], [22, 11], [22, 12], [22, 13]]
    assert not records.all_problems()


def test_a_mask_and_a_polygon_of_a_group_are_one_object(tmp_path: Path):
    polygon = shape("a", [[30, 30], [40, 30], [40, 40], [30, 40]], "polygon", group=1)
    labelled(tmp_path, [polygon, shape("a", [[10, 20], [11, 20]], "mask", group=1, mask=bitmap(["11"]))])
    records = sets.read(LABELME, tmp_path)["all"]
    assert sets.boxes_of(records)["a.jpg"] == [("a", [10, 20, 40, 40], False)]
    assert records.boxes.pixels.tolist() == [102]


@pytest.mark.parametrize(
    ("points", "png", "what"),
    [
        ([[1, 1], [2, 2]], None, "expected a PNG in base64"),
        ([[1, 1], [2, 2]], "§", "expected a PNG in base64"),
        ([[1, 1], [2, 2]], base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(), "expected a PNG in base64"),
        ([[1, 1], [2, 2]], bitmap(["11"]), "mask of 2x1 pixels, the points are for 2x2"),
        ([[1, 1], [2, 2]], bitmap(["00", "00"]), "not all black"),
        ([[1.5, 1], [2.5, 2]], bitmap(["11", "11"]), "at whole numbers"),
        ([[1, 1], [10**5, 2]], bitmap(["11", "11"]), "the points are for 100000x2"),
    ],
)
def test_a_broken_mask_is_named(tmp_path: Path, points: Any, png: Any, what: str):
    labelled(tmp_path, [shape("a", [[1, 1], [9, 9]]), shape("b", points, "mask", mask=png)])
    (problem,) = sets.read(LABELME, tmp_path)["all"].all_problems()
    assert problem.kind == "segmentation_broken"
    assert what in problem.message


@pytest.mark.parametrize(("x", "y", "pixels"), [(-1, -1, 1), (63, 47, 1), (-5, 0, 0), (80, 90, 0)])
def test_a_mask_may_reach_over_the_border(tmp_path: Path, x: int, y: int, pixels: int):
    labelled(tmp_path, [shape("a", [[x, y], [x + 1, y + 1]], "mask", mask=bitmap(["11", "11"]))])
    records = sets.read(LABELME, tmp_path)["all"]
    assert sum(records.boxes.pixels.tolist()) == pixels
    assert bool(records.all_problems()) == (not pixels)


@pytest.mark.parametrize("kind", ["line", "point", "linestrip", "points", "oriented_rectangle", 7, ["x"]])
def test_shapes_without_an_area_are_reported(tmp_path: Path, kind: Any):
    labelled(tmp_path, [shape("a", [[1, 1], [9, 9]]), shape("b", [[1, 1], [9, 9]], kind)])
    records = sets.read(LABELME, tmp_path)["all"]
    assert len(records.boxes) == 1
    (problem,) = records.all_problems()
    assert (problem.kind, problem.position) == ("box_malformed", 1)
    assert problem.message.startswith(f"{tmp_path / 'a.json'}: shape 2: 'b' is a ")


def test_what_labelme_takes_for_no_object_is_left_out(tmp_path: Path):
    labelled(tmp_path, [shape(name, [[1, 1], [9, 9]]) for name in ("__ignore__", "_background_", "a")])
    records = sets.read(LABELME, tmp_path)["all"]
    assert records.classes["labels"] == ["a"]
    assert not records.all_problems()


@pytest.mark.parametrize(
    ("entry", "kind", "what"),
    [
        (7, "annotation_broken", "expected keys, got 7"),
        (shape(None, [[1, 1], [9, 9]]), "annotation_broken", "label None"),
        (shape(" ", [[1, 1], [9, 9]]), "annotation_broken", "label  "),
        (shape("\ud800", [[1, 1], [9, 9]]), "annotation_broken", "label "),
        (shape("a", None), "box_malformed", "points: expected a list"),
        (shape("a", [[1, "2"], [9, 9]]), "box_malformed", "points: expected a list"),
        (shape("a", [[1, float("nan")], [9, 9]]), "box_malformed", "points: expected a list"),
        (shape("a", [[1, 10**400], [9, 9]]), "box_malformed", "points: expected a list"),
        (shape("a", [[1, True], [9, 9]]), "box_malformed", "points: expected a list"),
        (shape("a", [[1, 1]]), "box_malformed", "a rectangle of 1 points"),
        (shape("a", [[1, 1], [9, 9]], "polygon"), "box_malformed", "a polygon of 2 points"),
        (shape("a", [[1, 1], [9, 9]], group=[1]), "annotation_broken", "group_id"),
        (shape("a", [[1, 1], [9, 9], [8000, 1]], "polygon"), "segmentation_broken", "leaves the image"),
        (shape("a", [[5, 1], [5, 9]]), "box_no_area", "has no area"),
        (shape("a", [[70, 1], [80, 9]]), "box_outside", "lies outside the 64x48 image"),
    ],
)
def test_a_broken_shape_is_named_and_the_others_are_read(tmp_path: Path, entry: Any, kind: str, what: str):
    labelled(tmp_path, [shape("b", [[1, 1], [9, 9]]), entry])
    records = sets.read(LABELME, tmp_path)["all"]
    (problem,) = records.all_problems()
    assert problem.kind == kind
    assert problem.message.startswith(f"{tmp_path / 'a.json'}: shape 2")
    assert what in problem.message
    assert records.kept()[1].sum() == 1


def test_pictures_are_found_by_paths_of_other_machines(tmp_path: Path):
    for number, (json_file, stated, picture) in enumerate(
        [
            ("json/w.json", "..\\images\\w one.jpg", "images/w one.jpg"),
            ("json/x.json", "C:\\Users\\me\\x.jpg", "json/x.jpg"),
            ("json/y.json", "/home/me/pictures/y0.jpg", "elsewhere/y0.jpg"),
            ("json/z.json", "../../../../etc/z.jpg", "json/z.png"),
        ]
    ):
        sets.picture(tmp_path / picture)
        sets.write(tmp_path / json_file, document(stated, [shape("a", [[number, 0], [9, 9]])]))
    records = sets.read(LABELME, tmp_path)["all"]
    assert not records.all_problems()
    lefts = {file: boxes[0][1][0] for file, boxes in sets.boxes_of(records).items()}
    assert lefts == {"images/w one.jpg": 0, "json/x.jpg": 1, "elsewhere/y0.jpg": 2, "json/z.png": 3}


def test_files_without_their_partner_are_named(tmp_path: Path):
    labelled(tmp_path, [shape("a", [[1, 1], [9, 9]])])
    sets.picture(tmp_path / "unlabelled.jpg")
    sets.write(tmp_path / "gone.json", document("gone.jpg", [shape("a", [[1, 1], [9, 9]])]))
    sets.write(tmp_path / "inside.json", document("inside.jpg", [], imageData="/9j/4AAQ"))
    sets.write(tmp_path / "twice.json", document("a.jpg", [shape("a", [[1, 1], [9, 9]])]))
    sets.write(tmp_path / "broken.json", '{"shapes": [')
    sets.write(tmp_path / "deep.json", '{"version": "1", "shapes": ' + "[" * 100_000 + "]" * 100_000 + "}")
    sets.write(tmp_path / "bytes.json", b"\xff\xfe\xfa\0\0")
    sets.write(tmp_path / "package.json", '{"name": "x"}')
    records = sets.read(LABELME, tmp_path)["all"]
    by_file = {problem.file.name: problem.kind for problem in records.all_problems()}
    assert by_file == {
        "gone.json": "annotation_orphan",
        "inside.json": "image_missing",
        "twice.json": "image_twice",
        "broken.json": "annotation_broken",
        "deep.json": "annotation_broken",
        "bytes.json": "annotation_broken",
        "package.json": "annotation_broken",
        "unlabelled.jpg": "annotation_missing",
    }
    assert len(records.boxes) == 1


@pytest.mark.parametrize("depth", [20, 200, 900, 950, 980, 990])
def test_deep_lists_are_a_problem_and_no_traceback(tmp_path: Path, depth: int):
    deep = "[" * depth + "]" * depth
    text = document("a.jpg", [shape("a", [[1, 1], [9, 9]]), "DEEP", shape("DEEP", "DEEP", "DEEP")], imageWidth="DEEP")
    sets.picture(tmp_path / "a.jpg")
    labelled(tmp_path, [shape("a", [[1, 1], [9, 9]])], "b")
    sets.write(tmp_path / "a.json", text.replace('"DEEP"', deep))
    records = sets.read(LABELME, tmp_path)["all"]
    assert set(sets.kinds(records)) <= {"annotation_broken", "box_malformed", "image_size", "annotation_missing"}
    assert sets.kinds(records)


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [
        ({"imageHeight": None, "imageWidth": None}, []),
        ({"imageHeight": 64, "imageWidth": 48}, ["image_size"]),
        ({"imageHeight": "48", "imageWidth": 64}, ["image_size"]),
        ({"imageHeight": float("nan"), "imageWidth": None}, ["image_size"]),
    ],
)
def test_a_size_that_is_not_the_pictures_is_a_problem(tmp_path: Path, sizes: dict[str, Any], kind: list[str]):
    labelled(tmp_path, [shape("a", [[1, 1], [9, 9]])], **sizes)
    records = sets.read(LABELME, tmp_path)["all"]
    assert sets.kinds(records) == kind
    assert records.pictures[0].size == (48, 64)


def test_a_picture_that_cannot_be_read_is_a_problem(tmp_path: Path):
    labelled(tmp_path, [shape("a", [[1, 1], [9, 9]])])
    labelled(tmp_path, [shape("a", [[1, 1], [9, 9]])], "b")
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    assert sets.kinds(sets.read(LABELME, tmp_path)["all"]) == ["image_broken"]


def test_folders_are_splits_and_each_may_be_held_to_a_class_list(tmp_path: Path):
    for role in ("train", "valid"):
        labelled(tmp_path / role, [shape("a" if role == "train" else "b", [[1, 1], [9, 9]])])
    train, val = sets.recognised(LABELME, tmp_path).parts
    assert (train.role, val.role) == ("train", "val")
    val.format.names = train.format.read().classes["labels"]
    records = val.format.read()
    assert records.classes["labels"] == ["a"]
    assert sets.kinds(records) == ["class_unknown"]


def test_foreign_json_files_are_not_claimed(tmp_path: Path):
    sets.picture(tmp_path / "a.jpg")
    assert LABELME.recognise(Tree(tmp_path)) == "no json"
    sets.write(tmp_path / "train.json", '{"images": [], "annotations": [], "categories": []}')
    answer = LABELME.recognise(Tree(tmp_path))
    assert isinstance(answer, str)
    assert answer.startswith("train.json: no json of labelme's")
    sets.write(tmp_path / "train.json", "[]")
    assert isinstance(LABELME.recognise(Tree(tmp_path)), str)


def test_pictures_that_are_only_in_the_json_are_refused_in_one_line(tmp_path: Path):
    sets.write(tmp_path / "a.json", document("a.jpg", [], imageData="/9j/4AAQ"))
    with pytest.raises(DataError, match="labelme's json, but no picture"):
        LABELME.recognise(Tree(tmp_path))


def test_what_is_written_comes_back(tmp_path: Path):
    parts = sets.random_parts(tmp_path / "source", random.Random(0), ignored=True)
    sets.assert_comes_back(LABELME, parts, tmp_path / "out", ignored=True)
    data = json.loads((tmp_path / "out/val/e.json").read_bytes())
    assert data["version"] == "5.5.0"
    assert (data["imagePath"], data["imageData"], data["shapes"]) == ("e.png", None, [])


def test_damage_is_an_error_or_a_problem_and_never_a_silent_loss(tmp_path: Path):
    sets.assert_survives_damage(LABELME, tmp_path, (), (".json",))


def test_a_json_with_damaged_lines_loses_no_box_without_a_problem_of_its_own(tmp_path: Path):
    rng, fewer = random.Random(2), 0
    parts = sets.random_parts(tmp_path / "source", rng)
    written = {picture.name: len(picture.boxes) for part in parts for picture in part.pictures}
    for number in range(100):
        target = tmp_path / str(number)
        target.mkdir()
        LABELME.write(parts, target, sets.Placer(link=True))
        path = next(sets.damaged(target, (".json",), rng))
        sets.replaced_lines(path, rng)
        for records in sets.read(LABELME, target).values():
            named = {problem.file.stem for problem in records.problems}
            for file, boxes in sets.boxes_of(records).items():
                name = file.split("/", 1)[-1]
                if name and len(boxes) < written[name]:
                    fewer += 1
                    assert Path(name).stem in named
    assert fewer > 10
