from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from mnv2det.config import BadData
from mnv2det.data.formats.base import RecordsDataset
from mnv2det.data.formats.voc import VOC
from mnv2det.errors import ConfigError, DataError
from mnv2det.structures import VOC_MASK_CLASSES
from mnv2det.testing import assert_dataset


def item(name: str = "cat", box: tuple[Any, ...] = (11, 6, 30, 15), extra: str = "") -> str:
    tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{tags}</bndbox></object>"


def annotation(*items: str, size: tuple[Any, Any] = (40, 60)) -> str:
    stated = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation>{stated}{''.join(items)}</annotation>"


def write(root: Path, files: dict[str, str], *, year: str = "VOC2007", listed: str | None = None) -> None:
    """A devkit whose list ``train`` names all files, or holds the text given."""
    home = root / "VOCdevkit" / year
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for stem, text in files.items():
        (home / "Annotations" / f"{stem}.xml").write_text(text, "utf-8")
    (home / "ImageSets" / "Main" / "train.txt").write_text("\n".join(files) if listed is None else listed, "utf-8")


def load(root: Path, *sets: str, bad_data: BadData = BadData.stop, **arguments: Any) -> RecordsDataset:
    return VOC(root=root, sets=sets or ("VOC2007/train",), **arguments).dataset(bad_data)


def message(root: Path, *sets: str, **arguments: Any) -> str:
    """What is wrong, with paths relative to the folder of VOC2007."""
    with pytest.raises(DataError) as error:
        load(root, *sets, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value).replace(f"{root}/VOCdevkit", "DEVKIT").replace("DEVKIT/VOC2007/", "")


# boxes


def test_one_based_inclusive_pixels_become_zero_based_corners(tmp_path: Path):
    write(tmp_path, {"a": annotation(item(box=(11, 6, 30, 15)))})
    target = load(tmp_path).target(0)
    assert_array_equal(target["boxes"], np.array([[10, 5, 30, 15]], np.float32))
    assert_array_equal(target["area"], [200])
    assert [target[key].dtype for key in ("boxes", "labels", "ignore")] == [np.float32, np.int64, np.bool_]


def test_box_of_the_whole_image(tmp_path: Path):
    write(tmp_path, {"a": annotation(item(box=(1, 1, 60, 40)))})
    assert_array_equal(load(tmp_path).target(0)["boxes"], [[0, 0, 60, 40]])


def test_box_is_cut_to_the_image(tmp_path: Path):
    write(tmp_path, {"a": annotation(item(box=(0, -3, 61, 400)))})
    assert_array_equal(load(tmp_path).target(0)["boxes"], [[0, 0, 60, 40]])


def test_fractions_and_exponents_are_numbers(tmp_path: Path):
    write(tmp_path, {"a": annotation(item(box=("1.5", " 2 ", "3e1", "+10.25")))})
    assert_array_equal(load(tmp_path).target(0)["boxes"], [[0.5, 1, 30, 10.25]])


def test_numbers_are_read_as_programs_print_them(tmp_path: Path):
    boxes = [
        ("5.551115123125783e-17", ".5", "1.5e+01", "12."),
        ("1.0000000000000000", "1E0", "30.000000000000004", "9"),
    ]
    write(tmp_path, {"a": annotation(*(item(box=box) for box in boxes))})
    assert_array_equal(load(tmp_path).target(0)["boxes"], [[0, 0, 15, 12], [0, 0, 30, 9]])


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "0x1f", "1_0", "1,5", "1e", ".", "1 2", "1e999", "٣"])
def test_what_is_no_number_is_refused(tmp_path: Path, text: str):
    write(tmp_path, {"a": annotation(item(box=(1, 1, text, 9)))})
    assert message(tmp_path) == f"Annotations/a.xml: object 1 'cat': bndbox/xmax: expected a number, got '{text}'"


def test_difficult_is_ignored(tmp_path: Path):
    extras = ["<difficult>1</difficult>", "<difficult>0</difficult>", ""]
    write(tmp_path, {"a": annotation(*(item(extra=extra) for extra in extras))})
    assert_array_equal(load(tmp_path).target(0)["ignore"], [True, False, False])


