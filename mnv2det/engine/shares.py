"""How much of a step's loss each batch holds, so that several batches count as one of all their images.

A head divides its loss by what it counted in its own batch: SSDLite by matched anchors, DeepLab by
labelled pixels. The mean over batches or processes is then not the loss of all their images together.
Here every batch is weighed by its share of the count.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

import torch
from torch import Tensor

from mnv2det.engine.dist import Processes
from mnv2det.models.classifier import Classifier
from mnv2det.models.deeplab import MobileDeepLab
from mnv2det.models.head import Head
from mnv2det.models.model import Model
from mnv2det.models.ssdlite import SSDLite
from mnv2det.ops.matcher import match, pad_targets
from mnv2det.structures import IGNORE, Batch, Target


@singledispatch
def counted(head: Head, targets: Sequence[Target], size: tuple[int, int]) -> tuple[float, float]:
    """What a head's loss divides by, and the least it divides by.

    Register your own head with ``@counted.register``; of an unknown one every batch counts the same.

    Args:
        head: Whose loss.
        targets: Of one batch.
        size: (H, W) of the input.
    """
    return 1.0, 1.0


@counted.register
def _(head: SSDLite, targets: Sequence[Target], size: tuple[int, int]) -> tuple[float, float]:
    known = [target for target in targets if "boxes" in target]
    if not known:
        return 0.0, 1.0
    boxes, _, ignore, valid = pad_targets(known, torch.device("cpu"))
    anchors = head.constants(size)["anchors"].cpu()
    return float((match(anchors, boxes, valid, ignore, threshold=head.match_iou) >= 0).sum()), 1.0


@counted.register
def _(head: MobileDeepLab, targets: Sequence[Target], size: tuple[int, int]) -> tuple[float, float]:
    stride, weights = head.loss_stride, head.class_weights
    masks = [target["mask"][::stride, ::stride] for target in targets if "mask" in target]
    counts = torch.zeros(IGNORE, dtype=torch.float64)
    for mask in masks:
        counts += torch.bincount(mask.flatten().cpu(), minlength=IGNORE + 1)[:IGNORE]
    if isinstance(weights, Tensor):
        counts[: len(weights)] *= weights.cpu()
    return float(counts.sum()), 1e-6


@counted.register
def _(head: Classifier, targets: Sequence[Target], size: tuple[int, int]) -> tuple[float, float]:
    return float(sum("label" in target for target in targets)), 1.0


def shares(model: Model, batches: Sequence[Batch], group: Processes) -> list[dict[str, float]]:
    """What each batch's losses are multiplied by before the mean over batches and processes.

    Args:
        model: Whose heads count.
        batches: This process's, of one step.
        group: Of processes that take the step together; they exchange one number per task.

    Returns:
        Task to factor, for each batch; 1 where there is one batch in all.
    """
    if len(batches) * group.world == 1:
        return [{}]
    rows = [
        [counted(head, batch.targets, _size(batch)) for head in model.heads.values()]  # type: ignore[arg-type]
        for batch in batches
    ]
    local = torch.tensor([[count for count, _ in row] for row in rows], dtype=torch.float64)
    least = torch.tensor([bound for _, bound in rows[0]], dtype=torch.float64)
    total = group.sum(local.sum(dim=0).to(group.device)).cpu()
    factors = local.maximum(least) / total.maximum(least) * len(batches) * group.world
    return [dict(zip(model.heads, row, strict=True)) for row in factors.tolist()]


def _size(batch: Batch) -> tuple[int, int]:
    return batch.images.shape[-2], batch.images.shape[-1]
