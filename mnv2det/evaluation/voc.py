"""Average precision as PASCAL VOC's development kit computes it, vectorised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mnv2det.errors import ConfigError
from mnv2det.evaluation.boxes import AnnotatedBoxes, BoxEvaluator, DetectedBoxes
from mnv2det.evaluation.evaluator import check_choice, mean_of_defined
from mnv2det.ranges import PositiveShare
from mnv2det.registry import EVALUATORS

Style = Literal["area", "11point"]

BLOCK = 16384  # detections compared at once: bounds the memory of their pairs with truths
HIT, MISS, NEITHER = 1, 0, -1


@EVALUATORS.register("voc_ap")
class VocAP(BoxEvaluator):
    """VOC's mean average precision and ``AP50/<class>``; both are named after ``iou``.

    Args:
        classes: Class names.
        style: ``area`` under the monotone envelope (VOC2010 on) or the mean at ``11point`` recalls
            (VOC2007).
        iou: Overlap from which a box counts as found, above 0 up to 1.
    """

    main = "AP50"

    def __init__(self, *, classes: Sequence[str], style: Style = "area", iou: PositiveShare = 0.5) -> None:
        super().__init__(classes=classes)
        self.style: Style = style
        self.iou = iou
        self.main = metric_name(iou)

    def compute(self) -> dict[str, float]:
        """The metrics of all records; see `voc_metrics`."""
        return voc_metrics(*self.tables(), classes=self.classes, style=self.style, iou=self.iou)


def voc_metrics(
    annotated: AnnotatedBoxes,
    detected: DetectedBoxes,
    *,
    classes: Sequence[str],
    style: Style = "area",
    iou: float = 0.5,
) -> dict[str, float]:
    """Average precision per class and its mean.

    As in the development kit, a box is compared with the annotation of its class that it overlaps
    most, whether that is difficult or not and taken or not. A difficult one makes the box count
    neither way, a taken one makes it a miss. Difficult annotations are not objects to be found. Boxes
    are continuous: the kit's ``x2 - x1 + 1`` on 1-based inclusive pixels is ``x2 - x1`` once ``x1``
    became ``xmin - 1``.

    Args:
        annotated: Annotated boxes; ``ignore`` is VOC's difficult.
        detected: Detected boxes; among equal scores the earlier row comes first.
        classes: Names of labels 0 ... K-1.
        style: ``area`` or ``11point``.
        iou: Least overlap.

    Returns:
        For ``iou`` .5, ``AP50`` and ``AP50/<class>``, 0 to 1. A class without objects is -1 and
        left out of the mean.

    Raises:
        ConfigError: A setting is wrong.
    """
    _check_settings(style, iou)
    detected = detected.pick(np.argsort(-detected.score, kind="stable"))
    outcome = _outcomes(annotated, detected, iou)
    objects = np.bincount(annotated.label[~annotated.ignore], minlength=len(classes)).tolist()
    values = [-1.0] * len(classes)
    for label, count in enumerate(objects):
        if count:
            counted = outcome[(detected.label == label) & (outcome != NEITHER)]
            values[label] = _average_precision(counted == HIT, count, style)
    main = metric_name(iou)
    return {main: mean_of_defined(values)} | {
        f"{main}/{name}": value for name, value in zip(classes, values, strict=True)
    }


def metric_name(iou: float) -> str:
    """``AP50`` for .5."""
    return f"AP{round(iou * 100)}"


def _check_settings(style: str, iou: float) -> None:
    check_choice(style, get_args(Style), "voc_ap: no style")
    if not 0 < iou <= 1:
        raise ConfigError(f"voc_ap: iou must be above 0 and at most 1, got {iou}")


def _outcomes(annotated: AnnotatedBoxes, detected: DetectedBoxes, iou: float) -> NDArray[np.int8]:
    """HIT, MISS or NEITHER for each detection; these come sorted, best score first."""
    count = len(detected.score)
    blocks = np.array_split(np.arange(count), max(1, -(-count // BLOCK)))
    matches = [_best_matches(annotated, detected.pick(rows)) for rows in blocks]
    overlap, match = (np.concatenate(columns) for columns in zip(*matches, strict=True))
    outcome = np.full(len(overlap), MISS, np.int8)
    reached = np.flatnonzero(overlap >= iou)
    difficult = annotated.ignore[match[reached]]
    outcome[reached[difficult]] = NEITHER
    claims = reached[~difficult]
    _, first = np.unique(match[claims], return_index=True)
    outcome[claims[first]] = HIT
    return outcome


def _best_matches(annotated: AnnotatedBoxes, detected: DetectedBoxes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The annotation of the same image and class that each detection overlaps most.

    Returns:
        IoU float64 (N,), -1 where there is no such annotation; its row int64 (N,), the first of
        several that overlap the same, -1 where there is none.
    """
    best = np.full(len(detected.score), -1.0)
    match = np.full(len(detected.score), -1, np.int64)
    # Sorted by image and class, the candidates of one detection are neighbours.
    labels = 1 + max(annotated.label.max(initial=0), detected.label.max(initial=0))
    keys = annotated.image * labels + annotated.label
    order = np.argsort(keys, kind="stable")
    wanted = detected.image * labels + detected.label
    first, end = (np.searchsorted(keys[order], wanted, side) for side in ("left", "right"))
    rows = np.flatnonzero(end > first)
    if not rows.size:
        return best, match
    # All pairs in one list, detection after detection; start = where each one's pairs begin.
    count = (end - first)[rows]
    start = np.cumsum(count) - count
    candidate = order[np.arange(count.sum()) - np.repeat(start - first[rows], count)]
    overlap = _iou(detected.boxes[np.repeat(rows, count)], annotated.boxes[candidate])
    best[rows] = np.maximum.reduceat(overlap, start)
    at_best = np.flatnonzero(overlap == np.repeat(best[rows], count))
    match[rows] = candidate[at_best[np.searchsorted(at_best, start)]]
    return best, match


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU (N,) of xywh boxes, pair by pair; 0 where they do not meet."""
    ax, ay, aw, ah = a.T
    bx, by, bw, bh = b.T
    width = np.minimum(ax + aw, bx + bw) - np.maximum(ax, bx)
    height = np.minimum(ay + ah, by + bh) - np.maximum(ay, by)
    common = np.maximum(width, 0) * np.maximum(height, 0)
    union = aw * ah + bw * bh - common
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


def _average_precision(hits: NDArray[np.bool_], objects: int, style: Style) -> float:
    """Area under, or mean of, the precision that is still reached at each recall.

    Args:
        hits: bool (N,), best score first.
        objects: How many there are to find, at least 1.
        style: ``area`` or ``11point``.
    """
    counts = np.cumsum(hits)
    recall = counts / objects
    envelope = np.maximum.accumulate((counts / np.arange(1, len(hits) + 1))[::-1])[::-1]
    if style == "area":
        return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
    # Recalls are compared as floats, 3/10 falling short of .1 * 3: so do the kit and its ports.
    reached = np.searchsorted(recall, np.linspace(0, 1, 11), side="left")
    return float(np.append(envelope, 0.0)[reached].mean())
