import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.coco
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from pycocotools import mask as rle

from mnv2det.config import BadData
from mnv2det.data.formats.base import RecordsDataset
from mnv2det.data.formats.coco import COCO
from mnv2det.errors import ConfigError, DataError
from mnv2det.registry import DATASETS
from mnv2det.structures import VOC_MASK_CLASSES
from mnv2det.testing import assert_dataset

JSON = "instances.json"


def image(identifier: int = 1, **other: Any) -> dict[str, Any]:
    return {"id": identifier, "file_name": f"{identifier}.png", "height": 40, "width": 60, **other}


def annotation(identifier: int = 1, **other: Any) -> dict[str, Any]:
    return {"id": identifier, "image_id": 1, "category_id": 1, "bbox": [10, 5, 20, 10], **other}


def category(identifier: int = 1, name: str = "cat") -> dict[str, Any]:
    return {"id": identifier, "name": name}


def write(
    folder: Path,
    annotations: list[Any],
    images: list[Any] | None = None,
    categories: list[Any] | None = None,
) -> None:
    data = {
        "images": [image()] if images is None else images,
        "categories": [category()] if categories is None else categories,
        "annotations": annotations,
    }
    (folder / JSON).write_text(json.dumps(data), "utf-8")


def load(folder: Path, *, bad_data: BadData = BadData.stop, **arguments: Any) -> RecordsDataset:
    return COCO(root=folder, annotations=JSON, images="images", **arguments).dataset(bad_data)


def message(folder: Path, **arguments: Any) -> str:
    """What is wrong, without the json's own path at the front."""
    with pytest.raises(DataError) as error:
        load(folder, **arguments)
    start = f"{folder / JSON}: "
    assert str(error.value).startswith(start)
    return str(error.value).removeprefix(start)


def save_picture(folder: Path, name: str, size: tuple[int, int]) -> None:
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", size[::-1], (9, 8, 7)).save(folder / "images" / name)


# boxes


def test_box_becomes_corners(tmp_path: Path):
    write(tmp_path, [annotation(bbox=[10.5, 5, 20, 10], area=77.5)])
    target = load(tmp_path).target(0)
    assert_array_equal(target["boxes"], np.array([[10.5, 5, 30.5, 15]], np.float32))
    assert_array_equal(target["area"], np.array([77.5], np.float32))
    assert [target[key].dtype for key in ("boxes", "labels", "ignore")] == [np.float32, np.int64, np.bool_]


def test_area_defaults_to_the_box(tmp_path: Path):
    write(tmp_path, [annotation()])
    assert_array_equal(load(tmp_path).target(0)["area"], [200])


def test_box_is_cut_to_the_image(tmp_path: Path):
    write(tmp_path, [annotation(bbox=[-5, -5, 100, 100])])
    assert_array_equal(load(tmp_path).target(0)["boxes"], [[0, 0, 60, 40]])


def test_crowd_is_ignored(tmp_path: Path):
    write(tmp_path, [annotation(1, iscrowd=1), annotation(2, iscrowd=0), annotation(3)])
    assert_array_equal(load(tmp_path).target(0)["ignore"], [True, False, False])


def test_box_of_polygons_where_bbox_is_absent(tmp_path: Path):
    polygons = [[10, 5, 20, 5, 15, 12], [30, 20, 40, 25, 35, 30]]
    entry = annotation(segmentation=polygons)
    del entry["bbox"]
    write(tmp_path, [entry, annotation(2, bbox=None, segmentation=polygons)])
    assert_array_equal(load(tmp_path).target(0)["boxes"], [[10, 5, 40, 30]] * 2)


def test_box_of_run_lengths_where_bbox_is_absent(tmp_path: Path):
    pixels = np.zeros((40, 60), np.uint8, order="F")
    pixels[7:12, 20:35] = 1
    packed = {"size": [40, 60], "counts": rle.encode(pixels)["counts"].decode()}
    columns = pixels.flatten(order="F")
    changes = np.flatnonzero(np.diff(columns)) + 1
    counts = np.diff(np.concatenate([[0], changes, [columns.size]])).tolist()
    loose = {"size": [40, 60], "counts": counts}
    write(tmp_path, [annotation(1, bbox=None, segmentation=packed), annotation(2, bbox=None, segmentation=loose)])
    assert_array_equal(load(tmp_path).target(0)["boxes"], [[20, 7, 35, 12]] * 2)