def test_parts_of_an_object_are_not_objects(tmp_path: Path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    write(tmp_path, {"a": annotation(item("person").replace("</object>", f"{part}</object>"))})
    assert load(tmp_path).classes == {"labels": ["person"]}


def test_image_without_objects_has_empty_arrays(tmp_path: Path):
    write(tmp_path, {"a": annotation(item()), "b": annotation()})
    target = load(tmp_path).target(1)
    assert [target[key].shape for key in ("boxes", "labels", "ignore", "area")] == [(0, 4), (0,), (0,), (0,)]


# lists and sets


def test_images_keep_the_order_of_the_list_and_their_own_boxes(tmp_path: Path):
    files = {stem: annotation(item(box=(1, 1, width, 10))) for stem, width in (("a", 10), ("b", 20), ("c", 30))}
    write(tmp_path, files, listed="c\na\nb\n")
    data = load(tmp_path)
    assert [data.image_id(index) for index in range(len(data))] == ["c", "a", "b"]
    assert [data.target(index)["boxes"][0, 2] for index in range(3)] == [30, 10, 20]


def test_joined_sets_come_one_after_the_other(tmp_path: Path):
    write(tmp_path, {"b": annotation(item("x"))}, year="VOC2012")
    write(tmp_path, {"a": annotation(item("y"))})
    data = load(tmp_path, "VOC2012/train", "VOC2007/train")
    assert [data.image_id(0), data.image_id(1)] == ["b", "a"]
    assert data.classes == {"labels": ["x", "y"]}


def test_image_listed_twice_is_refused(tmp_path: Path):
    write(tmp_path, {"a": annotation(item())})
    expected = "ImageSets/Main/train.txt: image 'a' is listed twice"
    assert message(tmp_path, "VOC2007/train", "VOC2007/train") == expected


def test_second_column_blank_lines_and_byte_order_mark_are_no_stems(tmp_path: Path):
    write(tmp_path, {"a": annotation(item()), "b": annotation(item())}, listed="\ufeffa  1\r\n\r\nb -1\r\n")
    data = load(tmp_path)
    assert [data.image_id(index) for index in range(len(data))] == ["a", "b"]


def ids(data: RecordsDataset) -> list[int | str]:
    return [data.image_id(index) for index in range(len(data))]


def test_one_name_in_two_folders_is_two_images(tmp_path: Path):
    files = {"north/000": annotation(item("ant")), "south/000": annotation(item("bee")), "000": annotation(item("cow"))}
    for stem in files:
        for folder in ("Annotations", "JPEGImages"):
            (tmp_path / "VOCdevkit/VOC2007" / folder / stem).parent.mkdir(parents=True, exist_ok=True)
    write(tmp_path, files, listed="north/000\nsouth\\000\n./north/../000\n")
    data = load(tmp_path)
    assert ids(data) == ["north/000", "south/000", "000"]
    assert [data.classes["labels"][data.target(index)["labels"][0]] for index in range(3)] == ["ant", "bee", "cow"]


def test_one_path_written_in_two_ways_is_listed_twice(tmp_path: Path):
    write(tmp_path, {"a": annotation(item())}, listed="a\n./a\n")
    assert message(tmp_path) == "ImageSets/Main/train.txt: image 'a' is listed twice"


def test_ids_begin_with_their_home_where_two_homes_have_an_image_of_one_name(tmp_path: Path):
    write(tmp_path, {"a": annotation(item("x")), "b": annotation(item("x"))}, year="VOC2012")
    write(tmp_path, {"a": annotation(item("y"))})
    data = load(tmp_path, "VOC2012/train", "VOC2007/train")
    assert ids(data) == ["VOC2012/a", "VOC2012/b", "VOC2007/a"]
    assert ids(load(tmp_path, "VOC2007/train")) == ["a"]


def test_names_contain_spaces(tmp_path: Path):
    files = {name: annotation(item()) for name in ("yard 00", "yard 01", "my yard -1", "yard")}
    write(tmp_path, files)
    assert ids(load(tmp_path)) == list(files)


def test_a_number_at_the_end_of_a_name_is_no_column(tmp_path: Path):
    files = {name: annotation(item()) for name in ("yard 0", "yard 1")}
    write(tmp_path, files)
    for name in files:
        save_picture(tmp_path, f"{name}.jpg")
    assert ids(load(tmp_path)) == list(files)
    write(tmp_path, files, listed="yard 0 -1\nyard 1  1\n")
    assert ids(load(tmp_path)) == list(files)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_any_shell_are_read(tmp_path: Path, encoding: str):
    write(tmp_path, {"ä": annotation(item())})
    (tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/train.txt").write_bytes("ä\r\n".encode(encoding))
    assert ids(load(tmp_path)) == ["ä"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("ä".encode("latin-1"), "not a text in UTF-8 (byte 0); save it as UTF-8"),
        (b"\xff\xfea", "not a text in UTF-16 (byte 2); save it as UTF-8"),
        ("a".encode("utf-16-le"), "NUL bytes in it, as in UTF-16 without a byte order mark; save it as UTF-8"),
    ],
)
def test_a_list_in_another_encoding_is_named(tmp_path: Path, content: bytes, expected: str):
    write(tmp_path, {"a": annotation(item())})
    (tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/train.txt").write_bytes(content)
    assert message(tmp_path) == f"ImageSets/Main/train.txt: {expected}"


@pytest.mark.parametrize("name", ["train", "/train", "./train", "a/b/c"])
def test_set_must_be_folder_and_list(tmp_path: Path, name: str):
    assert message(tmp_path, name) == f"data set voc: set '{name}': expected FOLDER/LIST such as VOC2007/trainval"


def test_missing_list_names_the_nearest(tmp_path: Path):
    write(tmp_path, {"a": annotation(item())})
    assert message(tmp_path, "VOC2007/trian") == "ImageSets/Main/trian.txt: no such image list; did you mean 'train'?"


def test_missing_folder_is_a_missing_list(tmp_path: Path):
    assert message(tmp_path, "VOC2007/train") == "ImageSets/Main/train.txt: no such image list"


def test_empty_list(tmp_path: Path):
    write(tmp_path, {}, listed="\n")
    assert message(tmp_path) == "DEVKIT (VOC2007/train): no images left in it"


@pytest.mark.parametrize("stem", ["../../../etc/passwd", "/etc/passwd", ".."])
def test_stems_cannot_leave_the_folder(tmp_path: Path, stem: str):
    write(tmp_path, {}, listed=stem)
    expected = f"ImageSets/Main/train.txt: path '{stem}' leaves the data folder DEVKIT/VOC2007"
    assert message(tmp_path) == expected


def test_sets_and_folder_cannot_leave_the_root(tmp_path: Path):
    assert message(tmp_path, "../train") == "data set voc: set '../train': path '..' leaves the data folder DEVKIT"
    expected = f"data set voc: folder: path '../x' leaves the data folder {tmp_path}"
    assert message(tmp_path, folder="../x") == expected


# classes


def test_found_names_are_sorted(tmp_path: Path):
    write(tmp_path, {"a": annotation(item("dog"), item("ant"), item("cat"), item("dog"))})
    data = load(tmp_path)
    assert data.classes == {"labels": ["ant", "cat", "dog"]}
    assert_array_equal(data.target(0)["labels"], [2, 0, 1, 2])


def test_given_names_set_the_order(tmp_path: Path):
    write(tmp_path, {"a": annotation(item("dog"), item("ant"))})
    data = load(tmp_path, names=("dog", "eel", "ant"))
    assert data.classes == {"labels": ["dog", "eel", "ant"]}
    assert_array_equal(data.target(0)["labels"], [0, 2])


def test_name_not_among_the_given(tmp_path: Path):
    write(tmp_path, {"a": annotation(item("dgo"))})
    expected = "Annotations/a.xml: object 1: class 'dgo' is not among the 2 expected; did you mean 'dog'?"
    assert message(tmp_path, names=("dog", "ant")) == expected


@pytest.mark.parametrize("names", [("a", "a"), ("a", "")])
def test_given_names_must_be_different_and_not_empty(tmp_path: Path, names: tuple[str, ...]):
    write(tmp_path, {"a": annotation(item("a"))})
    assert message(tmp_path, names=names).endswith(f"class names must be different and not empty, got {list(names)}")


def test_no_object_anywhere_is_no_class(tmp_path: Path):
    write(tmp_path, {"a": annotation()})
    assert message(tmp_path) == "DEVKIT (VOC2007/train): no classes in it"


# broken annotations


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (item(box=(40, 1, 30, 9)), "object 2 'cat': xmin 40 > xmax 30"),
        (item(box=(1, 9, 30, 8.5)), "object 2 'cat': ymin 9 > ymax 8.5"),
        (item(box=(7, 1, 7, 9)), "object 2 'cat': xmin 7 = xmax 7"),
        (item(box=(1, 9, 7, 9)), "object 2 'cat': ymin 9 = ymax 9"),
        (item(box=(61, 1, 70, 9)), "object 2 'cat': box 61 1 70 9 lies outside the 60x40 image"),
        (item(box=(-9, 1, -2, 9)), "object 2 'cat': box -9 1 -2 9 lies outside the 60x40 image"),
        (item(box=("x", 1, 7, 9)), "object 2 'cat': bndbox/xmin: expected a number, got 'x'"),
        (item(box=(1, 1, "nan", 9)), "object 2 'cat': bndbox/xmax: expected a number, got 'nan'"),
        (item(box=(1, 1, 7, "")), "object 2 'cat': bndbox/ymax: expected a number, got ''"),
        (item(box=(1, 1, 7, "1e99")), "object 2 'cat': bndbox/ymax: expected a number, got '1e99'"),
        ("<object><name>cat</name></object>", "object 2 'cat': bndbox/xmin: expected a number, got ''"),
        (item(" "), "object 2 has no name"),
    ],
)
def test_broken_box_names_file_object_and_number(tmp_path: Path, broken: str, expected: str):
    write(tmp_path, {"a": annotation(item(), broken)})
    assert message(tmp_path) == f"Annotations/a.xml: {expected}"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((0, 60), "size 60x0 is not an image's"),
        ((40, -1), "size -1x40 is not an image's"),
        ((40, "9e9"), "size 9e+09x40 is not an image's"),
        (("x", 60), "size/height: expected a number, got 'x'"),
        ((40, ""), "size/width: expected a number, got ''"),
    ],
)
def test_broken_size(tmp_path: Path, size: tuple[Any, Any], expected: str):
    write(tmp_path, {"a": annotation(item(), size=size)})
    assert message(tmp_path) == f"Annotations/a.xml: {expected}"


