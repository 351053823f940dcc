from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mnv2det.ops.maps import enlarge, label, label_enlarged, sample
from mnv2det.structures import Frame


def slow_enlarge(grid: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Bilinear, first pixel on first and last on last, one pixel at a time."""
    (h, w), (height, width) = grid.shape, size
    result = np.zeros(size)
    for y in range(height):
        for x in range(width):
            down = y * (h - 1) / (height - 1) if height > 1 else 0.0
            right = x * (w - 1) / (width - 1) if width > 1 else 0.0
            top, left = min(int(down), max(h - 2, 0)), min(int(right), max(w - 2, 0))
            bottom, far = min(top + 1, h - 1), min(left + 1, w - 1)
            fy, fx = down - top, right - left
            upper = grid[top, left] * (1 - fx) + grid[top, far] * fx
            lower = grid[bottom, left] * (1 - fx) + grid[bottom, far] * fx
            result[y, x] = upper * (1 - fy) + lower * fy
    return result


def slow_label(maps: NDArray[np.float64], frame: Frame) -> NDArray[np.uint8]:
    """The class at the centre of every pixel of the picture, one pixel at a time."""
    (height, width), (h, w) = frame
    result = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            # a stretched picture's pixels have their centres at .5
            down = min(max((y + 0.5) * h / height - 0.5, 0.0), h - 1.0)
            right = min(max((x + 0.5) * w / width - 0.5, 0.0), w - 1.0)
            top, left = int(down), int(right)
            bottom, far = min(top + 1, h - 1), min(left + 1, w - 1)
            fy, fx = down - top, right - left
            upper = maps[:, top, left] * (1 - fx) + maps[:, top, far] * fx
            lower = maps[:, bottom, left] * (1 - fx) + maps[:, bottom, far] * fx
            result[y, x] = (upper * (1 - fy) + lower * fy).argmax()
    return result


@pytest.mark.parametrize(
    ("small", "large"), [((3, 4), (9, 13)), ((3, 4), (3, 4)), ((5, 5), (65, 65)), ((7, 6), (4, 5)), ((1, 1), (6, 5))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_enlarging_aligns_the_corners(small: tuple[int, int], large: tuple[int, int], dtype: torch.dtype) -> None:
    maps = torch.randn(2, 3, *small).to(dtype)
    found = enlarge(maps, large)
    assert found.dtype == torch.float32
    assert found.shape == (2, 3, *large)
    wanted = np.array([[slow_enlarge(grid.double().numpy(), large) for grid in image] for image in maps])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        if small != (1, 1):
            torch.testing.assert_close(found[..., corner[0], corner[1]], maps[..., corner[0], corner[1]].float())


@pytest.mark.parametrize(
    "frame",
    [
        Frame((24, 32), (24, 32)),  # the input itself
        Frame((48, 20), (24, 32)),  # stretched
        Frame((11, 50), (24, 32)),
        Frame((36, 36), (24, 24)),  # letterboxed
        Frame((10, 40), (8, 32)),
        Frame((13, 17), (13, 17)),  # padded
        Frame((1, 1), (1, 1)),
        Frame((5, 3), (1, 1)),
    ],
    ids=str,
)
def test_every_pixel_gets_the_class_of_its_place_in_the_input(frame: Frame) -> None:
    maps = torch.randn(1, 5, 24, 32)
    (found,) = label(maps, [frame])
    wanted = slow_label(maps[0].double().numpy(), frame)
    assert found.mask.dtype == torch.uint8
    assert tuple(found.mask.shape) == frame.size
    assert len(np.unique(wanted)) > 2 or frame.used == (1, 1)
    # where two classes tie to the last digit either is right
    assert (found.mask.numpy() == wanted).mean() > 0.998


def test_pictures_of_a_batch_have_sizes_of_their_own() -> None:
    maps = torch.randn(3, 4, 16, 16)
    frames = [Frame((16, 16), (16, 16)), Frame((9, 5), (9, 5)), Frame((30, 7), (16, 12))]
    for image, (found, frame) in enumerate(zip(label(maps, frames), frames, strict=True)):
        (alone,) = label(maps[image : image + 1], [frame])
        torch.testing.assert_close(found.mask, alone.mask, rtol=0, atol=0)
        assert tuple(found.mask.shape) == frame.size


def test_what_lies_beside_the_picture_is_never_seen() -> None:
    maps = torch.randn(1, 3, 16, 16)
    frame = Frame((22, 14), (11, 7))
    (before,) = label(maps, [frame])
    maps[:, 2, 11:], maps[:, 2, :, 7:] = 1e6, 1e6
    (after,) = label(maps, [frame])
    torch.testing.assert_close(after.mask, before.mask, rtol=0, atol=0)


def test_254_is_the_last_class() -> None:
    maps: Tensor = torch.zeros(1, 255, 2, 2)
    maps[0, 254, 0, 0] = 1
    (found,) = label(maps, [Frame((2, 2), (2, 2))])
    assert found.mask.tolist() == [[254, 0], [0, 0]]


@pytest.mark.parametrize("size", [(65, 49), (64, 50), (7, 9), (1, 1), (1, 30)], ids=str)
@pytest.mark.parametrize("step", [1, 2, 3, 8])
def test_sampling_gives_every_nth_of_the_enlarged(size: tuple[int, int], step: int) -> None:
    maps = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(sample(maps, size, step), enlarge(maps, size)[..., ::step, ::step], rtol=1e-4, atol=1e-4)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_labelling_tiles_finds_the_largest_of_the_enlarged(data: st.DataObject) -> None:
    whole = st.integers(1, 70)
    low, full, picture = (data.draw(st.tuples(side, side)) for side in (st.integers(1, 9), whole, whole))
    used = data.draw(st.sampled_from([full, tuple(data.draw(st.integers(1, n)) for n in full)]))
    size = data.draw(st.sampled_from([used, picture]))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    # from one class nearly everywhere to another at every position
    maps = torch.randn(2, data.draw(st.sampled_from([1, 2, 21])), *low) * data.draw(st.sampled_from([0.1, 1.0, 30.0]))
    maps[:, 0] += data.draw(st.sampled_from([0.0, 2.0]))
    frame = Frame(size, used)
    enlarged = enlarge(maps, full)[..., : used[0], : used[1]]
    if size != used:
        enlarged = F.interpolate(enlarged, size, mode="bilinear", align_corners=False)
    for found, wanted in zip(label_enlarged(maps, full, [frame] * 2), enlarged, strict=True):
        assert found.mask.dtype == torch.uint8
        assert tuple(found.mask.shape) == size
        short = wanted.amax(dim=0) - wanted.gather(0, found.mask.long()[None])[0]
        # where two classes tie to the last digits either is right
        assert float(short.max()) <= 1e-4 * float(wanted.abs().max())


def test_labelling_tiles_finds_a_class_that_is_largest_only_in_between() -> None:
    maps = torch.tensor([[[10.0, 0.0]], [[0.0, 10.0]], [[6.0, 6.0]]])[None]  # at no position is it the third
    frame = Frame((16, 33), (16, 33))
    (found,) = label_enlarged(maps, (16, 33), [frame])
    (wanted,) = label(enlarge(maps, (16, 33)), [frame])
    assert found.mask.unique().tolist() == [0, 1, 2]
    torch.testing.assert_close(found.mask, wanted.mask, rtol=0, atol=0)


def test_of_equal_classes_the_first_is_taken() -> None:
    frame = Frame((20, 40), (17, 33))
    (found,) = label_enlarged(torch.zeros(1, 21, 2, 3), (17, 33), [frame])
    assert not found.mask.any()
