"""Per-class non-maximum suppression that looks at no more candidates than it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

GROUP = 16  # rows of which only the best value is looked at when bounding the best of all


def class_nms(
    boxes: Tensor | Callable[[Tensor], Tensor],
    scores: Tensor,
    *,
    threshold: float,
    iou: float,
    keep: int,
    first: int = 256,
    skip: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``keep`` boxes after NMS within each class.

    Greedy NMS decides on a box from better-scored ones alone, so the survivors among the best n
    candidates are those of the whole: n grows until ``keep`` survive or no candidate is left.

    Args:
        boxes: float (A, 4) xyxy, or a function that computes those of given rows, int64 (n,).
        scores: float (A, skip + K), on the CPU; logits do as well.
        threshold: Scores up to this are no candidates.
        iou: Boxes of a class that overlap a better one by more are suppressed.
        keep: Most boxes returned.
        first: Candidates looked at first, and added each time.
        skip: Columns before the first class's.

    Returns:
        boxes (N, 4), scores (N,) falling, labels int64 (N,).
    """
    values = np.ascontiguousarray(scores.detach().numpy())
    flat, columns, count, place = torch.from_numpy(values).view(-1), values.shape[1], 2 * first, 0
    index, all_seen = _best(values, count, threshold, skip)
    found: tuple[Tensor, Tensor, Tensor] | None = None
    while True:
        if place == len(index) and not all_seen:
            count *= 4
            index, all_seen = _best(values, count, threshold, skip)
        at = torch.from_numpy(index[place : place + first])
        place += len(at)
        row = at // columns
        new = (boxes[row] if isinstance(boxes, Tensor) else boxes(row), flat[at], at % columns - skip)
        # those already kept are better than the new ones, and those already suppressed no longer matter
        joined = new if found is None else [torch.cat(pair) for pair in zip(found, new, strict=True)]
        found = _suppress(joined, iou, keep)
        if len(found[0]) >= keep or (place == len(index) and all_seen):
            return found


def _suppress(candidates: Sequence[Tensor], iou: float, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``keep`` of boxes, scores and labels after NMS within each class."""
    boxes, scores, labels = candidates
    # float64: the offset that keeps classes apart must not blur the coordinates
    exact = boxes.double()
    offset = exact.abs().max() * 2 + 1 if len(exact) else 0.0
    kept = nms(exact + (labels * offset)[:, None], scores.double(), iou)[:keep]
    return boxes[kept], scores[kept], labels[kept]


def _best(values: NDArray[Any], count: int, threshold: float, skip: int) -> tuple[NDArray[np.int64], bool]:
    """Flat places of the best ``count`` values above the threshold, falling; whether these are all.

    The best values of disjoint groups are that many different ones, so the ``count``-th largest of
    them bounds the ``count``-th largest of all: most values are read only twice, to be compared.
    """
    rows, columns = values.shape
    groups = rows // GROUP
    bound = -np.inf
    if groups * (columns - skip) > count:
        tops = values[: groups * GROUP].reshape(GROUP, -1).max(axis=0).reshape(groups, columns)[:, skip:]
        bound = float(np.partition(tops, -count, axis=None)[-count])
    above = values >= bound if bound > threshold else values > threshold
    above[:, :skip] = False
    index = np.flatnonzero(above)
    all_seen = bound <= threshold and len(index) <= count
    # equal values by their place, so that more of them begin with the same
    return index[np.argsort(-values.reshape(-1)[index], kind="stable")[:count]], all_seen


def clip(boxes: Tensor, size: tuple[float, float]) -> Tensor:
    """Boxes (..., 4) xyxy cut to an image of (H, W)."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
