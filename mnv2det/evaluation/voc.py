"""Average precision as PASCAL VOC's development kit computes it, vectorised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mnv2det.errors import ConfigError, near
from mnv2det.evaluation.coco import BoxEvaluator, Found, Truths
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
        truths, found = self.tables()
        return voc_metrics(truths, found, classes=self.classes, style=self.style, iou=self.iou)


def voc_metrics(
    truths: Truths, found: Found, *, classes: Sequence[str], style: Style = "area", iou: float = 0.5
) -> dict[str, float]:
    """Average precision per class and its mean.

    As in the development kit, a box is held against the truth of its class that it overlaps most,
    difficult or not, taken or not: a difficult one makes it count neither way, a taken one makes it
    a miss. Difficult truths are not objects to be found. Boxes are continuous: the kit's
    ``x2 - x1 + 1`` on 1-based inclusive pixels is ``x2 - x1`` once ``x1`` became ``xmin - 1``.

    Args:
        truths: Annotated boxes; ``ignore`` is VOC's difficult.
        found: Detected boxes; among equal scores the earlier row comes first.
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
    found = found.pick(np.argsort(-found.score, kind="stable"))
    outcome = _outcomes(truths, found, iou)
    objects = np.bincount(truths.label[~truths.ignore], minlength=len(classes)).tolist()
    values = [-1.0] * len(classes)
    for label, count in enumerate(objects):
        if count:
            counted = outcome[(found.label == label) & (outcome != NEITHER)]
            values[label] = _average_precision(counted == HIT, count, style)
    defined = [value for value in values if value >= 0]
    main = metric_name(iou)
    metrics = {main: float(np.mean(defined)) if defined else -1.0}
    return metrics | {f"{main}/{name}": value for name, value in zip(classes, values, strict=True)}


def metric_name(iou: float) -> str:
    """``AP50`` for .5."""
    return f"AP{round(iou * 100)}"


def _check_settings(style: str, iou: float) -> None:
    known = get_args(Style)
    if style not in known:
        raise ConfigError(f"voc_ap: no style '{style}'{near(style, known)}")
    if not 0 < iou <= 1:
        raise ConfigError(f"voc_ap: iou must be above 0 and at most 1, got {iou}")


def _outcomes(truths: Truths, found: Found, iou: float) -> NDArray[np.int8]:
    """HIT, MISS or NEITHER for each detection; these come sorted, best score first."""
    blocks = [_best_truths(truths, found.pick(rows)) for rows in _blocks(len(found.score))]
    overlap, truth = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    outcome = np.full(len(overlap), MISS, np.int8)
    reached = np.flatnonzero(overlap >= iou)
    difficult = truths.ignore[truth[reached]]
    outcome[reached[difficult]] = NEITHER
    claims = reached[~difficult]
    _, first = np.unique(truth[claims], return_index=True)
    outcome[claims[first]] = HIT
    return outcome


def _blocks(count: int) -> list[NDArray[np.int64]]:
    return np.array_split(np.arange(count), max(1, -(-count // BLOCK)))


def _best_truths(truths: Truths, found: Found) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The truth of the same image and class that each detection overlaps most.

    Returns:
        IoU float64 (N,), -1 where there is no such truth; row of the truth int64 (N,), the first of
        several that overlap the same, -1 where there is none.
    """
    best = np.full(len(found.score), -1.0)
    chosen = np.full(len(found.score), -1, np.int64)
    # Sorted by image and class, the candidates of one detection are neighbours.
    labels = 1 + max(truths.label.max(initial=0), found.label.max(initial=0))
    keys = truths.image * labels + truths.label
    order = np.argsort(keys, kind="stable")
    wanted = found.image * labels + found.label
    first, end = (np.searchsorted(keys[order], wanted, side) for side in ("left", "right"))
    rows = np.flatnonzero(end > first)
    if not rows.size:
        return best, chosen
    # All pairs in one list, detection after detection; start = where each one's pairs begin.
    count = (end - first)[rows]
    start = np.cumsum(count) - count
    candidate = order[np.arange(count.sum()) - np.repeat(start - first[rows], count)]
    overlap = _iou(found.boxes[np.repeat(rows, count)], truths.boxes[candidate])
    best[rows] = np.maximum.reduceat(overlap, start)
    at_best = np.flatnonzero(overlap == np.repeat(best[rows], count))
    chosen[rows] = candidate[at_best[np.searchsorted(at_best, start)]]
    return best, chosen


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
    found = np.cumsum(hits)
    recall = found / objects
    envelope = np.maximum.accumulate((found / np.arange(1, len(hits) + 1))[::-1])[::-1]
    if style == "area":
        return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
    # Recalls are compared as floats, 3/10 falling short of .1 * 3: so do the kit and its ports.
    reached = np.searchsorted(recall, np.linspace(0, 1, 11), side="left")
    return float(np.append(envelope, 0.0)[reached].mean())