def test_missing_annotation(tmp_path: Path):
    write(tmp_path, {}, listed="a")
    assert message(tmp_path) == "Annotations/a.xml: cannot read the annotation (No such file or directory)"


@pytest.mark.parametrize(
    "text", ["", "<annotation>", "no xml", "<a/><b/>", '<?xml version="1.0" encoding="what"?><a/>']
)
def test_file_that_is_no_xml(tmp_path: Path, text: str):
    write(tmp_path, {"a": text})
    assert message(tmp_path).startswith("Annotations/a.xml: not a safe, well-formed xml (")


def test_entity_bomb_is_refused(tmp_path: Path):
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "ha"}">' for n in range(12))
    write(tmp_path, {"a": f"<!DOCTYPE x [{entities}]><annotation>&e11;</annotation>"})
    assert message(tmp_path).startswith("Annotations/a.xml: not a safe, well-formed xml (EntitiesForbidden(")


def test_external_entity_is_refused(tmp_path: Path):
    doctype = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    write(tmp_path, {"a": f"{doctype}{annotation(item('&e;'))}"})
    assert message(tmp_path).startswith("Annotations/a.xml: not a safe, well-formed xml (EntitiesForbidden(")


def test_skip_leaves_out_the_box_and_lists_it(tmp_path: Path):
    write(tmp_path, {"a": annotation(item(box=(5, 1, 5, 9)), item("dog"), item(""))})
    data = load(tmp_path, bad_data=BadData.skip)
    path = tmp_path / "VOCdevkit/VOC2007/Annotations/a.xml"
    assert_array_equal(data.target(0)["boxes"], [[10, 5, 30, 15]])
    assert data.classes == {"labels": ["dog"]}
    assert data.problems == [f"{path}: object 1 'cat': xmin 5 = xmax 5", f"{path}: object 3 has no name"]


