import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from mnv2det.data.shapes import NAMES, Shapes
from mnv2det.registry import DATASETS
from mnv2det.structures import Sample

SMALL: dict[str, Any] = {"count": 40, "size": (64, 80)}


def digest(sample: Sample) -> str:
    found = hashlib.sha256(sample.image.tobytes())
    for key in sorted(sample.target):
        found.update(sample.target[key].tobytes())
    return found.hexdigest()


def assert_same(first: Sample, second: Sample) -> None:
    assert_array_equal(first.image, second.image)
    assert first.target.keys() == second.target.keys()
    for key, value in first.target.items():
        assert_array_equal(value, second.target[key])


def test_sample_has_the_documented_types():
    sample = Shapes(**SMALL).read(3)
    assert (sample.image.shape, sample.image.dtype, sample.image_id) == ((64, 80, 3), np.uint8, 3)
    kinds = {key: (value.dtype.name, value.ndim) for key, value in sample.target.items()}
    expected = {"boxes": ("float32", 2), "labels": ("int64", 1), "ignore": ("bool", 1), "area": ("float32", 1)}
    assert kinds == {**expected, "mask": ("uint8", 2)}


def test_image_does_not_depend_on_what_was_read_before():
    data = Shapes(**SMALL)
    data.read(0)
    assert_same(data.read(7), Shapes(**SMALL).read(7))


@pytest.mark.process
def test_another_process_draws_the_same(root: Path):
    code = (
        "import hashlib; from mnv2det.data.shapes import Shapes\n"
        "sample = Shapes(count=40, size=(64, 80)).read(5); found = hashlib.sha256(sample.image.tobytes())\n"
        "[found.update(sample.target[key].tobytes()) for key in sorted(sample.target)]; print(found.hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(Shapes(**SMALL).read(5))


def test_splits_seeds_and_indices_all_differ():
    datasets = [Shapes(**SMALL, split=split, seed=seed) for split in ("train", "val", "test") for seed in (0, 1)]
    found = {digest(data.read(index)) for data in datasets for index in range(5)}
    assert len(found) == 30


def test_count_does_not_change_the_images():
    assert_same(Shapes(size=(64, 64), count=10).read(4), Shapes(size=(64, 64), count=1000).read(4))


def test_index_beyond_the_count():
    data = Shapes(**SMALL)
    assert len(data) == 40
    for index in (-1, 40):
        with pytest.raises(IndexError):
            data.read(index)


def test_a_single_shape_is_bounded_exactly_and_never_ignored():
    data = Shapes(**SMALL, most=1)
    for index in range(len(data)):
        target = data.read(index).target
        ys, xs = np.nonzero(target["mask"])
        assert_array_equal(target["boxes"], [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]])
        assert_array_equal(target["area"], [len(ys)])
        assert_array_equal(target["ignore"], [False])
        assert_array_equal(np.unique(target["mask"][ys, xs]), target["labels"] + 1)


def test_every_side_of_a_box_touches_pixels_of_its_class():
    data = Shapes(**SMALL, most=8)
    for index in range(len(data)):
        target = data.read(index).target
        for (x1, y1, x2, y2), label in zip(target["boxes"].astype(int), target["labels"], strict=True):
            own = target["mask"][y1:y2, x1:x2] == label + 1
            assert own[0].any()
            assert own[-1].any()
            assert own[:, 0].any()
            assert own[:, -1].any()


def test_areas_of_a_class_add_up_to_its_pixels():
    data = Shapes(**SMALL, most=8)
    for index in range(len(data)):
        target = data.read(index).target
        for label in range(len(NAMES)):
            pixels = np.count_nonzero(target["mask"] == label + 1)
            assert target["area"][target["labels"] == label].sum() == pixels


def test_shapes_differ_in_colour_from_the_ground():
    data = Shapes(**SMALL, most=1)
    for index in range(len(data)):
        sample = data.read(index)
        inner = sample.target["mask"] > 0
        ring = np.zeros_like(inner)
        x1, y1, x2, y2 = sample.target["boxes"][0].astype(int)
        ring[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3] = True
        ring &= ~inner
        difference = np.abs(sample.image[inner].mean(axis=0) - sample.image[ring].mean(axis=0))
        assert difference.max() > 15


def test_all_classes_and_some_occlusion_occur():
    targets = [Shapes(**SMALL, most=8).target(index) for index in range(40)]
    assert set(np.concatenate([target["labels"] for target in targets])) == set(range(len(NAMES)))
    assert np.concatenate([target["ignore"] for target in targets]).any()


def test_hidden_shapes_are_ignored_by_the_visible_share():
    strict, lax = Shapes(**SMALL, most=8, min_visible=1.0), Shapes(**SMALL, most=8, min_visible=0.0)
    usual = Shapes(**SMALL, most=8)
    counts = [sum(int(data.target(index)["ignore"].sum()) for index in range(40)) for data in (lax, usual, strict)]
    assert counts[0] == 0
    assert counts[0] < counts[1] < counts[2]


def test_last_shape_is_never_ignored():
    # nothing lies over it
    data = Shapes(**SMALL, most=8, min_visible=1.0)
    assert not any(data.target(index)["ignore"][-1] for index in range(40))


def test_target_is_that_of_read_without_the_mask():
    data = Shapes(**SMALL)
    expected = data.read(2).target
    target = data.target(2)
    assert set(target) == {"boxes", "labels", "ignore", "area"}
    for key, value in target.items():
        assert_array_equal(value, expected[key])


def test_classes_of_boxes_and_mask():
    assert Shapes().classes == {"labels": list(NAMES), "mask": ["background", *NAMES]}


def test_names_may_be_the_class_list_itself():
    assert Shapes(names=NAMES).classes["labels"] == list(NAMES)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"split": "dev"}, "split: expected one of train, val, test, got 'dev'"),
        ({"count": 0}, "count: expected a whole number >= 1, got 0"),
        ({"most": 0}, "most: expected a whole number >= 1, got 0"),
        ({"size": (15, 64)}, "size[0]: expected a whole number from 16 to 16384, got 15"),
        ({"scale": (0.5, 0.4)}, "scale: expected the smaller number first, got [0.5, 0.4]"),
        ({"scale": (0.01, 0.4)}, "scale[0]: expected a number from 0.02 to 1, got 0.01"),
        ({"scale": (0.1, 1.1)}, "scale[1]: expected a number from 0.02 to 1, got 1.1"),
        ({"seed": -1}, "seed: expected a whole number >= 0, got -1"),
        ({"min_visible": 1.5}, "min_visible: expected a number from 0 to 1, got 1.5"),
        ({"min_visible": float("nan")}, "min_visible: expected a number from 0 to 1, got nan"),
        ({"names": ("circle",)}, "names: its classes are circle, cross, ring, square, triangle; got circle"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], expected: str):
    assert DATASETS.bind("shapes", arguments, place="data.train")[1] == [f"data.train.args.{expected}"]
