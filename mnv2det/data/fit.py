"""Bringing a picture to the size of the network's input, as prediction and evaluation do."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mnv2det.data.dataset import Arrays
from mnv2det.ops.geometry import WEIGHT_ONE, place
from mnv2det.structures import Frame, Preprocess, Sample, Sampling


def resize(sample: Sample, size: tuple[int, int]) -> tuple[NDArray[np.uint8], Arrays]:
    """Stretches an image with its boxes and mask.

    Args:
        sample: The image and its target.
        size: (H, W).

    Returns:
        uint8 (H, W, 3), and the target in its pixels.
    """
    target = dict(sample.target)
    factor = np.array(size) / sample.image.shape[:2]
    if "boxes" in target:
        target["boxes"] = (target["boxes"] * np.tile(factor[::-1], 2)).astype(np.float32)
    if "mask" in target:
        # exact: the plain one takes pixels up to half a pixel left of and above their place
        target["mask"] = cv2.resize(target["mask"], size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return stretch(sample.image, size), target


def fit(image: NDArray[np.uint8], preprocess: Preprocess) -> tuple[NDArray[np.uint8], Frame]:
    """Brings a picture to the network's input, as its weights want it (`Preprocess.fit`).

    Args:
        image: uint8 (h, w, 3), RGB.
        preprocess: Of the model.

    Returns:
        uint8 of the input size, or larger for a picture that is larger and may not be scaled; and
        where the picture lies in it.
    """
    (height, width), size = preprocess.input_size, (image.shape[0], image.shape[1])
    scaled, corner, used = (
        (int(rows), int(columns)) for rows, columns in place(float(size[0]), float(size[1]), preprocess, np)
    )
    image = stretch(image, scaled, preprocess.sampling)
    if preprocess.fit == "crop":
        image = np.ascontiguousarray(image[corner[0] : corner[0] + height, corner[1] : corner[1] + width])
    bottom, right = max(height - used[0], 0), max(width - used[1], 0)
    if bottom or right:
        image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=preprocess.fill)  # type: ignore[assignment]
    return image, Frame(size, used)


def stretch(
    image: NDArray[np.uint8], size: tuple[int, int], sampling: Sampling = Preprocess.sampling
) -> NDArray[np.uint8]:
    """Resizes uint8 (h, w, 3) to (H, W, 3), bilinear; for ``sampling`` see `Preprocess`."""
    if image.shape[:2] == tuple(size):
        return image
    if sampling == "corners":
        return _stretch_corners(image, size)
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def _stretch_corners(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resizes as TensorFlow 1 does, to whole numbers; `mnv2det.export.ops.fit` computes the same in a graph."""
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