def test_skip_leaves_out_the_image_whose_xml_cannot_be_read(tmp_path: Path):
    write(tmp_path, {"a": "<", "b": annotation(item()), "c": annotation(size=(0, 0))}, listed="a\nb\nc\nd")
    data = load(tmp_path, bad_data=BadData.skip)
    assert [data.image_id(index) for index in range(len(data))] == ["b"]
    assert [line.split(": ")[0][-5:] for line in data.problems] == ["a.xml", "c.xml", "d.xml"]


def test_skip_of_every_image_is_an_error(tmp_path: Path):
    write(tmp_path, {"a": "<"})
    assert message(tmp_path, bad_data=BadData.skip) == "DEVKIT (VOC2007/train): no images left in it"


# pictures


def test_read_gives_picture_target_and_id(tmp_path: Path):
    write(tmp_path, {"a": annotation(item())})
    Image.new("RGB", (60, 40), (9, 8, 7)).save(tmp_path / "VOCdevkit/VOC2007/JPEGImages/a.png")
    sample = load(tmp_path, suffix=".png").read(0)
    assert (sample.image.shape, sample.image_id) == ((40, 60, 3), "a")
    assert sample.image[0, 0].tolist() == [9, 8, 7]
    assert_array_equal(sample.target["boxes"], [[10, 5, 30, 15]])


