"""Anchors of the Object Detection API: its defaults, and those of a graph that holds only the boxes themselves."""

from __future__ import annotations

import math

import numpy as np

from mnv2det.convert.tensorflow.variables import Variables
from mnv2det.ops.anchors import Shape, level_shapes

BOXES = "Postprocessor/ExpandDims"  # (1, anchors, 4): y, x of two corners, relative to the picture
CLOSE = 0.008  # of the picture: sides that differ less are equal, since boxes in uint8 are no more exact


def default_anchors(levels: int) -> list[list[Shape]]:
    """The (scale, ratio) pairs of every level that the API's default configuration has; it writes a third as .3333."""
    return [[(scale, round(ratio, 4)) for scale, ratio in level] for level in level_shapes(levels)]


def anchors_of_boxes(variables: Variables, counts: list[int]) -> list[list[Shape]] | None:
    """The (scale, ratio) pairs of every level, from the boxes that a converter computed in advance.

    Args:
        variables: Of a graph.
        counts: Anchors per cell of every level.

    Returns:
        None where the graph has no such boxes, or others than these levels have.
    """
    boxes, size = variables.arrays.get(BOXES), variables.input_size()
    if boxes is None or size is None or boxes.dtype.kind != "f":
        return None
    cells = [math.prod(math.ceil(side / 2 ** (4 + level)) for side in size) for level in range(len(counts))]
    if boxes.shape != (1, sum(math.prod(pair) for pair in zip(cells, counts, strict=True)), 4):
        return None
    levels, start = [], 0
    for number, count in zip(cells, counts, strict=True):
        part = boxes[0, start : start + number * count].astype(np.float64).reshape(number, count, 4)
        start += number * count
        # all cells have the same sides; their mean is more exact than any of them where they were quantised
        sides = (part[..., 2:] - part[..., :2]).mean(0) * size
        if not (np.isfinite(sides).all() and (sides > 0).all()):
            return None
        levels.append([(math.sqrt(height * width) / min(size), width / height) for height, width in sides.tolist()])
    defaults = default_anchors(len(counts))
    return (
        defaults if _are_close(levels, defaults) else [[(_short(s), _short(r)) for s, r in level] for level in levels]
    )


def _are_close(levels: list[list[Shape]], others: list[list[Shape]]) -> bool:
    if [len(level) for level in levels] != [len(level) for level in others]:
        return False
    sides, expected = (
        np.array([(scale * math.sqrt(ratio), scale / math.sqrt(ratio)) for level in shapes for scale, ratio in level])
        for shapes in (levels, others)
    )
    return bool(np.abs(sides - expected).max() < CLOSE)


def _short(value: float) -> float:
    return float(f"{value:.5g}")
