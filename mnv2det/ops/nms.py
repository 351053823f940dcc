"""Per-class non-maximum suppression that looks at no more candidates than it needs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Candidates = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]  # boxes, scores, labels
GROUP = 16  # rows of which only the best value is looked at when bounding the best of all


def class_nms(
    boxes: Tensor | Callable[[NDArray[np.int64]], NDArray[np.float32]],
    scores: Tensor,
    *,
    threshold: float,
    iou: float,
    keep: int,
    first: int = 192,
    skip: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``keep`` boxes after NMS within each class.

    Greedy NMS decides on a box from better-scored ones alone, so the survivors among the best n
    candidates are those of the whole: n grows until ``keep`` survive or no candidate is left. NumPy
    does what is not suppression: on so few rows the calls are what takes time.

    Args:
        boxes: float (A, 4) xyxy, or a function that computes those of given rows, int64 (n,).
        scores: float32 (A, skip + K), on the CPU; logits do as well.
        threshold: Scores up to this are no candidates.
        iou: Boxes of a class that overlap a better one by more are suppressed.
        keep: Most boxes returned.
        first: Candidates looked at first, and added each time.
        skip: Columns before the first class's.

    Returns:
        boxes (N, 4), scores (N,) falling, labels int64 (N,).
    """
    values = np.ascontiguousarray(scores.detach().numpy())
    pick = boxes.detach().numpy().__getitem__ if isinstance(boxes, Tensor) else boxes
    flat, columns, count, place = values.reshape(-1), values.shape[1], 2 * first, 0
    index, all_seen = _best(values, count, threshold, skip)
    found: Candidates | None = None
    while True:
        if place == len(index) and not all_seen:
            count *= 4
            index, all_seen = _best(values, count, threshold, skip)
        at = index[place : place + first]
        place += len(at)
        row = at // columns
        new = (pick(row), flat[at], at - row * columns - skip)
        # those already kept are better than the new ones, and those already suppressed no longer matter
        found = _suppress(new if found is None else _join(found, new), iou, keep)
        if len(found[0]) >= keep or (place == len(index) and all_seen):
            return torch.from_numpy(found[0]), torch.from_numpy(found[1]), torch.from_numpy(found[2])


def _join(first: Candidates, second: Candidates) -> Candidates:
    return (
        np.concatenate([first[0], second[0]]),
        np.concatenate([first[1], second[1]]),
        np.concatenate([first[2], second[2]]),
    )


def _suppress(candidates: Candidates, iou: float, keep: int) -> Candidates:
    """The best ``keep`` of boxes, scores and labels after NMS within each class."""
    from torchvision.ops import nms

    boxes, scores, labels = candidates
    # float64: the offset that keeps classes apart must not blur the coordinates
    exact = boxes.astype(np.float64)
    if len(exact):
        exact += (labels * (np.abs(exact).max() * 2 + 1))[:, None]
    kept = nms(torch.from_numpy(exact), torch.from_numpy(scores.astype(np.float64)), iou).numpy()[:keep]
    return boxes[kept], scores[kept], labels[kept]


def _best(values: NDArray[np.float32], count: int, threshold: float, skip: int) -> tuple[NDArray[np.int64], bool]:
    """Flat places of the best ``count`` values above the threshold, falling; whether these are all.

    The best values of disjoint groups are that many different ones, so the ``count``-th largest of
    them bounds the ``count``-th largest of all, and values above it are in groups whose best is: most
    values are read only once.
    """
    rows, columns = values.shape
    groups = rows // GROUP
    flat, bound = values.reshape(-1), -np.inf
    if groups * (columns - skip) > count:
        inside = flat[: groups * GROUP * columns].reshape(GROUP, groups * columns)
        tops = inside.max(axis=0)
        tops.reshape(groups, columns)[:, :skip] = -np.inf
        bound = float(np.partition(tops, -count)[-count])
    if bound > threshold:
        group = np.flatnonzero(tops >= bound)
        member, which = np.nonzero(inside[:, group] >= bound)
        index = member * (groups * columns) + group[which]
        # rows that fill no group
        rest = values[groups * GROUP :] >= bound
        rest[:, :skip] = False
        index = np.concatenate([index, np.flatnonzero(rest) + groups * GROUP * columns])
    else:
        above = values > threshold
        above[:, :skip] = False
        index = np.flatnonzero(above)
    all_seen = bound <= threshold and len(index) <= count
    # equal values by their place, so that more of them begin with the same
    return index[np.argsort(-flat[index], kind="stable")[:count]], all_seen