def save_picture(root: Path, name: str) -> Path:
    path = root / "VOCdevkit/VOC2007/JPEGImages" / name
    Image.new("RGB", (60, 40), (9, 8, 7)).save(path, "PNG")
    return path


def test_pictures_may_have_any_suffix(tmp_path: Path):
    names = ["a.jpg", "b.JPG", "c.jpeg", "d.png", "e.f.PNG"]
    write(tmp_path, {Path(name).stem: annotation(item()) for name in names})
    for name in names:
        save_picture(tmp_path, name)
    data = load(tmp_path)
    assert data.problems == []
    assert [data.read(index).image.shape for index in range(5)] == [(40, 60, 3)] * 5


def test_of_two_pictures_of_one_name_jpg_is_read_and_the_other_named(tmp_path: Path):
    write(tmp_path, {"a": annotation(item()), "b": annotation(item())})
    paths = [save_picture(tmp_path, name) for name in ("a.PNG", "a.jpg", "b.png", "b.webp")]
    data = load(tmp_path)
    assert [Path(file.decode()).name for file in data._files] == ["a.jpg", "b.png"]
    assert data.problems == [f"{paths[0]}: a.jpg is read instead", f"{paths[3]}: b.png is read instead"]
    assert load(tmp_path, suffix=".jpg").problems == []


def test_picture_of_another_size_is_refused(tmp_path: Path):
    write(tmp_path, {"a": annotation(item())})
    path = tmp_path / "VOCdevkit/VOC2007/JPEGImages/a.jpg"
    Image.new("RGB", (61, 40)).save(path)
    with pytest.raises(DataError) as error:
        load(tmp_path).read(0)
    assert str(error.value) == f"{path}: image is 61x40, its annotation says 60x40"


def test_missing_picture_is_named(tmp_path: Path):
    write(tmp_path, {"a": annotation(item())})
    with pytest.raises(DataError, match=r"JPEGImages/a\.jpg: cannot read the image \(No such file or directory\)$"):
        load(tmp_path).read(0)


# masks

HOME = "VOCdevkit/VOC2007"
MASK = np.full((40, 60), 3, np.uint8)
MASK[:5], MASK[-5:] = 0, 255


def write_masks(root: Path, *stems: str, pictures: tuple[str, ...] = ("a", "b"), mask: np.ndarray = MASK) -> None:
    """List ``train`` of both pictures in ``Segmentation``, and masks for some."""
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (root / HOME / folder).mkdir(parents=True, exist_ok=True)
    (root / HOME / "ImageSets/Segmentation/train.txt").write_text("\n".join(pictures))
    for stem in pictures:
        Image.new("RGB", (60, 40), (9, 8, 7)).save(root / HOME / f"JPEGImages/{stem}.jpg")
    for stem in stems:
        Image.fromarray(mask).save(root / HOME / f"SegmentationClass/{stem}.png")