def test_stated_box_wins_over_the_segmentation(tmp_path: Path):
    write(tmp_path, [annotation(segmentation=[[0, 0, 1, 0, 1, 1]])])
    assert_array_equal(load(tmp_path).target(0)["boxes"], [[10, 5, 30, 15]])


def test_image_without_annotations_has_empty_arrays(tmp_path: Path):
    write(tmp_path, [annotation()], images=[image(1), image(2)])
    target = load(tmp_path).target(1)
    assert [target[key].shape for key in ("boxes", "labels", "ignore", "area")] == [(0, 4), (0,), (0,), (0,)]


def test_images_keep_the_order_of_the_json_and_their_own_boxes(tmp_path: Path):
    boxes = {7: [1, 1, 2, 2], 3: [3, 3, 4, 4], 5: [5, 5, 6, 6]}
    entries = [annotation(n, image_id=n, bbox=boxes[n]) for n in (5, 3, 7)]
    write(tmp_path, [*entries, annotation(9, image_id=7, bbox=[9, 9, 9, 9])], images=[image(n) for n in (7, 3, 5)])
    data = load(tmp_path)
    assert [data.image_id(index) for index in range(len(data))] == [7, 3, 5]
    assert_array_equal(data.target(0)["boxes"], [[1, 1, 3, 3], [9, 9, 18, 18]])
    assert_array_equal(data.target(1)["boxes"], [[3, 3, 7, 7]])
    assert_array_equal(data.target(2)["boxes"], [[5, 5, 11, 11]])


def test_target_is_a_copy(tmp_path: Path):
    write(tmp_path, [annotation()])
    data = load(tmp_path)
    data.target(0)["boxes"][:] = 0
    assert_array_equal(data.target(0)["boxes"], [[10, 5, 30, 15]])


# classes


def test_labels_follow_category_ids_with_gaps(tmp_path: Path):
    categories = [category(90, "last"), category(3, "first"), category(17, "middle")]
    write(tmp_path, [annotation(n, category_id=n) for n in (17, 90, 3)], categories=categories)
    data = load(tmp_path)
    assert data.classes == {"labels": ["first", "middle", "last"]}
    assert_array_equal(data.category_ids, [3, 17, 90])
    assert_array_equal(data.target(0)["labels"], [1, 2, 0])


def test_given_names_set_the_order_and_may_be_more(tmp_path: Path):
    write(tmp_path, [annotation(1), annotation(2, category_id=2)], categories=[category(1, "a"), category(2, "b")])
    data = load(tmp_path, names=("b", "c", "a"))
    assert data.classes == {"labels": ["b", "c", "a"]}
    assert_array_equal(data.category_ids, [2, -1, 1])
    assert_array_equal(data.target(0)["labels"], [2, 0])


def test_category_not_among_the_given_names(tmp_path: Path):
    write(tmp_path, [annotation()])
    expected = "categories: class 'cat' is not among the 2 expected; did you mean 'cats'?"
    assert message(tmp_path, names=("cats", "dogs")) == expected


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ([], "categories: no classes in it"),
        ([category(1, "")], "categories: class names must be different and not empty, got ['']"),
        ([category(1), category(2)], "categories: class names must be different and not empty, got ['cat', 'cat']"),
        ([category(1, "a"), category(1, "b")], "categories[1]: the id 1 occurs twice"),
        ([{"id": 1}], "categories[0]: name None: expected a string"),
        (["cat"], "categories[0]: expected keys, got cat"),
        ([{"id": 1.5, "name": "a"}], "categories[0]: id 1.5: expected a whole number or a string"),
        ([{"id": True, "name": "a"}], "categories[0]: id True: expected a whole number or a string"),
    ],
)
def test_broken_categories(tmp_path: Path, categories: list[Any], expected: str):
    write(tmp_path, [], categories=categories)
    assert message(tmp_path) == expected


def test_categories_of_one_name_are_not_merged_by_given_names(tmp_path: Path):
    write(tmp_path, [], categories=[category(1), category(2)])
    assert message(tmp_path, names=("cat",)).endswith("must be different and not empty, got ['cat', 'cat']")


# what tools write


