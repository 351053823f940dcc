"""SSD's classification losses and hard-negative mining, for a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def anchor_class_loss(logits: Tensor, classes: Tensor, *, softmax: bool) -> Tensor:
    """Classification loss of every anchor.

    Args:
        logits: (B, A, K + 1), channel 0 = background.
        classes: int64 (B, A), 0 = background.
        softmax: Cross-entropy over channels; else the sum of each channel's sigmoid cross-entropy,
            as published.

    Returns:
        (B, A).
    """
    if softmax:
        return F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
    # BCE(x, t) = softplus(x) - x t: no one-hot target is made
    return F.softplus(logits).sum(dim=-1) - logits.gather(-1, classes[..., None]).squeeze(-1)


def hardest(loss: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """Marks the candidates of largest loss in each row.

    Args:
        loss: (B, A).
        candidates: bool (B, A), who may be chosen.
        counts: int64 (B,), how many of each row.

    Returns:
        bool (B, A).
    """
    ranked = torch.where(candidates, loss.detach(), -torch.inf).argsort(dim=1, descending=True, stable=True)
    place = torch.arange(loss.shape[1], device=loss.device).expand_as(ranked)
    rank = torch.empty_like(ranked).scatter_(1, ranked, place)
    return candidates & (rank < counts[:, None])