def read_error(data: RecordsDataset, index: int = 0) -> str:
    with pytest.raises(DataError) as error:
        data.read(index)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_masks_without_any_xml(tmp_path: Path):
    write_masks(tmp_path, "a", "b")
    data = load(tmp_path, boxes=None, masks="required")
    assert data.classes == {"mask": list(VOC_MASK_CLASSES)}
    sample = data.read(1)
    assert sample.target.keys() == {"mask"}
    assert (sample.target["mask"].dtype, sample.image_id) == (np.uint8, "b")
    assert_array_equal(sample.target["mask"], MASK)
    assert_dataset(data)


def test_boxes_and_masks(tmp_path: Path):
    write(tmp_path, {"a": annotation(item())})
    write_masks(tmp_path, "a", pictures=("a",))
    data = load(tmp_path, masks="required")
    assert data.classes == {"labels": ["cat"], "mask": list(VOC_MASK_CLASSES)}
    assert data.read(0).target.keys() == {"boxes", "labels", "ignore", "area", "mask"}
    assert data.target(0).keys() == {"boxes", "labels", "ignore", "area"}
    assert_dataset(data)


def test_what_is_optional_may_be_absent(tmp_path: Path):
    write(tmp_path, {"b": annotation(item())})
    write_masks(tmp_path, "a", pictures=("a", "b", "c"))
    data = load(tmp_path, boxes="optional", masks="optional")
    keys = [set(data.read(index).target) for index in range(3)]
    assert keys == [{"mask"}, {"boxes", "labels", "ignore", "area"}, set()]
    assert data.target(0) == data.target(2) == {}
    assert_dataset(data)


def test_xml_without_objects_is_annotated(tmp_path: Path):
    write(tmp_path, {"a": annotation(item()), "b": annotation()})
    write_masks(tmp_path, pictures=("a", "b", "c"))
    data = load(tmp_path, boxes="optional")
    assert [data.target(index).get("boxes", np.zeros(0)).shape for index in range(3)] == [(1, 4), (0, 4), (0,)]


def test_broken_optional_xml_is_still_an_error(tmp_path: Path):
    write(tmp_path, {"a": "<"})
    write_masks(tmp_path, "a")
    assert "Annotations/a.xml: not a safe" in message(tmp_path, boxes="optional", masks="required")


def test_masks_in_another_folder_with_other_classes(tmp_path: Path):
    write_masks(tmp_path, "a", "b")
    (tmp_path / HOME / "SegmentationClass").rename(tmp_path / HOME / "Extra")
    names = ("sky", "road", "tree", "car")
    data = load(tmp_path, boxes=None, masks="required", mask_folder="Extra", mask_names=names)
    assert data.classes == {"mask": list(names)}
    assert_array_equal(data.read(0).target["mask"], MASK)


