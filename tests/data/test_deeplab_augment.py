from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mnv2det.config import BadData
from mnv2det.data.deeplab import deeplab
from mnv2det.data.formats.coco import COCO
from mnv2det.data.formats.voc import VOC
from mnv2det.data.shapes import Shapes
from mnv2det.data.transforms import Transform
from mnv2det.registry import AUGMENTATIONS
from mnv2det.structures import Preprocess, Sample
from mnv2det.testing import assert_augmentation

SIZE = (96, 128)
SEEDS = range(60)


def augmentation(size: tuple[int, int] = SIZE, **arguments: Any) -> Transform:
    return deeplab(Preprocess(input_size=size, mean=(0.2, 0.4, 0.6)), **{"flip": 0.0, **arguments})


def noise(shape: tuple[int, int], classes: int = 21, seed: int = 0) -> Sample:
    """Every pixel of its own; none has the colour that fills what lies beyond."""
    rng = np.random.default_rng(seed)
    image = rng.integers(110, 250, (*shape, 3), np.uint8)
    return Sample(image, {"mask": rng.integers(0, classes, shape, np.uint8)}, 1)


def rectangle(box: tuple[int, int, int, int], shape: tuple[int, int] = (150, 200)) -> Sample:
    x1, y1, x2, y2 = box
    image, mask = np.full((*shape, 3), 60, np.uint8), np.zeros(shape, np.uint8)
    image[y1:y2, x1:x2], mask[y1:y2, x1:x2] = 220, 1
    boxes = {"boxes": np.array([box], np.float32), "labels": np.array([3]), "ignore": np.array([False])}
    return Sample(image, {**boxes, "mask": mask}, 1)


def find(part: np.ndarray, whole: np.ndarray) -> tuple[int, int]:
    """Where a crop lies; fails unless it is exactly there."""
    found = cv2.minMaxLoc(cv2.matchTemplate(whole, part, cv2.TM_SQDIFF))[2]
    assert_array_equal(whole[found[1] : found[1] + part.shape[0], found[0] : found[0] + part.shape[1]], part)
    return found[1], found[0]


def bounds(pixels: np.ndarray) -> np.ndarray:
    ys, xs = np.nonzero(pixels)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


# geometry


def test_unscaled_crop_is_a_piece_of_the_picture_to_the_pixel():
    sample, corners = noise((150, 200)), set()
    transform = augmentation(scale=(1, 1))
    for seed in SEEDS:
        image, target = transform(sample, seed)
        y, x = find(image, sample.image)
        assert_array_equal(target["mask"], sample.target["mask"][y : y + 96, x : x + 128])
        corners.add((y, x))
    # every place is possible: also the last
    assert len(corners) > 50
    assert max(y for y, _ in corners) > 44
    assert max(x for _, x in corners) > 60


def test_last_pixel_can_be_reached():
    sample, transform = noise((97, 129)), augmentation(scale=(1, 1))
    corners = {find(transform(sample, seed)[0], sample.image) for seed in SEEDS}
    assert corners == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 1.5, 1.75, 2.0])
