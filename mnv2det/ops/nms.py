"""Per-class non-maximum suppression that looks at no more candidates than it needs."""

from __future__ import annotations

from collections.abc import Callable
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
) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``keep`` boxes after NMS within each class.

    Greedy NMS decides on a box from better-scored ones alone, so the survivors among the best n
    candidates are those of the whole: n grows until ``keep`` survive or no candidate is left.

    Args:
        boxes: float (A, 4) xyxy, or a function that computes those of given rows, int64 (n,).
        scores: float (A, K), on the CPU; logits do as well.
        threshold: Scores up to this are no candidates.
        iou: Boxes of a class that overlap a better one by more are suppressed.
        keep: Most boxes returned.
        first: Candidates looked at first.

    Returns:
        boxes (N, 4), scores (N,) falling, labels int64 (N,).
    """
    values, classes = scores.detach().numpy(), scores.shape[1]
    count = first
    while True:
        index, all_seen = _best(values, count, threshold)
        row, label = torch.from_numpy(index // classes), torch.from_numpy(index % classes)
        best = scores[row, label]
        chosen = boxes[row] if isinstance(boxes, Tensor) else boxes(row)
        # float64: the offset that keeps classes apart must not blur the coordinates
        exact = chosen.double()
        offset = exact.abs().max() * 2 + 1 if len(exact) else 0.0
        kept = nms(exact + (label * offset)[:, None], best.double(), iou)[:keep]
        if len(kept) >= keep or all_seen:
            return chosen[kept], best[kept], label[kept]
        count *= 4


def _best(values: NDArray[Any], count: int, threshold: float) -> tuple[NDArray[np.int64], bool]:
    """Flat places of the best ``count`` values above the threshold, falling; whether these are all.

    The best values of disjoint groups are that many different ones, so the ``count``-th largest of
    them bounds the ``count``-th largest of all: most values are read only twice, to be compared.
    """
    rows, classes = values.shape
    groups = rows // GROUP
    bound = -np.inf
    if groups * classes > count:
        tops = values[: groups * GROUP].reshape(groups, GROUP, classes).max(axis=1).ravel()
        bound = float(np.partition(tops, -count)[-count])
    index = np.flatnonzero(values >= bound if bound > threshold else values > threshold)
    found = values.reshape(-1)[index] if values.flags.c_contiguous else values[index // classes, index % classes]
    all_seen = bound <= threshold and len(index) <= count
    if len(index) > count:
        part = np.argpartition(found, -count)[-count:]
        index, found = index[part], found[part]
    return index[np.argsort(-found, kind="stable")], all_seen


def clip(boxes: Tensor, size: tuple[float, float]) -> Tensor:
    """Boxes (..., 4) xyxy cut to an image of (H, W)."""
    height, width = size
    return torch.stack(
        [
            boxes[..., 0].clamp(0, width),
            boxes[..., 1].clamp(0, height),
            boxes[..., 2].clamp(0, width),
            boxes[..., 3].clamp(0, height),
        ],
        dim=-1,
    )
