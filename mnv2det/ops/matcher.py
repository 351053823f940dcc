"""Assigning anchors to boxes, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mnv2det.ops.boxes import area, intersection
from mnv2det.structures import Target

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


def pad_targets(targets: Sequence[Target], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Puts targets of different lengths into one tensor each.

    Returns:
        boxes (B, M, 4), labels (B, M), ignore (B, M) and valid (B, M), M the largest count.
    """
    counts = torch.tensor([len(target["boxes"]) for target in targets])
    most = int(counts.max())
    valid = torch.arange(most) < counts[:, None]
    boxes = torch.zeros(len(targets), most, 4)
    labels = torch.zeros(len(targets), most, dtype=torch.int64)
    ignore = torch.zeros(len(targets), most, dtype=torch.bool)
    boxes[valid] = torch.cat([target["boxes"].cpu() for target in targets])
    labels[valid] = torch.cat([target["labels"].cpu() for target in targets])
    ignore[valid] = torch.cat(
        [target.get("ignore", torch.zeros(len(target["boxes"]), dtype=torch.bool)).cpu() for target in targets]
    )
    return boxes.to(device), labels.to(device), ignore.to(device), valid.to(device)
