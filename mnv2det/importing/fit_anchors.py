"""Levels and anchors fitted to the boxes of a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnv2det.ops.anchors import Shape, level_shapes

FINE = 40.0  # pixels: a tenth of the objects, or half of a class, below it needs a level of the finest stride
FINEST = 8  # that stride
PER_LEVEL = 3  # anchors of a level, on average
NATURAL = 3.5  # an anchor's side, in strides of the level it suits best
ENLARGED = 1.35  # what training's crops make of an object, beside its own size


class Levels(NamedTuple):
    """A detector's levels: taps of the backbone, channels of those behind it, and anchors (scale, ratio) of each."""

    taps: list[str]
    extras: list[int]
    anchors: list[list[Shape]]


def smallest_side(boxes: NDArray[np.float64], names: Sequence[str]) -> float:
    """Side of the objects that need the finest level: a tenth of all, or half of a class, is smaller; in pixels."""
    root = np.sqrt(boxes.prod(axis=1))
    medians = [float(np.median(root[[other == name for other in names]])) for name in set(names)]
    return min(float(np.quantile(root, 0.1)), *medians)


def fit_levels(boxes: NDArray[np.float64], names: Sequence[str], size: tuple[int, int]) -> Levels:
    """Levels and anchors for boxes.

    Anchor shapes are the centres of k-means with 1 - IoU as distance (Redmon and Farhadi, YOLO9000, section 2),
    over the boxes as they are and as training's crops enlarge them, rare classes counting more. Each goes to the level
    whose cells suit its size.

    Args:
        boxes: float64 (N, 2), width and height in pixels of the input.
        names: Their N classes.
        size: (H, W) of the input.
    """
    root = np.sqrt(boxes.prod(axis=1))
    taps = ["block14.expand/16", "last/32"]
    strides = [16, 32]
    if smallest_side(boxes, names) < FINE:
        taps, strides = ["block7.expand/8", *taps], [8, *strides]
    largest = min(float(np.quantile(root, 0.98)) * ENLARGED, float(min(size)))
    extras: list[int] = []
    while strides[-1] * NATURAL < largest and strides[-1] < min(size) / 2:
        strides.append(strides[-1] * 2)
        extras.append(256 if not extras else 128)
    counts = {name: names.count(name) for name in set(names)}
    weight = np.array([counts[name] ** -0.5 for name in names])
    both = np.minimum(np.concatenate([boxes, boxes * ENLARGED]), np.array(size[::-1]))
    centres = _k_means(both, np.tile(weight, 2), PER_LEVEL * len(strides))
    anchors: list[list[Shape]] = [[] for _ in strides]
    for width, height in centres.tolist():
        side = math.sqrt(width * height)
        level = int(np.argmin([abs(math.log(side / (NATURAL * stride))) for stride in strides]))
        anchors[level].append((round(side / min(size), 4), round(width / height, 3)))
    for shapes, stride in zip(anchors, strides, strict=True):
        if not shapes:  # a level needs one; it costs little
            shapes.append((round(min(NATURAL * stride / min(size), 0.95), 4), 1.0))
    return Levels(taps, extras, [sorted(shapes) for shapes in anchors])


def _k_means(boxes: NDArray[np.float64], weight: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """float64 (K, 2): centres of widths and heights; at most one for each distinct shape."""
    count = min(count, len(np.unique(boxes.round(), axis=0)))
    order = np.argsort(boxes.prod(axis=1), kind="stable")
    # it begins with shapes evenly spread over all sizes: nothing is drawn, so it repeats exactly
    centres = boxes[order[((np.arange(count) + 0.5) * len(order) / count).astype(np.int64)]]
    for _ in range(100):
        nearest = _shape_iou(boxes, centres).argmax(axis=1)
        moved = centres.copy()
        for number in range(count):
            own = nearest == number
            if own.any():
                moved[number] = np.exp(np.average(np.log(boxes[own]), axis=0, weights=weight[own]))
        if np.allclose(moved, centres, rtol=1e-4):
            break
        centres = moved
    return centres


def _shape_iou(boxes: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 (N, K): IoU of boxes and centres laid on one corner."""
    shared = np.minimum(boxes[:, None], centres[None]).prod(axis=2)
    iou: NDArray[np.float64] = shared / (boxes.prod(axis=1)[:, None] + centres.prod(axis=1)[None] - shared)
    return iou


def coverage(levels: Levels, boxes: NDArray[np.float64], size: tuple[int, int]) -> float:
    """Share of boxes that have an anchor of IoU 0.5 or more if they lie at the centre of a cell, as the best case.

    Args:
        levels: Whose anchors.
        boxes: float64 (N, 2), width and height in pixels of the input.
        size: (H, W) of the input.
    """
    shapes = np.array([shape for level in levels.anchors for shape in level])
    side = shapes[:, 0] * min(size)
    centres = np.stack([side * np.sqrt(shapes[:, 1]), side / np.sqrt(shapes[:, 1])], axis=1)
    return float((_shape_iou(boxes, centres).max(axis=1) >= 0.5).mean())


DEFAULT = Levels([], [], [list(level) for level in level_shapes(6)])
