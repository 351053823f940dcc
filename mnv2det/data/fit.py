"""Bringing a picture to the size of the network's input, as prediction and evaluation do."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mnv2det.data.dataset import Arrays
from mnv2det.ops.geometry import place
from mnv2det.ops.resize import resize_corners
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
        return resize_corners(image, size)
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]