def test_ids_are_strings_or_whole_numbers_which_may_be_floats(tmp_path: Path):
    images = [image(1, id="im-1"), image(2, id=2.0), image(3, id="2")]
    entries = [annotation(image_id="im-1", category_id="x"), annotation("b", image_id=2, category_id=7)]
    entries.append(annotation(None, image_id="2", category_id=7.0, bbox=[1, 1, 2, 2]))
    write(tmp_path, entries, images, [category("x", "cat"), category(7.0, "dog")])
    data = load(tmp_path)
    assert [data.image_id(index) for index in range(3)] == ["im-1", 2, "2"]
    assert data.classes == {"labels": ["dog", "cat"]}
    assert data.category_ids.tolist() == [7, "x"]
    assert [data.target(index)["labels"].tolist() for index in range(3)] == [[1], [0], [0]]


def test_sizes_may_be_whole_floats(tmp_path: Path):
    write(tmp_path, [annotation(bbox=[50, 30, 90, 90])], images=[image(height=40.0, width=60.0)])
    assert_array_equal(load(tmp_path).target(0)["boxes"], [[50, 30, 60, 40]])


@pytest.mark.parametrize(("value", "ignored"), [(False, False), (True, True), (None, False), (0.0, False), (1, True)])
def test_crowds_are_told_by_numbers_and_truth_values(tmp_path: Path, value: Any, ignored: bool):
    write(tmp_path, [annotation(iscrowd=value), annotation(2)])
    assert load(tmp_path).target(0)["ignore"].tolist() == [ignored, False]


def test_fields_that_are_null_are_as_if_missing(tmp_path: Path):
    nulls = dict.fromkeys(("id", "area", "iscrowd", "segmentation", "keypoints", "attributes"))
    write(tmp_path, [annotation() | nulls])
    target = load(tmp_path).target(0)
    assert (target["area"].tolist(), target["ignore"].tolist()) == ([200], [False])


def test_an_empty_bbox_is_that_of_the_segmentation(tmp_path: Path):
    write(tmp_path, [annotation(bbox=[], segmentation=[[10, 5, 20, 5, 15, 12]])])
    assert_array_equal(load(tmp_path).target(0)["boxes"], [[10, 5, 20, 12]])


def test_backslashes_are_slashes(tmp_path: Path):
    names = [r"sub\1.png", r"..\images\2.png", "../images/sub/../3.png"]
    write(tmp_path, [], images=[image(n, file_name=name) for n, name in enumerate(names, 1)])
    (tmp_path / "images/sub").mkdir(parents=True)
    for name in ("sub/1.png", "2.png", "3.png"):
        save_picture(tmp_path, name, (40, 60))
    data = load(tmp_path)
    assert [data.read(index).image_id for index in range(3)] == [1, 2, 3]
    assert [file.decode() for file in data._files] == ["sub/1.png", "2.png", "3.png"]


def test_a_file_may_have_a_backslash_in_its_name(tmp_path: Path):
    write(tmp_path, [], images=[image(1, file_name=r"sub\1.png")])
    save_picture(tmp_path, r"sub\1.png", (40, 60))
    assert load(tmp_path).read(0).image.shape == (40, 60, 3)


def test_backslashes_cannot_leave_the_image_folder(tmp_path: Path):
    write(tmp_path, [], images=[image(1, file_name=r"..\x.png")])
    assert message(tmp_path) == rf"images[0]: path '..\\x.png' leaves the data folder {tmp_path}/images"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_jsons_of_any_shell_are_read(tmp_path: Path, encoding: str):
    write(tmp_path, [annotation()], categories=[category(1, "ä")])
    (tmp_path / JSON).write_bytes((tmp_path / JSON).read_text("utf-8").encode(encoding))
    assert load(tmp_path).classes == {"labels": ["ä"]}


def test_nothing_but_crowds_is_refused_and_can_be_taken_as_objects(tmp_path: Path):
    runs = {"size": [40, 60], "counts": [0, 400, 2000]}
    write(tmp_path, [annotation(n, iscrowd=1, segmentation=runs) for n in (1, 2)])
    expected = "all 2 boxes are crowds (iscrowd 1): ignored; crowds=objects takes them as objects"
    assert message(tmp_path) == expected
    assert message(tmp_path, bad_data=BadData.skip) == expected
    save_picture(tmp_path, "1.png", (40, 60))
    data = load(tmp_path, masks="coco", crowds="objects")
    assert data.target(0)["ignore"].tolist() == [False, False]
    assert np.unique(data.read(0).target["mask"], return_counts=True)[1].tolist() == [2000, 400]


