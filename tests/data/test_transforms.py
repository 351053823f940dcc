from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from mnv2det.data.fit import resize, stretch
from mnv2det.data.transforms import Transform, none, ssd
from mnv2det.registry import AUGMENTATIONS
from mnv2det.structures import Preprocess, Sample

SIZE = (96, 128)
INPUT = Preprocess(SIZE)
GROUND, SOLID = 60, 220
SEEDS = range(60)


def rectangle(box: tuple[int, int, int, int], shape: tuple[int, int] = (150, 200), **extra: Any) -> Sample:
    """A bright rectangle on dark ground, with its box and mask."""
    x1, y1, x2, y2 = box
    image = np.full((*shape, 3), GROUND, np.uint8)
    mask = np.zeros(shape, np.uint8)
    image[y1:y2, x1:x2], mask[y1:y2, x1:x2] = SOLID, 1
    target = {
        "boxes": np.array([box], np.float32),
        "labels": np.array([3], np.int64),
        "ignore": np.array([False]),
        "area": np.array([(x2 - x1) * (y2 - y1)], np.float32),
        "mask": mask,
    }
    return Sample(image, {**target, **extra}, 1)


def augmentation(**arguments: Any) -> Transform:
    given = {"crop": 0.0, "expand": 0.0, "flip": 0.0, "photometric": 0.0, **arguments}
    return ssd(INPUT, **given)


def bounds(pixels: np.ndarray) -> np.ndarray:
    ys, xs = np.nonzero(pixels)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


GEOMETRY = {
    "whole": {},
    "crop": {"crop": 1.0},
    "expand": {"expand": 1.0},
    "flip": {"flip": 1.0},
    "vertical flip": {"vertical_flip": 1.0},
    "everything": {"crop": 0.5, "expand": 0.4, "flip": 0.5, "vertical_flip": 0.5},
}


@pytest.mark.parametrize("arguments", GEOMETRY.values(), ids=GEOMETRY)
def test_box_bounds_the_pixels_it_named(arguments: dict[str, float]):
    transform = augmentation(**arguments)
    checked = 0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        x1, y1 = rng.integers(0, (140, 90))
        image, target = transform(rectangle((x1, y1, x1 + rng.integers(20, 60), y1 + rng.integers(20, 60))), seed)
        assert (image.shape, image.dtype) == ((*SIZE, 3), np.uint8)
        for box, ignore in zip(target["boxes"], target["ignore"], strict=True):
            if not ignore:
                # the ground and the border are 60 and 128, half way to the rectangle is above 170
                assert np.abs(box - bounds(image[..., 0] > 174)).max() <= 1.5
                checked += 1
    assert checked >= len(SEEDS) // 2


@pytest.mark.parametrize("arguments", GEOMETRY.values(), ids=GEOMETRY)
def test_mask_moves_with_the_image(arguments: dict[str, float]):
    transform = augmentation(**arguments)
    for seed in SEEDS:
        image, target = transform(rectangle((40, 30, 120, 110)), seed)
        assert target["mask"].shape == SIZE
        assert target["mask"].dtype == np.uint8
        assert set(np.unique(target["mask"])) <= {0, 1, 255}
        assert ((image[..., 0] > 174) != (target["mask"] == 1)).mean() < 0.03


def test_beyond_the_image_lie_mean_colour_and_ignored_mask():
    transform = ssd(Preprocess(SIZE, mean=(0.2, 0.4, 0.6)), crop=0, expand=1, flip=0, photometric=0)
    seen = 0
    for seed in SEEDS:
        image, target = transform(rectangle((40, 30, 120, 110)), seed)
        beyond = target["mask"] == 255
        if beyond[:3, :3].all():
            assert image[0, 0].tolist() == [51, 102, 153]
            seen += 1
        assert ((image == (51, 102, 153)).all(axis=-1) != beyond).mean() < 0.05
    assert seen


def test_boxes_keep_labels_and_documented_types():
    transform = augmentation(**GEOMETRY["everything"])
    for seed in SEEDS:
        _, target = transform(rectangle((40, 30, 120, 110)), seed)
        assert [target[key].dtype.name for key in ("boxes", "labels", "ignore")] == ["float32", "int64", "bool"]
        assert set(target["labels"]) <= {3}
        assert len(target["boxes"]) == len(target["labels"]) == len(target["ignore"])


