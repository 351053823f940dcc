"""Boxes on pictures, and pictures in a grid."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mnv2det.structures import Detections

Image = NDArray[np.uint8]


def color_of(label: int) -> tuple[int, int, int]:
    """RGB of a class: neighbouring ids get distant hues."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


def draw_boxes(
    image: Image,
    boxes: NDArray[Any],
    labels: NDArray[Any],
    names: Sequence[str],
    *,
    scores: NDArray[Any] | None = None,
    text: bool = True,
) -> Image:
    """A copy of the image with boxes on it.

    Args:
        image: uint8 (H, W, 3), RGB.
        boxes: (N, 4) xyxy in its pixels.
        labels: (N,).
        names: Class names.
        scores: (N,), written behind the name.
        text: Whether names are written at all.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    canvas = np.ascontiguousarray(image).copy()
    unit = max(1, round(min(image.shape[:2]) / 300))
    size = 0.4 * unit
    # worst first, so that the best lies on top
    for number in range(len(boxes))[::-1]:
        color = color_of(int(labels[number]))
        x1, y1, x2, y2 = (round(float(value)) for value in boxes[number])
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, unit)
        if not text:
            continue
        label = names[int(labels[number])] + (f" {float(scores[number]):.2f}" if scores is not None else "")
        (width, height), base = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, size, unit)
        # inside the image, also for a box at its top or right edge
        x, y = max(0, min(x1, image.shape[1] - width)), max(y1, height + base)
        cv2.rectangle(canvas, (x, y - height - base), (x + width, y), color, cv2.FILLED)
        ink = (0, 0, 0) if sum(color) > 382 else (255, 255, 255)
        cv2.putText(canvas, label, (x, y - base // 2), cv2.FONT_HERSHEY_SIMPLEX, size, ink, unit, cv2.LINE_AA)
    return canvas


def draw_detections(image: Image, found: Detections, names: Sequence[str], *, threshold: float = 0.0) -> Image:
    """A copy of the image with the detections that score at least ``threshold``."""
    kept = found.scores >= threshold
    return draw_boxes(
        image,
        found.boxes[kept].cpu().numpy(),
        found.labels[kept].cpu().numpy(),
        names,
        scores=found.scores[kept].cpu().numpy(),
    )


def title(image: Image, text: str) -> Image:
    """The image with a line of text above it."""
    bar = np.full((24, image.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, text, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([bar, image])


def grid(images: Sequence[Image], *, columns: int, gap: int = 4) -> Image:
    """Images of any size in rows, each put into a cell of the largest's size."""
    height = max(image.shape[0] for image in images) + gap
    width = max(image.shape[1] for image in images) + gap
    rows = -(-len(images) // columns)
    canvas = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * height, number % columns * width
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def encode(image: Image, suffix: str) -> bytes:
    """The picture file's bytes.

    Args:
        image: uint8 (H, W, 3), RGB.
        suffix: ``.jpg``, ``.png`` ...
    """
    done, data = cv2.imencode(suffix, image[:, :, ::-1])
    assert done
    return data.tobytes()