def test_a_category_called_background_is_the_background_of_masks(tmp_path: Path):
    def square(identifier: int, x: int, **other: Any) -> dict[str, Any]:
        return annotation(identifier, segmentation=[[x, 0, x + 10, 0, x + 10, 10, x, 10]], **other)

    categories = [category(0, "background"), category(1, "leaf")]
    write(tmp_path, [square(1, 0, category_id=0), square(2, 20)], categories=categories)
    save_picture(tmp_path, "1.png", (40, 60))
    data = load(tmp_path, masks="coco")
    assert data.classes == {"labels": ["background", "leaf"], "mask": ["background", "leaf"]}
    mask = data.read(0).target["mask"]
    assert (mask[:10, :10] == 0).all()
    assert mask.sum() == (mask[:10, 20:30] == 1).sum() == 100
    write(tmp_path, [square(1, 0, category_id=0)], categories=categories[:1])
    assert message(tmp_path, masks="coco") == "masks: no category is a class of them, apart from background"


# broken annotations


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_id": 9}, "annotation 1: image_id 9 is not in images"),
        ({"image_id": "1"}, "annotation 1: image_id '1' is not in images"),
        ({"category_id": 2}, "annotation 1: category_id 2 has no name in categories"),
        ({"category_id": None}, "annotation 1: category_id None has no name in categories"),
        ({"bbox": [10, 5, 0, 10]}, "annotation 1 (image 1): bbox [10.0, 5.0, 0.0, 10.0] has no area"),
        ({"bbox": [10, 5, 5, -1]}, "annotation 1 (image 1): bbox [10.0, 5.0, 5.0, -1.0] has no area"),
        ({"bbox": [50, 5, 1e-7, 1]}, "annotation 1 (image 1): bbox [50.0, 5.0, 1e-07, 1.0] has no area"),
        ({"bbox": [60, 5, 5, 5]}, "annotation 1 (image 1): bbox [60.0, 5.0, 5.0, 5.0] lies outside the 60x40 image"),
        ({"bbox": [1, 2, 3]}, "annotation 1: bbox: expected [x, y, width, height], got [1, 2, 3]"),
        ({"bbox": [1, 2, 3, "4"]}, "annotation 1: bbox: expected [x, y, width, height], got [1, 2, 3, '4']"),
        ({"bbox": [1, 2, 3, True]}, "annotation 1: bbox: expected [x, y, width, height], got [1, 2, 3, True]"),
        ({"bbox": [1, 2, 3, float("nan")]}, "annotation 1: bbox: expected [x, y, width, height], got [1, 2, 3, nan]"),
        ({"bbox": [1, 2, 3, float("inf")]}, "annotation 1: bbox: expected [x, y, width, height], got [1, 2, 3, inf]"),
        ({"bbox": None}, "annotation 1: bbox: expected [x, y, width, height], got None"),
        ({"area": "big"}, "annotation 1: area: expected a number, got big"),
        ({"iscrowd": "0"}, "annotation 1: iscrowd: expected 0 or 1, got '0'"),
    ],
)
def test_broken_annotation_is_named(tmp_path: Path, change: dict[str, Any], expected: str):
    write(tmp_path, [annotation(**change)])
    assert message(tmp_path) == expected


def test_annotation_without_id_is_named_by_its_place(tmp_path: Path):
    entry = annotation(bbox=[0, 0, 0, 0])
    del entry["id"]
    write(tmp_path, [annotation(), entry])
    assert message(tmp_path) == "annotation [1] (image 1): bbox [0.0, 0.0, 0.0, 0.0] has no area"


def test_annotation_that_is_no_mapping(tmp_path: Path):
    write(tmp_path, ["what"])
    assert message(tmp_path) == "annotation [0]: expected keys, got what"


@pytest.mark.parametrize(
    "segmentation",
    [
        [[]],
        [[1, 2, 3]],
        [["a", "b"]],
        [[10**400, 1, 2, 2]],
        "polygon",
        7,
        {"size": [40, 60]},
        {"counts": [2400]},
        {"size": [60, 40], "counts": [2400]},
        {"size": [40, 60], "counts": [2399]},
        {"size": [40, 60], "counts": [2401, -1]},
        {"size": [40, 60], "counts": ["2400"]},
        {"size": [40, 60], "counts": ""},
        {"size": [40, 60], "counts": "~~"},
        {"size": [40, 60], "counts": "1o"},
        {"size": [40, 60], "counts": "é"},
        {"size": [40, 60], "counts": 5},
        {"size": [40.0, 60.5], "counts": "1"},
    ],
)
def test_broken_segmentation_is_named(tmp_path: Path, segmentation: Any):
    write(tmp_path, [annotation(bbox=None, segmentation=segmentation)])
    assert message(tmp_path).startswith("annotation 1: segmentation: not polygons or a run-length mask (")


