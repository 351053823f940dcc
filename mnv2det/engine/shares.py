"""How much of a step's loss each batch holds, so that several batches count as one of all their images.

A head divides its loss by what it counted in its own batch: matched anchors, labelled pixels
(`mnv2det.models.head.Head.loss_normalizer`). The mean over batches or processes is then not the loss of all their
images together. Here every batch is weighed by its share of the count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mnv2det.engine.dist import Processes
from mnv2det.models.model import Model
from mnv2det.structures import Batch


def shares(model: Model, batches: Sequence[Batch], group: Processes) -> list[dict[str, float]]:
    """Computes what each batch's losses are multiplied by before the mean over batches and processes.

    Args:
        model: The model whose heads count.
        batches: Those of this process in one step.
        group: The processes that take the step together; they exchange one number per task.

    Returns:
        For each batch, the factor of each task; none, which means 1, if there is one batch in all.
    """
    if len(batches) * group.world == 1:
        return [{}]
    normalizers = [
        [
            head.loss_normalizer(batch.targets, (batch.images.shape[-2], batch.images.shape[-1]))  # type: ignore[operator]
            for head in model.heads.values()
        ]
        for batch in batches
    ]
    counts, least = torch.tensor(normalizers, dtype=torch.float64).unbind(dim=-1)
    total = group.sum(counts.sum(dim=0).to(group.device)).cpu()
    factors = counts.maximum(least) / total.maximum(least[0]) * len(batches) * group.world
    return [dict(zip(model.heads, row, strict=True)) for row in factors.tolist()]
