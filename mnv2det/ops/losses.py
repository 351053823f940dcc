"""SSD's classification losses and hard-negative mining, for a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def anchor_class_loss(logits: Tensor, classes: Tensor, *, softmax: bool) -> Tensor:
    """Computes the classification loss of every anchor.

    Args:
        logits: (B, A, K + 1), channel 0 = background.
        classes: int64 (B, A), 0 = background.
        softmax: Whether the loss is the cross-entropy over all channels; otherwise it is the sum of the
            sigmoid cross-entropies of each channel, as published.

    Returns:
        (B, A).
    """
    if softmax:
        return F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
    # the sigmoid cross-entropy is softplus(x) - x t, so no one-hot target t has to be made
    return F.softplus(logits).sum(dim=-1) - logits.gather(-1, classes[..., None]).squeeze(-1)


def hardest(loss: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """Chooses the candidates of largest loss in each row.

    Args:
        loss: (B, A).
        candidates: bool (B, A): which elements may be chosen.
        counts: int64 (B,): how many are chosen in each row, if it has as many candidates.

    Returns:
        bool (B, A): which elements are chosen.
    """
    ranked = torch.where(candidates, loss.detach(), -torch.inf).argsort(dim=1, descending=True, stable=True)
    numbers = torch.arange(loss.shape[1], device=loss.device).expand_as(ranked)
    rank = torch.empty_like(ranked).scatter_(1, ranked, numbers)
    return candidates & (rank < counts[:, None])
