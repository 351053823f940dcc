"""Bilinear resizing as TensorFlow 1 does it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mnv2det.ops.geometry import WEIGHT_ONE


def resize_corners(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resizes so that upper left corners of pixels lie over one another, to whole numbers.

    `mnv2det.graphs.ops.fit` computes the same in a graph.

    Args:
        image: uint8 (h, w, 3).
        size: (H, W) of the result.
    """
    (y0, y1, down0, down1), (x0, x1, right0, right1) = (
        _corner_neighbours(image.shape[axis], size[axis]) for axis in (0, 1)
    )
    mixed = []
    for y in (y0, y1):
        row = image[y].astype(np.int32)
        mixed.append((row[:, x0] * right0[:, None] + row[:, x1] * right1[:, None]) // 16)
    above, below = (row * down[:, None, None] // 65536 for row, down in zip(mixed, (down0, down1), strict=True))
    return ((above + below + 2) // 4).astype(np.uint8)


def _corner_neighbours(
    size: int, scaled: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Along one axis, the two pixels from which each pixel of the resized picture is mixed, and their weights."""
    at = (np.arange(scaled) * (size / scaled)).astype(np.float32)
    low = np.floor(at)
    share = at - low
    first, second = (np.minimum(low + step, size - 1).astype(np.int64) for step in (0, 1))
    return first, second, *((weight * WEIGHT_ONE).round().astype(np.int32) for weight in (1 - share, share))
