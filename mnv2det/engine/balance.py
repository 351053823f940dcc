"""Weights of the tasks of a joint model, learned beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mnv2det.structures import Target


class TaskBalance(nn.Module):
    """Weighs each task's loss by its uncertainty (Kendall et al., arXiv 1705.07115, equation 10).

    With ``s = log variance`` of a task, its loss ``L`` becomes ``exp(-s) L + s / 2``: a task that
    stays hard weighs less, and the second term keeps the weight from vanishing.

    Args:
        weights: Each task's weight at the start, above 0.
        needs: Target keys that each task learns from. A batch without them does not change its weight.
    """

    def __init__(self, weights: Mapping[str, float], needs: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.needs = {task: tuple(keys) for task, keys in needs.items()}
        self.log_variances = nn.ParameterDict(
            {task: nn.Parameter(torch.tensor(-math.log(weight))) for task, weight in weights.items()}
        )

    def weights(self) -> dict[str, Tensor]:
        """Each task's current weight."""
        return {task: torch.exp(-value) for task, value in self.log_variances.items()}

    def penalty(self, targets: Sequence[Target]) -> Tensor:
        """The sum of ``s / 2`` over the tasks that a batch has targets for; 0, with a gradient, if there is none."""
        terms: list[Any] = [value * 0 for value in self.log_variances.values()]
        for task, value in self.log_variances.items():
            if any(all(key in target for key in self.needs[task]) for target in targets):
                terms.append(value / 2)
        return torch.stack(terms).sum()
