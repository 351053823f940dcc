"""Per-class non-maximum suppression that looks at no more candidates than it needs."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms


def class_nms(
    boxes: Tensor, scores: Tensor, *, threshold: float, iou: float, keep: int, first: int = 512
) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``keep`` boxes after NMS within each class.

    Greedy NMS decides on a box from better-scored ones alone, so the survivors among the best n
    candidates are those of the whole: n grows until ``keep`` survive or no candidate is left.

    Args:
        boxes: float (A, 4) xyxy.
        scores: float (A, K).
        threshold: Scores up to this are no candidates.
        iou: Boxes of a class that overlap a better one by more are suppressed.
        keep: Most boxes returned.
        first: Candidates looked at first.

    Returns:
        boxes (N, 4), scores (N,) falling, labels int64 (N,).
    """
    classes = scores.shape[1]
    flat = scores.flatten()
    total = int((flat > threshold).sum())
    # float64: the offset that keeps classes apart must not blur the coordinates
    offset = boxes.abs().max().double() * 2 + 1 if len(boxes) else boxes.new_zeros(()).double()
    count = min(first, total)
    while True:
        best, index = flat.topk(count)
        anchor, label = index // classes, index % classes
        chosen = boxes[anchor]
        kept = nms(chosen.double() + (label * offset)[:, None], best.double(), iou)[:keep]
        if len(kept) >= keep or count >= total:
            return chosen[kept], best[kept], label[kept]
        count = min(count * 4, total)


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