def test_mask_with_no_pixels_has_no_area(tmp_path: Path):
    write(tmp_path, [annotation(bbox=None, segmentation={"size": [40, 60], "counts": [2400]})])
    assert message(tmp_path) == "annotation 1 (image 1): bbox [0.0, 0.0, 0.0, 0.0] has no area"


def test_skip_leaves_out_and_lists_what_is_broken(tmp_path: Path):
    good = annotation(4, bbox=[1, 1, 1, 1])
    write(tmp_path, [annotation(1, bbox=[0, 0, 0, 0]), annotation(2, image_id=9), annotation(3, category_id=9), good])
    data = load(tmp_path, bad_data=BadData.skip)
    assert_array_equal(data.target(0)["boxes"], [[1, 1, 2, 2]])
    assert data.problems == [
        f"{tmp_path}/{JSON}: annotation 1 (image 1): bbox [0.0, 0.0, 0.0, 0.0] has no area",
        f"{tmp_path}/{JSON}: annotation 2: image_id 9 is not in images",
        f"{tmp_path}/{JSON}: annotation 3: category_id 9 has no name in categories",
    ]


def test_skip_of_every_annotation_leaves_an_empty_image(tmp_path: Path):
    write(tmp_path, [annotation(bbox=[0, 0, 0, 0])])
    assert load(tmp_path, bad_data=BadData.skip).target(0)["boxes"].shape == (0, 4)


# broken files


def test_missing_json(tmp_path: Path):
    assert message(tmp_path) == "cannot read the annotations (No such file or directory)"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xff", b"[" * 100_000, b"9" * 5000])
def test_file_that_is_no_json(tmp_path: Path, content: bytes):
    (tmp_path / JSON).write_bytes(content)
    assert message(tmp_path).startswith("not a json file (")


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"images": {}, "annotations": [], "categories": []}'])
def test_json_that_is_not_coco(tmp_path: Path, content: str):
    (tmp_path / JSON).write_text(content)
    assert message(tmp_path) == "no list 'images' at the top; expected COCO's images, annotations and categories"


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([], "no images in it"),
        ([image(1), image(1)], "images[1]: the id 1 occurs twice"),
        ([{"id": 1}], "images[0]: height None, width None: expected whole numbers of pixels"),
        ([image(1), "x"], "images[1]: expected keys, got x"),
        ([image(1, height=0)], "images[0]: height 0, width 60: expected whole numbers of pixels"),
        ([image(1, width="sixty")], "images[0]: height 40, width sixty: expected whole numbers of pixels"),
        ([image(1, file_name=7)], "images[0]: file_name 7: expected a string"),
        ([image(1, id=None)], "images[0]: id None: expected a whole number or a string"),
    ],
)
def test_broken_images(tmp_path: Path, images: list[Any], expected: str):
    write(tmp_path, [], images=images)
    assert message(tmp_path) == expected


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../x.png", "a\0.png"])
def test_file_name_cannot_leave_the_image_folder(tmp_path: Path, name: str):
    write(tmp_path, [], images=[image(1, file_name=name)])
    assert message(tmp_path) == f"images[0]: path {name!r} leaves the data folder {tmp_path}/images"


@pytest.mark.parametrize("key", ["annotations", "images"])
def test_config_paths_cannot_leave_the_root(tmp_path: Path, key: str):
    write(tmp_path, [])
    paths = {"annotations": JSON, "images": "images", key: "../x"}
    with pytest.raises(DataError, match=rf"^data set coco: {key}: path '\.\./x' leaves the data folder"):
        COCO(root=tmp_path, **paths)


# pictures


def test_read_gives_picture_target_and_id(tmp_path: Path):
    write(tmp_path, [annotation()], images=[image(1, file_name="sub/../1.png")])
    save_picture(tmp_path, "1.png", (40, 60))
    sample = load(tmp_path).read(0)
    assert (sample.image.shape, sample.image_id) == ((40, 60, 3), 1)
    assert sample.image[0, 0].tolist() == [9, 8, 7]
    assert_array_equal(sample.target["boxes"], [[10, 5, 30, 15]])


def test_picture_of_another_size_is_refused(tmp_path: Path):
    write(tmp_path, [])
    save_picture(tmp_path, "1.png", (41, 60))
    with pytest.raises(DataError) as error:
        load(tmp_path).read(0)
    assert str(error.value) == f"{tmp_path}/images/1.png: image is 60x41, its annotation says 60x40"


