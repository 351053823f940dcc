"""The exponential moving average of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from mnv2det.models.model import Model


def average_of(model: Model, decay: float, *, warmup: bool) -> AveragedModel:
    """An average of weights and batch-norm statistics (paper, section 6.1: decay .9999).

    Args:
        model: The average starts as a copy of it.
        decay: Weight of the old value at each update.
        warmup: Whether young averages decay faster: ``min(decay, (1 + n) / (10 + n))``.
    """

    @torch.no_grad()
    def blend(averaged: Any, current: Any, count: Any) -> None:
        keep = min(decay, (1 + float(count)) / (10 + float(count))) if warmup else decay
        if torch.is_floating_point(averaged[0]):
            torch._foreach_lerp_(averaged, current, 1 - keep)
        else:  # batch norm's counters
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    average = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
    average.requires_grad_(False)
    return average
