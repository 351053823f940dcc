"""Boxes: without area, outside, beyond the border, drawn twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mnv2det.check.findings import Finding
from mnv2det.check.split import Split
from mnv2det.data.formats.records import Boxes

SLACK = 1.0  # pixels beyond the border that tools produce by rounding, or by counting from 0
SIMILAR = 0.9  # IoU of two boxes of one class that may be one object
SAME_PLACE = 0.95  # IoU of two boxes of different classes that may be one object
MOST_PARTNERS = 64  # neighbours that a box is compared with


def check_boxes(split: Split, sizes: NDArray[np.int64]) -> tuple[list[Finding], NDArray[np.bool_]]:
    """Judges all boxes of a part, by the rule of training, and looks for what training does not see.

    Args:
        split: What was read.
        sizes: int64 (P, 2), (H, W) of each picture; 0 where it is not known.

    Returns:
        Findings, and bool (N,): which boxes are there to be learned from or ignored.
    """
    records, boxes = split.records, split.records.boxes
    good = records.clipped(sizes).valid
    limit = sizes[boxes.image][:, ::-1]
    excess: NDArray[np.float64] = np.maximum(-boxes.corners[:, :2], boxes.corners[:, 2:] - limit).max(axis=1, initial=0)
    beyond = good & (limit > 0).all(axis=1) & (excess > SLACK)
    findings = [split.of_problem(problem) for _, problem in records.box_problems(sizes)]
    for row in np.flatnonzero(beyond).tolist():
        width, height = limit[row]
        findings.append(split.of_box("box_beyond", row, records.box_text(row), f"a box inside {width}x{height}"))
    findings += [
        split.of_box(records.ignored_as, row, records.box_text(row)) for row in np.flatnonzero(boxes.ignore).tolist()
    ]
    again = _drawn_twice(boxes, good)
    for row, first in again:
        value = f"{records.box_text(row)}, as annotation {boxes.ids[first]}"
        findings.append(split.of_box("box_duplicate", row, value, "each box once"))
    single = good & ~boxes.ignore
    single[[row for row, _ in again]] = False
    return findings + _coinciding(split, single), good & (boxes.labels_in(records.classes.get("labels", [])) >= 0)


def _drawn_twice(boxes: Boxes, good: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Boxes that are equal to an earlier one, with that one."""
    rows = np.flatnonzero(good)
    keys = np.column_stack([boxes.image[rows], boxes.label[rows], boxes.ignore[rows], np.round(boxes.corners[rows], 2)])
    order = np.lexsort(keys.T[::-1])
    same = np.concatenate([[False], (keys[order][1:] == keys[order][:-1]).all(axis=1)])[: len(order)]
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    return sorted((int(rows[order[again]]), int(rows[order[first[again]]])) for again in np.flatnonzero(same))


def _coinciding(split: Split, single: NDArray[np.bool_]) -> list[Finding]:
    records, boxes = split.records, split.records.boxes
    rows = np.flatnonzero(single)
    findings = []
    for first, second, iou in close_pairs(boxes.image[rows], boxes.corners[rows], SIMILAR):
        a, b = sorted((int(rows[first]), int(rows[second])))
        value = f"{records.box_text(b)} on {records.box_text(a)} of annotation {boxes.ids[a]}: IoU {iou:.2f}"
        if boxes.label[a] == boxes.label[b]:
            findings.append(split.of_box("box_similar", b, value))
        elif iou >= SAME_PLACE:
            findings.append(split.of_box("box_two_classes", b, value))
    return findings


def close_pairs(image: NDArray[np.int64], corners: NDArray[np.float64], least: float) -> list[tuple[int, int, float]]:
    """Pairs of boxes of one image with an IoU of at least ``least``, without comparing all with all.

    Args:
        image: int64 (N,).
        corners: float64 (N, 4), xyxy, with area.
        least: Above 0.5.

    Returns:
        Indices of both, and the IoU.
    """
    order = np.lexsort((corners[:, 0], image))
    image, corners = image[order], corners[order]
    sides = corners[:, 2:] - corners[:, :2]
    # in the order of their left edges: an IoU of t leaves these no further apart than that
    reach = (1 / least - 1) * sides[:, 0]
    alive = np.arange(len(image))
    pairs: list[tuple[int, int, float]] = []
    for shift in range(1, MOST_PARTNERS + 1):
        alive = alive[alive + shift < len(image)]
        other = alive + shift
        near = (image[other] == image[alive]) & (corners[other, 0] - corners[alive, 0] <= reach[alive])
        alive, other = alive[near], other[near]
        if not len(alive):
            break
        low = np.maximum(corners[alive, :2], corners[other, :2])
        high = np.minimum(corners[alive, 2:], corners[other, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        iou = shared / (sides[alive].prod(axis=1) + sides[other].prod(axis=1) - shared)
        hit = iou >= least
        pairs += zip(order[alive[hit]].tolist(), order[other[hit]].tolist(), iou[hit].tolist(), strict=True)
    return pairs