def test_missing_picture_is_named(tmp_path: Path):
    write(tmp_path, [])
    with pytest.raises(DataError) as error:
        load(tmp_path).read(0)
    assert str(error.value) == f"{tmp_path}/images/1.png: cannot read the image (No such file or directory)"


# masks


def square(x: int, y: int, side: int, identifier: int = 1, **other: Any) -> dict[str, Any]:
    """An annotation whose polygon is a square."""
    polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
    return annotation(identifier, **{"bbox": [x, y, side, side], "segmentation": [polygon], **other})


def mask_of(folder: Path, index: int = 0, **arguments: Any) -> np.ndarray:
    save_picture(folder, f"{index + 1}.png", (40, 60))
    return load(folder, **arguments).read(index).target["mask"]


def test_mask_holds_categories_by_name_and_background_first(tmp_path: Path):
    entries = [square(0, 0, 10, category_id=90), square(20, 20, 5, 2, category_id=3)]
    write(tmp_path, entries, categories=[category(90, "last"), category(3, "first")])
    expected = np.zeros((40, 60), np.uint8)
    expected[:10, :10], expected[20:25, 20:25] = 2, 1
    assert_array_equal(mask_of(tmp_path, masks="coco"), expected)
    data = load(tmp_path, masks="coco")
    assert data.classes == {"labels": ["first", "last"], "mask": ["background", "first", "last"]}
    assert_dataset(data)


def test_vocs_masks_rename_and_leave_out(tmp_path: Path):
    names = ["couch", "dog", "spoon"]
    entries = [square(20 * n, 0, 10, n, category_id=n + 1) for n in range(3)]
    write(tmp_path, entries, categories=[category(n, name) for n, name in enumerate(names, 1)])
    mask = mask_of(tmp_path, masks="voc")
    data = load(tmp_path, masks="voc")
    assert data.classes == {"labels": names, "mask": list(VOC_MASK_CLASSES)}
    assert [VOC_MASK_CLASSES[mask[5, x]] for x in (5, 25, 45)] == ["sofa", "dog", "background"]
    assert len(data.target(0)["boxes"]) == 3


def test_vocs_masks_of_other_categories_need_no_segmentation(tmp_path: Path):
    write(tmp_path, [annotation(1, category_id=2), square(0, 0, 10)], categories=[category(1), category(2, "spoon")])
    assert (mask_of(tmp_path, masks="voc") > 0).sum() == 100


def test_every_category_that_voc_calls_otherwise_is_mapped(tmp_path: Path):
    # COCO's own names of VOC's 20
    names = (
        "person bicycle car motorcycle airplane bus train boat bird cat dog horse sheep cow bottle chair couch"
        " potted_plant dining_table tv"
    )
    called = [name.replace("_", " ") for name in names.split()]
    entries = [square(n, 0, 1, n, category_id=n + 1) for n in range(20)]
    write(tmp_path, entries, categories=[category(n, name) for n, name in enumerate(called, 1)])
    mask = mask_of(tmp_path, masks="voc")
    assert sorted(mask[0, :20].tolist()) == list(range(1, 21))
    assert [VOC_MASK_CLASSES[mask[0, n]] for n in (0, 3, 4, 17, 18, 19)] == [
        *("person", "motorbike", "aeroplane", "pottedplant", "diningtable", "tvmonitor")
    ]


def test_vocs_masks_of_nothing_voc_knows(tmp_path: Path):
    write(tmp_path, [], categories=[category(1, "aeroplan")])
    expected = "masks: no category is one of VOC's 20 classes; did you mean 'aeroplane'?"
    assert message(tmp_path, masks="voc") == expected


def test_given_mask_names_set_the_ids(tmp_path: Path):
    write(tmp_path, [square(0, 0, 10)])
    names = ("background", "dog", "cat")
    assert mask_of(tmp_path, masks="coco", mask_names=names)[0, 0] == 2
    assert load(tmp_path, masks="coco", mask_names=names).classes == {"labels": ["cat"], "mask": list(names)}


def test_given_mask_names_must_have_all_and_background_first(tmp_path: Path):
    write(tmp_path, [square(0, 0, 10)])
    expected = "masks: class 'cat' is not among the 2 expected; did you mean 'cats'?"
    assert message(tmp_path, masks="coco", mask_names=("background", "cats")) == expected
    expected = "masks: the first class must be 'background', got 'cat'"
    assert message(tmp_path, masks="coco", mask_names=("cat", "background")) == expected