def test_boxes_stay_inside_and_never_lose_their_area():
    transform = ssd(INPUT, crop=0.6, expand=0.4, vertical_flip=0.5)
    rng = np.random.default_rng(0)
    for seed in range(200):
        corner = rng.uniform(0, (199, 149), (20, 2))
        far = np.minimum(corner + rng.choice([1e-4, 0.01, 1, 50], (20, 2)), (200, 150))
        boxes = np.concatenate([corner, far], axis=1).astype(np.float32)
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
        several = {"boxes": boxes, "labels": np.arange(len(boxes)), "ignore": np.zeros(len(boxes), bool)}
        _, target = transform(rectangle((0, 0, 9, 9), **several), seed)
        assert (target["boxes"][:, :2] < target["boxes"][:, 2:]).all()
        assert (target["boxes"] >= 0).all()
        assert (target["boxes"] <= np.array([*SIZE[::-1]] * 2)).all()


def test_crop_keeps_the_centre_of_some_object():
    transform = augmentation(crop=1.0)
    for seed in range(150):
        _, target = transform(rectangle((2, 2, 14, 12)), seed)
        assert (~target["ignore"]).any()


def test_crop_covers_as_much_of_some_object_as_was_asked():
    corners = np.zeros((150, 200), np.uint8)
    for number, (x, y) in enumerate([(80, 60), (116, 60), (80, 86), (116, 86)], 1):
        corners[y : y + 4, x : x + 4] = number
    transform = augmentation(crop=1.0, covered=(1.0,))
    for seed in SEEDS:
        _, target = transform(rectangle((80, 60, 120, 90), mask=corners), seed)
        assert set(np.unique(target["mask"])) == {0, 1, 2, 3, 4}


def test_crop_does_cut():
    transform = augmentation(crop=1.0)
    shares = [(transform(rectangle((50, 40, 150, 110)), seed)[1]["mask"] == 1).mean() for seed in SEEDS]
    assert max(shares) > 0.6
    assert len({round(share, 3) for share in shares}) > 30


def test_object_whose_centre_is_cut_off_becomes_ignored():
    transform = augmentation(crop=1.0)
    both = {
        "boxes": np.array([[10, 10, 60, 60], [120, 80, 190, 140]], np.float32),
        "labels": np.array([0, 1]),
        "ignore": np.array([False, False]),
    }
    flags = np.concatenate([transform(rectangle((10, 10, 60, 60), **both), seed)[1]["ignore"] for seed in SEEDS])
    assert flags.any()
    assert not flags.all()


def test_ignored_object_stays_ignored():
    transform = augmentation(**GEOMETRY["everything"])
    for seed in SEEDS:
        _, target = transform(rectangle((40, 30, 120, 110), ignore=np.array([True])), seed)
        assert target["ignore"].all()


def test_same_seed_same_result_whatever_came_before():
    arguments = {"crop": 0.5, "expand": 0.4, "photometric": 1.0, "flip": 0.5}
    first, second = augmentation(**arguments), augmentation(**arguments)
    sample = rectangle((40, 30, 120, 110))
    second(sample, 99)
    for seed in range(20):
        (image, target), (again, other) = first(sample, seed), second(sample, seed)
        assert_array_equal(image, again)
        assert target.keys() == other.keys()
        for key, value in target.items():
            assert_array_equal(value, other[key])


def test_seeds_differ():
    transform = augmentation(crop=1.0)
    assert len({transform(rectangle((40, 30, 120, 110)), seed)[0].tobytes() for seed in range(20)}) == 20


def test_sample_is_left_alone():
    sample = rectangle((40, 30, 120, 110))
    before = {"image": sample.image.copy(), **{key: value.copy() for key, value in sample.target.items()}}
    augmentation(crop=1.0, photometric=1.0, flip=1.0)(sample, 0)
    for key, value in {"image": sample.image, **sample.target}.items():
        assert_array_equal(value, before[key])


def test_photometric_changes_colours_and_no_geometry():
    transform = augmentation(photometric=1.0)
    sample = rectangle((40, 30, 120, 110))
    plain, expected = resize(sample, SIZE)
    image, target = transform(sample, 1)
    assert (image != plain).any()
    np.testing.assert_allclose(target["boxes"], expected["boxes"], atol=1e-3)
    assert_array_equal(target["mask"], expected["mask"])