def test_nothing_to_read_is_a_mistake(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^data set voc: boxes and masks are both null: nothing would be read$"):
        load(tmp_path, boxes=None)


def test_lists_lie_where_the_annotation_is(tmp_path: Path):
    write(tmp_path, {"main": annotation(item())})
    write_masks(tmp_path, "seg", pictures=("seg",))
    assert load(tmp_path).image_id(0) == "main"
    assert load(tmp_path, boxes="optional", lists="Main").image_id(0) == "main"
    assert load(tmp_path, boxes=None, masks="required").image_id(0) == "seg"


def test_list_in_the_other_folder_is_pointed_to(tmp_path: Path):
    write_masks(tmp_path, "a")
    expected = "ImageSets/Main/train.txt: no such image list; ImageSets/Segmentation has one (argument lists)"
    assert message(tmp_path) == expected


def test_missing_mask(tmp_path: Path):
    write_masks(tmp_path, "a")
    arguments: dict[str, Any] = {"boxes": None, "masks": "required"}
    assert message(tmp_path, **arguments) == "SegmentationClass/b.png: no such mask"
    data = load(tmp_path, **arguments, bad_data=BadData.skip)
    assert [data.image_id(index) for index in range(len(data))] == ["a"]
    assert data.problems == [f"{tmp_path / HOME}/SegmentationClass/b.png: no such mask"]


def test_missing_mask_folder_names_the_nearest(tmp_path: Path):
    write_masks(tmp_path, "a", "b")
    expected = "SegmentationClas/a.png: no such mask; did you mean 'SegmentationClass'?"
    assert message(tmp_path, boxes=None, masks="required", mask_folder="SegmentationClas") == expected


def test_mask_folder_cannot_leave_the_devkit(tmp_path: Path):
    expected = "data set voc: mask_folder: path '../x' leaves the data folder DEVKIT"
    assert message(tmp_path, masks="required", mask_folder="../x") == expected


def test_optional_must_not_mean_nowhere(tmp_path: Path):
    write_masks(tmp_path, "a")
    expected = "DEVKIT (VOC2007/train): none of 2 images has "
    assert message(tmp_path, boxes="optional", names=("cat",)) == f"{expected}an xml in Annotations"
    assert message(tmp_path, boxes=None, masks="optional", mask_folder="Typo") == f"{expected}a mask in Typo"


@pytest.mark.parametrize("names", [(), ("a", "a"), ("a", "")])
def test_mask_names_must_be_different_and_not_empty(tmp_path: Path, names: tuple[str, ...]):
    write_masks(tmp_path, "a", "b")
    start = "DEVKIT (VOC2007/train): masks: " + ("no classes in it" if not names else "class names must be different")
    assert message(tmp_path, boxes=None, masks="required", mask_names=names).startswith(start)


def test_id_without_a_class_is_found_when_the_mask_is_read(tmp_path: Path):
    write_masks(tmp_path, "a", "b")
    data = load(tmp_path, boxes=None, masks="required", mask_names=("x", "y", "z"))
    path = tmp_path / HOME / "SegmentationClass/a.png"
    assert read_error(data) == f"{path}: class id 3 in 1800 pixels; expected 0 ... 2, or 255 = ignore"


@pytest.mark.parametrize("boxes", ["required", None])
def test_mask_of_another_size_names_both(tmp_path: Path, boxes: str | None):
    write(tmp_path, {"a": annotation(item())})
    write_masks(tmp_path, "a", pictures=("a",), mask=MASK[:, :50])
    data = load(tmp_path, boxes=boxes, masks="required")
    path = tmp_path / HOME / "SegmentationClass/a.png"
    assert read_error(data) == f"{path}: the mask is 50x40, its image a.jpg is 60x40"


@pytest.mark.parametrize("upright", [True, False])
def test_turned_picture_fits_a_mask_drawn_either_way(tmp_path: Path, upright: bool):
    write_masks(tmp_path, "a", "b", mask=np.rot90(MASK, -1) if upright else MASK)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20] = 200
    Image.fromarray(pixels).save(tmp_path / HOME / "JPEGImages/a.jpg", exif=exif)
    sample = load(tmp_path, boxes=None, masks="required").read(0)
    assert sample.image.shape[:2] == sample.target["mask"].shape == ((60, 40) if upright else (40, 60))
    # what was the top half is bright, and the top rows of the mask are class 0
    assert sample.image[sample.target["mask"] == 0].mean() > 190
    assert sample.image[sample.target["mask"] == 255].mean() < 10


# fuzz