def test_small_object_lies_on_the_large_one_and_on_the_crowd(tmp_path: Path):
    crowd = {"size": [40, 60], "counts": [0, 1200, 1200]}  # the left half
    entries = [square(5, 5, 10, 1), square(0, 0, 20, 2, category_id=2)]
    entries.append(annotation(3, category_id=2, iscrowd=1, segmentation=crowd, bbox=[0, 0, 30, 40]))
    write(tmp_path, entries, categories=[category(1, "a"), category(2, "b")])
    expected = np.zeros((40, 60), np.uint8)
    expected[:, :30], expected[:20, :20], expected[5:15, 5:15] = 255, 2, 1
    assert_array_equal(mask_of(tmp_path, masks="coco"), expected)


def test_image_without_annotations_is_background(tmp_path: Path):
    write(tmp_path, [square(0, 0, 10)], images=[image(1), image(2)])
    assert not mask_of(tmp_path, 1, masks="coco").any()


def test_no_masks_unless_asked_for(tmp_path: Path):
    write(tmp_path, [annotation(segmentation=[[1, 2]])])
    save_picture(tmp_path, "1.png", (40, 60))
    assert "mask" not in load(tmp_path).read(0).target


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        (None, "annotation 1: no segmentation, but masks are wanted"),
        ([], "annotation 1: no segmentation, but masks are wanted"),
        ([[1, 2, 3, 4]], "annotation 1: segmentation: not polygons or a run-length mask (a polygon of 4 numbers;"),
        (
            {"size": [40, 60], "counts": [7]},
            "annotation 1: segmentation: not polygons or a run-length mask (its counts",
        ),
    ],
)
def test_segmentation_missing_or_broken(tmp_path: Path, segmentation: Any, expected: str):
    write(tmp_path, [annotation(segmentation=segmentation), square(0, 0, 5, 2)])
    assert message(tmp_path, masks="coco").startswith(expected)
    data = load(tmp_path, masks="coco", bad_data=BadData.skip)
    assert len(data.problems) == 1
    assert data.problems[0].startswith(f"{tmp_path / JSON}: {expected}")
    assert_array_equal(data.target(0)["boxes"], [[0, 0, 5, 5]])
    assert (mask_of(tmp_path, masks="coco", bad_data=BadData.skip) == 1).sum() == 25


def test_images_with_too_little_to_learn_from_are_left_out(tmp_path: Path):
    spoon, crowd = {"category_id": 2}, {"iscrowd": 1}
    entries = [square(0, 0, 10, 1, image_id=1), square(20, 0, 10, 2, image_id=1)]  # 200 pixels together
    entries += [square(0, 0, 30, 3, image_id=2, **spoon), square(0, 0, 14, 4, image_id=3)]  # none, 196
    entries += [square(0, 0, 30, 5, image_id=4, **crowd), square(0, 0, 15, 6, image_id=5)]  # none, 225
    write(tmp_path, entries, [image(n) for n in range(1, 6)], [category(1, "cat"), category(2, "spoon")])
    data = load(tmp_path, masks="voc", least_pixels=200)
    assert [data.image_id(index) for index in range(len(data))] == [1, 5]
    assert [len(data.target(index)["boxes"]) for index in range(2)] == [2, 1]
    for index, (number, pixels) in enumerate([(1, 200), (5, 225)]):
        save_picture(tmp_path, f"{number}.png", (40, 60))
        assert (data.read(index).target["mask"] == VOC_MASK_CLASSES.index("cat")).sum() == pixels
    kept = [len(load(tmp_path, masks="coco", least_pixels=least)) for least in (0, 1, 201, 900)]
    assert kept == [5, 4, 2, 1]
    expected = "no image has 226 pixels of a mask's class, at most 225"
    assert message(tmp_path, masks="voc", least_pixels=226) == expected


def test_least_pixels_need_masks(tmp_path: Path):
    write(tmp_path, [])
    with pytest.raises(ConfigError, match=r"^data set coco: least_pixels 5: expected 0 where there are no masks$"):
        load(tmp_path, least_pixels=5)


def test_least_pixels_are_not_negative(tmp_path: Path):
    args = {"annotations": "a.json", "images": ".", "masks": "voc", "least_pixels": -1}
    _, problems = DATASETS.bind("coco", args, place="data.train")
    assert problems == ["data.train.args.least_pixels: expected a whole number >= 0, got -1"]