@pytest.mark.parametrize("arguments", GEOMETRY.values(), ids=GEOMETRY)
def test_no_boxes_is_not_the_same_as_not_annotated(arguments: dict[str, float]):
    transform = augmentation(**arguments)
    nothing = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64), "ignore": np.zeros(0, bool)}
    for seed in range(5):
        image, target = transform(rectangle((0, 0, 9, 9), **nothing), seed)
        assert image.shape == (*SIZE, 3)
        assert [target[key].shape for key in ("boxes", "labels", "ignore")] == [(0, 4), (0,), (0,)]
        assert transform(Sample(np.zeros((50, 50, 3), np.uint8), {}, 1), seed)[1] == {}


def test_tiny_and_one_sided_images_can_be_augmented():
    transform = augmentation(**GEOMETRY["everything"])
    for shape in ((1, 1), (1, 300), (300, 1)):
        for seed in range(10):
            whole = (0, 0, shape[1], shape[0])
            image, _ = transform(rectangle(whole, shape=shape), seed)
            assert image.shape == (*SIZE, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"crop": 0.7, "expand": 0.4},
        {"crop": -0.1},
        {"flip": 1.1},
        {"vertical_flip": -1},
        {"photometric": 2},
        {"area": (0, 1)},
        {"area": (0.5, 0.4)},
        {"area": (0.5, 1.5)},
        {"ratio": (0, 1)},
        {"ratio": (2, 1)},
        {"most": 0.5},
        {"covered": ()},
        {"covered": (0.5, 1.5)},
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any]):
    problems = AUGMENTATIONS.bind("ssd", arguments, place="data.augment")[1]
    assert len(problems) == 1
    assert problems[0].startswith(f"data.augment.args.{next(iter(arguments))}")


def test_resize_scales_boxes_and_mask():
    image, target = resize(rectangle((50, 30, 100, 90)), (300, 100))
    assert image.shape == (300, 100, 3)
    assert_array_equal(target["boxes"], np.array([[25, 60, 50, 180]], np.float32))
    assert_array_equal(bounds(target["mask"]), [25, 60, 50, 180])


def test_none_only_resizes():
    sample = rectangle((40, 30, 120, 110))
    (image, target), (expected, other) = none(INPUT)(sample, 5), resize(sample, SIZE)
    assert_array_equal(image, expected)
    assert_array_equal(target["boxes"], other["boxes"])


def test_stretch_to_the_same_size_changes_nothing():
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    assert_array_equal(stretch(image, (20, 30)), image)


def tensorflow_resize(image: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """TensorFlow 1's ResizeBilinear with align_corners and half_pixel_centers false, in float64."""
    rows, columns = (np.arange(new) * (old / new) for old, new in zip(image.shape, size, strict=False))
    y0, x0 = rows.astype(int), columns.astype(int)
    y1, x1 = np.minimum(y0 + 1, image.shape[0] - 1), np.minimum(x0 + 1, image.shape[1] - 1)
    down, right = (rows - y0)[:, None, None], (columns - x0)[None, :, None]
    pixels = image.astype(float)
    above = pixels[y0][:, x0] * (1 - right) + pixels[y0][:, x1] * right
    below = pixels[y1][:, x0] * (1 - right) + pixels[y1][:, x1] * right
    return above * (1 - down) + below * down


@pytest.mark.parametrize("size", [(30, 20), (61, 97), (17, 90), (1, 1)])
def test_corner_sampling_is_tensorflows(size: tuple[int, int]):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    resized = stretch(image, size, "corners")
    assert resized.dtype == np.uint8
    assert np.abs(resized - tensorflow_resize(image, size)).max() < 0.85


def test_training_samples_as_evaluation_does():
    y, x = np.mgrid[0:90, 0:130]
    image = np.stack([x + y, 200 - y, 90 + x // 2], axis=-1).astype(np.uint8)
    preprocess = Preprocess((48, 64), sampling="corners")
    sample = Sample(image, {}, 0)
    plain = ssd(preprocess, crop=0.0, expand=0.0, flip=0.0, photometric=0.0)
    shown, _ = plain(sample, 0)
    expected = stretch(image, (48, 64), "corners").astype(int)
    assert np.abs(shown - expected).max() <= 1
    centred, _ = ssd(Preprocess((48, 64)), crop=0.0, expand=0.0, flip=0.0, photometric=0.0)(sample, 0)
    assert np.abs(centred - expected).mean() > 0.4