def test_scaled_crop_is_a_piece_of_the_resized_picture(scale: float):
    sample = noise((200, 320))
    whole = cv2.resize(sample.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    for seed in range(5):
        image, target = augmentation(scale=(scale, scale))(sample, seed)
        x, y = cv2.minMaxLoc(cv2.matchTemplate(whole, image, cv2.TM_SQDIFF))[2]
        piece = whole[y : y + 96, x : x + 128].astype(int)
        assert np.abs(image - piece).max() <= 6  # the warp's positions are rounded to 1/32
        # of the mask, the pixel whose area holds the centre
        rows = np.floor((np.arange(96) + y + 0.5) / scale + 1e-9).astype(int)
        columns = np.floor((np.arange(128) + x + 0.5) / scale + 1e-9).astype(int)
        assert_array_equal(target["mask"], sample.target["mask"][rows][:, columns])


def test_smaller_picture_is_filled_up_at_the_right_and_bottom():
    sample = noise((60, 80))
    image, target = augmentation(scale=(1, 1))(sample, 0)
    assert_array_equal(image[:60, :80], sample.image)
    assert_array_equal(target["mask"][:60, :80], sample.target["mask"])
    beyond = np.ones(SIZE, bool)
    beyond[:60, :80] = False
    assert (image[beyond] == (51, 102, 153)).all()
    assert (target["mask"][beyond] == 255).all()


@pytest.mark.parametrize("scale", [0.5, 0.613, 0.75, 1.25])
def test_colour_and_mask_end_at_the_same_pixel(scale: float):
    image, target = augmentation(scale=(scale, scale))(noise((70, 90)), 0)
    assert_array_equal((image == (51, 102, 153)).all(axis=-1), target["mask"] == 255)
    used = bounds(target["mask"] != 255)
    assert_allclose(used, [0, 0, 90 * scale, 70 * scale], atol=0.51)


def test_one_side_may_be_smaller_and_the_other_cropped():
    sample = noise((60, 300))
    for seed in range(10):
        image, target = augmentation(scale=(1, 1))(sample, seed)
        find(image[:60], sample.image)
        assert (target["mask"][60:] == 255).all()
        assert (target["mask"][:60] < 21).all()


def test_box_bounds_the_pixels_it_named():
    transform, checked = augmentation(flip=0.5), 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x1, y1 = rng.integers(0, (140, 90))
        image, target = transform(rectangle((x1, y1, x1 + rng.integers(20, 60), y1 + rng.integers(20, 60))), seed)
        for box, ignore in zip(target["boxes"], target["ignore"], strict=True):
            if not ignore:
                assert np.abs(box - bounds(target["mask"] == 1)).max() <= 1
                bright = np.abs(image.astype(int) - 220).max(axis=-1) < 40
                assert np.abs(box - bounds(bright)).max() <= 1.5
                checked += 1
    assert checked >= 40


def test_object_whose_centre_is_cut_off_becomes_ignored():
    transform = augmentation(scale=(1, 1))
    flags = [flag for seed in SEEDS for flag in transform(rectangle((0, 0, 90, 90)), seed)[1]["ignore"]]
    assert any(flags)
    assert not all(flags)


def test_flip_mirrors_picture_mask_and_boxes():
    sample = rectangle((10, 20, 50, 60), SIZE)
    image, target = augmentation(scale=(1, 1), flip=1.0)(sample, 0)
    assert_array_equal(image, sample.image[:, ::-1])
    assert_array_equal(target["mask"], sample.target["mask"][:, ::-1])
    assert_allclose(target["boxes"], [[78, 20, 118, 60]], atol=1e-3)


# what is drawn


def scales(transform: Transform, seeds: range = range(200)) -> list[float]:
    """The scale drawn for each seed, from where a small picture ends."""
    sample = noise((40, 40))
    return [bounds(transform(sample, seed)[1]["mask"] != 255)[3] / 40 for seed in seeds]


def test_scales_are_the_published_seven_equally_often():
    found = Counter(scales(augmentation((100, 100))))
    assert sorted(found) == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert min(found.values()) > 10


def test_without_step_any_scale_is_drawn():
    found = scales(augmentation((100, 100), step=0.0))
    assert min(found) < 0.6
    assert max(found) > 1.9
    assert len(set(found)) > 40


def test_base_makes_the_size_on_disk_not_matter():
    transform = augmentation((100, 100), scale=(1, 1), base=60)
    for shape in ((40, 80), (20, 40), (150, 300)):
        assert_array_equal(bounds(transform(noise(shape), 0)[1]["mask"] != 255), [0, 0, 60, 30])


def test_crop_may_be_another_than_the_input():
    image, target = augmentation(crop=(64, 48))(noise((150, 200)), 0)
    assert image.shape == (64, 48, 3)
    assert target["mask"].shape == (64, 48)


def largest(target: dict[str, Any]) -> float:
    counts = np.bincount(target["mask"].ravel(), minlength=256)[:255]
    return counts.max() / counts.sum()


def test_crop_of_one_class_is_drawn_again():
    # a strip of objects in a wide background: few crops show them
    sample = noise((96, 1000))
    sample.target["mask"][:] = 0
    sample.target["mask"][:, 480:520] = np.arange(40) % 7
    plain, chosen = (
        [largest(augmentation(scale=(1, 1), cat_max=share)(sample, seed)[1]) for seed in range(100)]
        for share in (None, 0.9)
    )
    assert np.mean(np.array(plain) > 0.9) > 0.7
    assert np.mean(np.array(chosen) > 0.91) < 0.25


def test_ignored_pixels_are_no_class_of_their_own():
    # the crop's labelled pixels are even, but most are not labelled: nothing to draw again
    sample = noise((150, 200), classes=5)
    sample.target["mask"][:, ::8] = 255
    sample.target["mask"][::3] = 255
    for seed in range(10):
        image, _ = augmentation(scale=(1, 1), cat_max=0.5)(sample, seed)
        assert_array_equal(image, augmentation(scale=(1, 1))(sample, seed)[0])


def test_hopeless_pictures_are_shown_all_the_same():
    sample = noise((150, 200))
    for value in (0, 255):
        sample.target["mask"][:] = value
        image, target = augmentation(cat_max=0.75)(sample, 0)
        assert image.shape == (*SIZE, 3)
        assert set(np.unique(target["mask"])) <= {value, 255}


def test_photometric_changes_colours_and_no_geometry():
    sample = noise((150, 200))
    plain, changed = (augmentation(photometric=share)(sample, 4) for share in (0.0, 1.0))
    assert (plain[0] != changed[0]).any()
    assert_array_equal(plain[1]["mask"], changed[1]["mask"])


# contract


@pytest.mark.parametrize("arguments", [{}, {"cat_max": 0.75, "photometric": 0.5, "step": 0.0}, {"base": 100}])
def test_contract(arguments: dict[str, Any]):
    assert_augmentation(augmentation(flip=0.5, **arguments), Shapes(count=20, size=(80, 150)), size=SIZE)


def test_boxes_and_masks_are_both_optional():
    transform = augmentation(cat_max=0.75)
    sample = rectangle((40, 30, 120, 110))
    for keys in (set(), {"mask"}, {"boxes", "labels", "ignore"}):
        target = {key: value for key, value in sample.target.items() if key in keys}
        assert set(transform(Sample(sample.image, target, 1), 0)[1]) == keys
    empty = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64), "ignore": np.zeros(0, bool)}
    assert transform(Sample(sample.image, empty, 1), 0)[1]["boxes"].shape == (0, 4)