TAGS = st.sampled_from(
    [
        "<annotation>",
        "</annotation>",
        "<object>",
        "</object>",
        "<name>",
        "</name>",
        "<bndbox>",
        "</bndbox>",
        "&lt;",
        "&#0;",
    ]
)
NUMBER = st.integers(-5, 70) | st.floats() | st.text(max_size=4) | st.sampled_from(["1e9", "9" * 9, "1e-9", "٣", ""])
ITEM = st.builds(item, st.text(max_size=4), st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), st.just("") | TAGS)
GOOD_SIZE = st.just((40, 60))
XML = st.one_of(
    st.builds(lambda items, size: annotation(*items, size=size), st.lists(ITEM, max_size=3), GOOD_SIZE),
    st.builds(lambda size: annotation(item(), size=size), st.tuples(NUMBER, NUMBER)),
    st.lists(TAGS | st.just(item()) | st.text(max_size=3), max_size=8).map("".join),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(XML | st.binary(max_size=40), st.sampled_from(BadData))
def test_any_xml_gives_a_data_set_or_a_data_error(tmp_path: Path, content: bytes, bad_data: BadData):
    write(tmp_path, {"a": annotation(item()), "b": ""})
    (tmp_path / "VOCdevkit/VOC2007/Annotations/b.xml").write_bytes(content)
    try:
        data = load(tmp_path, bad_data=bad_data)
    except DataError:
        assert bad_data is BadData.stop
        return
    for index in range(len(data)):
        boxes = data.target(index)["boxes"]
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert (boxes >= 0).all()


# real data


@pytest.mark.shared
def test_blood_cells_name_their_two_boxes_without_area(shared: Path):
    lists = ("BCCD/train", "BCCD/val")
    data = VOC(root=shared / "bccd", sets=lists).dataset(BadData.skip)
    assert len(data.problems) == 2
    assert all(" = " in problem and ".xml: object " in problem for problem in data.problems)
    assert data.classes == {"labels": ["Platelets", "RBC", "WBC"]}
    with pytest.raises(DataError) as error:
        VOC(root=shared / "bccd", sets=lists).dataset(BadData.stop)
    assert str(error.value) == data.problems[0]


@pytest.mark.shared
def test_hundred_real_images(shared: Path):
    data = VOC(root=shared / "voc100", sets=("VOC2012/val",)).dataset(BadData.stop)
    assert len(data) == 100
    assert sum(len(data.target(index)["boxes"]) for index in range(len(data))) == 273
    assert len(data.classes["labels"]) == 20
    assert data.read(0).image.ndim == 3


CAMVID = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "signsymbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)


@pytest.mark.shared
@pytest.mark.parametrize(("split", "images"), [("train", 367), ("val", 101)])
def test_street_scenes(shared: Path, split: str, images: int):
    arguments: dict[str, Any] = {"boxes": None, "masks": "required", "mask_names": CAMVID}
    data = VOC(root=shared / "camvid", sets=(f"CamVid/{split}",), **arguments).dataset(BadData.stop)
    assert len(data) == images
    assert data.classes == {"mask": list(CAMVID)}
    counts, skies, upper = np.zeros(256, np.int64), 0, 0
    for index in range(images):
        mask = data.read(index).target["mask"]
        assert mask.shape == (360, 480)
        counts += np.bincount(mask.ravel(), minlength=256)
        skies, upper = skies + np.sum(mask == 0), upper + np.sum(mask[:180] == 0)
    shares = counts / counts.sum()
    assert counts[11:255].sum() == 0
    assert (counts[:11] > 0).all()
    # a street is mostly building and road, then sky and trees; signs, people and cyclists are few; the sky is above
    assert set(np.argsort(shares[:11])[-2:]) == {1, 3}
    assert shares[[0, 1, 3, 5]].sum() > 0.75
    assert shares[[6, 9, 10]].max() < 0.03
    assert 0.005 < shares[255] < 0.1
    assert upper > 0.99 * skies
    assert_dataset(data, most=5)


@pytest.mark.shared
def test_real_palette_mask_lies_on_its_objects(shared: Path):
    data = VOC(root=shared / "voc100", sets=("VOC2012/val",), masks="optional").dataset(BadData.stop)
    masked = [index for index in range(len(data)) if "mask" in data.read(index).target]
    assert [data.image_id(index) for index in masked] == ["2007_000063"]
    target = data.read(masked[0]).target
    assert np.unique(target["mask"]).tolist() == [0, 9, 12, 255]
    assert [data.classes["mask"][id] for id in (9, 12)] == ["chair", "dog"]
    # the boxes are those of the masks' objects
    for box, label in zip(target["boxes"].astype(int), target["labels"], strict=True):
        name = data.classes["labels"][label]
        inside = target["mask"][box[1] : box[3], box[0] : box[2]] == data.classes["mask"].index(name)
        assert inside.mean() > 0.25
    assert_dataset(data)