# fuzz

LEAF = st.none() | st.booleans() | st.integers(-3, 100) | st.integers() | st.floats() | st.text(max_size=6)
ANY = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def damaged(entry: dict[str, Any]) -> st.SearchStrategy[Any]:
    """The entry, an entry with some values replaced, or anything."""
    extra = st.fixed_dictionaries({}, optional=dict.fromkeys([*entry, "segmentation", "area", "iscrowd"], ANY))
    runs = st.fixed_dictionaries({"size": st.just([40, 60]), "counts": st.text("0123noz\x7f", max_size=5) | ANY})
    masks = st.fixed_dictionaries({"bbox": st.none(), "segmentation": runs | st.lists(st.lists(LEAF, max_size=6))})
    return st.just(entry) | st.one_of(extra, masks).map(lambda changes: {**entry, **changes}) | ANY


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(damaged(annotation()), max_size=4),
    st.lists(damaged(image()), min_size=1, max_size=2),
    st.lists(damaged(category()), min_size=1, max_size=2),
    st.sampled_from(BadData),
    st.sampled_from([None, "coco", "voc"]),
)
def test_any_json_gives_a_data_set_or_a_data_error(tmp_path: Path, annotations, images, categories, bad_data, masks):
    write(tmp_path, annotations, images, categories)
    try:
        data = load(tmp_path, bad_data=bad_data, masks=masks)
    except DataError:
        return
    for index in range(len(data)):
        if masks and data._sizes[index].tolist() == [40, 60]:
            mask = data._regions.paint(index, (40, 60))
            assert ((mask < len(data.classes["mask"])) | (mask == 255)).all()
        boxes = data.target(index)["boxes"]
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        with pytest.raises(DataError):
            data.read(index)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40) | ANY.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / JSON).write_bytes(content)
    with pytest.raises(DataError):
        load(tmp_path)


# real data


ARGUMENTS: dict[str, Any] = {"annotations": "annotations/instances_val2017.json", "images": "val2017"}


@pytest.mark.shared
def test_hundred_real_images(shared: Path):
    data = COCO(root=shared / "coco100", **ARGUMENTS).dataset()
    targets = [data.target(index) for index in range(len(data))]
    assert len(data) == 100
    assert sum(len(target["boxes"]) for target in targets) == 712
    assert sum(int(target["ignore"].sum()) for target in targets) == 5
    assert len(data.classes["labels"]) == 80
    assert data.classes["labels"][::79] == ["person", "toothbrush"]
    assert data.category_ids[[0, 79]].tolist() == [1, 90]
    assert data.read(0).image.ndim == 3


@pytest.mark.shared
@pytest.mark.parametrize(("masks", "classes"), [("coco", 81), ("voc", 21)])
def test_hundred_real_masks(shared: Path, masks: str, classes: int):
    data = COCO(root=shared / "coco100", masks=masks, **ARGUMENTS).dataset()
    assert len(data.classes["mask"]) == classes
    assert_dataset(data, most=100)
    if masks == "voc":
        kept = COCO(root=shared / "coco100", masks=masks, least_pixels=1001, **ARGUMENTS).dataset()
        assert 50 < len(kept) < 100


@pytest.mark.shared
def test_real_regions_have_the_pixels_and_areas_of_their_annotations(shared: Path):
    data = COCO(root=shared / "coco100", masks="coco", **ARGUMENTS).dataset()
    oracle = pycocotools.coco.COCO(shared / "coco100" / ARGUMENTS["annotations"])
    alone = stated = covered = 0
    for index in range(len(data)):
        mask = data.read(index).target["mask"]
        entries = oracle.imgToAnns[data.image_id(index)]
        regions = np.array([oracle.annToMask(entry) for entry in entries]).reshape(-1, *mask.shape)
        assert_array_equal(mask > 0, regions.any(axis=0))
        shared_pixels = regions.sum(axis=0) > 1
        for entry, region in zip(entries, regions, strict=True):
            label = 255 if entry["iscrowd"] else 1 + data.category_ids.tolist().index(entry["category_id"])
            assert (mask[(region == 1) & ~shared_pixels] == label).all()
            if not (region & shared_pixels).any() and not entry["iscrowd"]:
                alone, stated, covered = alone + 1, stated + entry["area"], covered + int(region.sum())
    # the polygons were traced along the middle of the outermost pixels, so they lose half of these
    assert alone > 300
    assert 0.97 < covered / stated < 1.0