def test_same_seed_same_result_whatever_came_before():
    arguments = {"photometric": 1.0, "flip": 0.5, "cat_max": 0.5}
    first, second = augmentation(**arguments), augmentation(**arguments)
    sample = rectangle((40, 30, 120, 110))
    second(sample, 99)
    for seed in range(20):
        (image, target), (again, other) = first(sample, seed), second(sample, seed)
        assert_array_equal(image, again)
        assert target.keys() == other.keys()
        for key, value in target.items():
            assert_array_equal(value, other[key])


def test_tiny_and_one_sided_pictures():
    for shape in ((1, 1), (1, 300), (300, 1)):
        for seed in range(10):
            sample = rectangle((0, 0, shape[1], shape[0]), shape)
            image, target = augmentation(cat_max=0.75)(sample, seed)
            assert image.shape == (*SIZE, 3)
            assert target["mask"].shape == SIZE


@pytest.mark.parametrize(
    "arguments",
    [
        *({"scale": (0, 1)}, {"scale": (2, 1)}, {"scale": (1, float("inf"))}, {"step": -0.25}, {"step": float("nan")}),
        *({"flip": 1.1}, {"photometric": -1}, {"cat_max": 0.0}, {"cat_max": 1.5}),
        *({"base": 0}, {"crop": (0, 64)}),
    ],
    ids=str,
)
def test_arguments_out_of_range(arguments: dict[str, Any]):
    problems = AUGMENTATIONS.bind("deeplab", arguments, place="data.augment")[1]
    assert len(problems) == 1
    assert problems[0].startswith(f"data.augment.args.{next(iter(arguments))}")


@pytest.mark.shared
def test_real_pictures(shared: Path):
    names = tuple("abcdefghijk")
    streets = VOC(
        root=shared / "camvid",
        sets=("CamVid/val",),
        boxes=None,
        masks="required",
        mask_names=names,
    ).dataset(BadData.stop)
    objects = COCO(
        root=shared / "coco100",
        annotations="annotations/instances_val2017.json",
        images="val2017",
        masks="voc",
    ).dataset(BadData.stop)
    for data in (streets, objects):
        assert_augmentation(augmentation((321, 417), flip=0.5, cat_max=0.75), data, size=(321, 417))
