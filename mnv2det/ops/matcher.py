"""Assigning anchors to boxes, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mnv2det.ops.boxes import area, intersection
from mnv2det.structures import Target

NEGATIVE, IGNORED = -1, -2  # what an anchor without a box has in place of the box's index


def match(
    anchors: Tensor, boxes: Tensor, valid: Tensor, ignore: Tensor, *, threshold: float = 0.5, overlap: float = 0.5
) -> Tensor:
    """Matches anchors to boxes as SSD does.

    An anchor is matched to the box with which its IoU is largest, if that is at least ``threshold``. Besides,
    every box gets the anchor with which its IoU is largest, whatever it is.

    Args:
        anchors: (A, 4) xyxy.
        boxes: (B, M, 4) xyxy, padded to the same M.
        valid: bool (B, M); False for padding. Boxes without area are not matched either.
        ignore: bool (B, M); crowds and difficult boxes. They are not matched, but an anchor of which they
            cover the share ``overlap`` is no negative.
        threshold: Least IoU of a match.
        overlap: See ``ignore``.

    Returns:
        int64 (B, A): index of the matched box, `NEGATIVE` or `IGNORED`. If two boxes have their largest IoU with
        the same anchor, the first of them gets it.
    """
    batch, count = boxes.shape[:2]
    if count == 0:
        return anchors.new_full((batch, len(anchors)), NEGATIVE, dtype=torch.int64)
    sizes = area(boxes)
    usable = valid & ~ignore & (sizes > 0)
    anchor_areas = area(anchors)
    shared = intersection(boxes, anchors)  # (B, M, A)
    iou = shared / (sizes[..., None] + anchor_areas - shared).clamp(min=1e-9)
    iou = torch.where(usable[..., None], iou, -1.0)

    best, matched = iou.max(dim=1)
    matched = torch.where(best >= threshold, matched, NEGATIVE)
    ignorable = valid & ignore
    if bool(ignorable.any()):
        covered = (shared >= overlap * anchor_areas) & ignorable[..., None]
        matched = torch.where((matched == NEGATIVE) & covered.any(dim=1), IGNORED, matched)

    largest, best_anchor = iou.max(dim=2)  # (B, M)
    number = torch.arange(count, device=boxes.device).expand(batch, count)
    # a box that no anchor touches gets none
    number = torch.where(usable & (largest > 0), number, count)
    first = torch.full_like(matched, count).scatter_reduce(1, best_anchor, number, "amin")
    return torch.where(first < count, first, matched)


def pad_targets(targets: Sequence[Target], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pads the boxes of several images to the same number.

    Args:
        targets: Each with ``boxes`` and ``labels``.
        device: Where the tensors are put.

    Returns:
        boxes float32 (B, M, 4), labels int64 (B, M), ignore bool (B, M) and valid bool (B, M), which is False for
        padding; M is the largest number of boxes of an image.
    """
    counts = torch.tensor([len(target["boxes"]) for target in targets])
    width = int(counts.max())
    valid = torch.arange(width) < counts[:, None]
    boxes = torch.zeros(len(targets), width, 4)
    labels = torch.zeros(len(targets), width, dtype=torch.int64)
    ignore = torch.zeros(len(targets), width, dtype=torch.bool)
    boxes[valid] = torch.cat([target["boxes"].cpu() for target in targets])
    labels[valid] = torch.cat([target["labels"].cpu() for target in targets])
    ignore[valid] = torch.cat(
        [target.get("ignore", torch.zeros(len(target["boxes"]), dtype=torch.bool)).cpu() for target in targets]
    )
    return boxes.to(device), labels.to(device), ignore.to(device), valid.to(device)
