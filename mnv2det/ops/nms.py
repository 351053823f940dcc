"""Non-maximum suppression within each class, once for eager use and once as tensor operations that can be traced."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Candidates = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]  # boxes, scores, labels
# Suppression in a graph: (boxes, scores, nms_iou, score_threshold, max_detections), as `suppress_greedily`.
Suppress = Callable[[Tensor, Tensor, float, float, int], Tensor]
GROUP = 16  # rows of which only the best score is read when the best scores of all are searched


def class_nms(
    boxes: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    scores: NDArray[np.float32],
    *,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
    first_class: int = 0,
    step: int = 192,
) -> Candidates:
    """Finds the best boxes that survive greedy NMS within each class.

    Greedy NMS decides on a box from better ones alone. So the survivors among the best n candidates are
    survivors among all, and n grows only until there are enough of them: few candidates are sorted, and
    the boxes of few rows are computed. Equal scores are taken in the order of their rows, then classes.

    Args:
        boxes: Computes the boxes float32 (n, 4), xyxy, of the given rows, int64 (n,).
        scores: (N, first_class + K), or anything that rises with the scores, such as logits.
        score_threshold: Candidates score above this.
        nms_iou: A box whose IoU with a better one of its class is larger is suppressed.
        max_detections: Most boxes returned.
        first_class: Columns before that of the first class; they are not read.
        step: Number of candidates by which n grows.

    Returns:
        Boxes float32 (n, 4), scores float32 (n,), descending, and labels int64 (n,).
    """
    columns, limit, start = scores.shape[1], 2 * step, 0
    flat = scores.reshape(-1)
    indices, complete = _highest(scores, limit, score_threshold, first_class)
    kept: Candidates | None = None
    while True:
        if start == len(indices) and not complete:
            limit *= 4
            indices, complete = _highest(scores, limit, score_threshold, first_class)
        index = indices[start : start + step]
        start += len(index)
        row = index // columns
        new = (boxes(row), flat[index], index - row * columns - first_class)
        # those kept so far are better than the new ones, and those suppressed so far no longer matter
        kept = _suppress(new if kept is None else _join(kept, new), nms_iou, max_detections)
        if len(kept[0]) >= max_detections or (start == len(indices) and complete):
            return kept


def suppress_greedily(
    boxes: Tensor, scores: Tensor, nms_iou: float, score_threshold: float, max_detections: int
) -> Tensor:
    """Does what `class_nms` does for a batch, by operations that can be traced.

    Args:
        boxes: float (B, N, 4), xyxy.
        scores: float (B, K, N), at least 0.
        nms_iou: As in `class_nms`.
        score_threshold: As in `class_nms`.
        max_detections: As in `class_nms`.

    Returns:
        ``scores`` where a box is kept, 0 elsewhere.
    """
    count = scores.shape[2]
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)
    numbers = torch.arange(count)

    def goes_on(step: Tensor, left: Tensor, kept: Tensor) -> Tensor:
        return (step < max_detections) & (left.max() > 0)

    def take_best(step: Tensor, left: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best, index = left.flatten(1).max(dim=1)
        number = (index % count)[:, None]
        box = boxes.gather(1, number[..., None].expand(-1, 1, 4))
        sides = torch.minimum(box[..., 2:], boxes[..., 2:]) - torch.maximum(box[..., :2], boxes[..., :2])
        shared = sides.clamp(min=0).prod(dim=-1)
        suppressed = (shared > nms_iou * (area + area.gather(1, number) - shared)) | (numbers == number)
        label = (index // count)[:, None, None].expand(-1, 1, count)
        left = left.scatter(1, label, torch.where(suppressed[:, None], 0.0, left.gather(1, label)))
        kept = kept.flatten(1).scatter(1, index[:, None], best[:, None]).view_as(kept)
        return step + 1, left, kept

    left = torch.where(scores > score_threshold, scores, 0.0).contiguous()
    state = (torch.zeros((), dtype=torch.int64), left, torch.zeros_like(left))
    if torch.compiler.is_exporting():
        return torch.while_loop(goes_on, take_best, state)[2]
    while goes_on(*state):
        state = take_best(*state)
    return state[2]


@functools.cache
def _nms_kernel() -> Callable[[Tensor, Tensor, float], Tensor]:
    """Torchvision's NMS, without its Python package if possible: importing that takes seconds, its kernels 3 ms."""
    spec = importlib.util.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else Path()
    for library in (*folder.glob("_C*.so"), *folder.glob("_C*.pyd")):
        try:
            torch.ops.load_library(library)
            kernel: Any = torch.ops.torchvision.nms
        except (OSError, AttributeError):
            continue
        return kernel
    from torchvision.ops import nms

    return nms


def _suppress(candidates: Candidates, nms_iou: float, max_detections: int) -> Candidates:
    """The best survivors of NMS within each class."""
    boxes, scores, labels = candidates
    # float64: the offset that keeps classes apart must not blur the coordinates
    shifted = boxes.astype(np.float64)
    if len(shifted):
        shifted += (labels * (np.abs(shifted).max() * 2 + 1))[:, None]
    kept = _nms_kernel()(torch.from_numpy(shifted), torch.from_numpy(scores.astype(np.float64)), nms_iou)
    index = kept.numpy()[:max_detections]
    return boxes[index], scores[index], labels[index]


def _join(first: Candidates, second: Candidates) -> Candidates:
    return (
        np.concatenate([first[0], second[0]]),
        np.concatenate([first[1], second[1]]),
        np.concatenate([first[2], second[2]]),
    )


def _highest(
    scores: NDArray[np.float32], count: int, threshold: float, first_class: int
) -> tuple[NDArray[np.int64], bool]:
    """Flat indices of the ``count`` highest scores above the threshold, descending, and whether none was left out.

    The highest scores of disjoint groups are that many different ones, so the ``count``-th highest of
    them bounds the ``count``-th highest of all, and scores above it are in groups whose highest is: most
    scores are read only once.
    """
    rows, columns = scores.shape
    groups = rows // GROUP
    flat, bound = scores.reshape(-1), -np.inf
    if groups * (columns - first_class) > count:
        grouped = flat[: groups * GROUP * columns].reshape(GROUP, groups * columns)
        highest = grouped.max(axis=0)
        highest.reshape(groups, columns)[:, :first_class] = -np.inf
        bound = float(np.partition(highest, -count)[-count])
    if bound > threshold:
        group = np.flatnonzero(highest >= bound)
        member, which = np.nonzero(grouped[:, group] >= bound)
        index = member * (groups * columns) + group[which]
        # rows that fill no group
        rest = scores[groups * GROUP :] >= bound
        rest[:, :first_class] = False
        index = np.concatenate([index, np.flatnonzero(rest) + groups * GROUP * columns])
    else:
        above = scores > threshold
        above[:, :first_class] = False
        index = np.flatnonzero(above)
    complete = bound <= threshold and len(index) <= count
    # equal scores in the order of their indices, so that a longer list begins like a shorter one
    return index[np.argsort(-flat[index], kind="stable")[:count]], complete
