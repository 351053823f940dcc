"""Assigning anchors to boxes, for a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

from mnv2det.ops.boxes import area, intersection

NEGATIVE, IGNORED = -1, -2


def match(
    anchors: Tensor, boxes: Tensor, valid: Tensor, ignore: Tensor, *, threshold: float = 0.5, overlap: float = 0.5
) -> Tensor:
    """SSD's matching: IoU of ``threshold``, and every box forces its best anchor.

    Args:
        anchors: (A, 4) xyxy.
        boxes: (B, M, 4) xyxy, padded to the same M.
        valid: bool (B, M); False for padding. Boxes without area never match either.
        ignore: bool (B, M); crowds and difficult boxes: never matched, but an anchor of which they
            cover the share ``overlap`` is no negative.
        threshold: Least IoU of a match that is not forced.
        overlap: See ``ignore``.

    Returns:
        int64 (B, A): index of the matched box, -1 for a negative, -2 for an ignored anchor. Where
        two boxes force the same anchor the first of them gets it.
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

    reach, favourite = iou.max(dim=2)  # (B, M)
    number = torch.arange(count, device=boxes.device).expand(batch, count)
    # a box that no anchor touches forces none
    number = torch.where(usable & (reach > 0), number, count)
    forced = torch.full_like(matched, count).scatter_reduce(1, favourite, number, "amin")
    return torch.where(forced < count, forced, matched)
