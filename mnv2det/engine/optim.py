"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from mnv2det.config import OptimConfig
from mnv2det.errors import ConfigError
from mnv2det.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare, Share, ShareBelowOne
from mnv2det.registry import OPTIMIZERS, SCHEDULES

Groups = list[dict[str, Any]]
Factor = Callable[[int], float]


def _check_sgd(args: Mapping[str, Any]) -> Iterator[str]:
    if args["nesterov"] and args["momentum"] == 0:
        yield "nesterov: expected a momentum above 0 beside it"


@OPTIMIZERS.register("sgd", check=_check_sgd)
def sgd(
    groups: Groups,
    *,
    lr: NonNegativeFloat,
    momentum: ShareBelowOne = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegativeFloat = 4e-5,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


@OPTIMIZERS.register("rmsprop")
def rmsprop(
    groups: Groups,
    *,
    lr: NonNegativeFloat,
    alpha: ShareBelowOne = 0.9,
    momentum: ShareBelowOne = 0.9,
    eps: PositiveFloat = 1.0,
    weight_decay: NonNegativeFloat = 4e-5,
) -> torch.optim.Optimizer:
    """RMSprop as the authors used it (paper, section 6.1: decay and momentum .9).

    TensorFlow adds ``eps`` under the square root, torch after it; with 1.0 both hardly differ.
    """
    return torch.optim.RMSprop(groups, lr=lr, alpha=alpha, momentum=momentum, eps=eps, weight_decay=weight_decay)


@OPTIMIZERS.register("adamw")
def adamw(groups: Groups, *, lr: NonNegativeFloat, weight_decay: NonNegativeFloat = 0.01) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay."""
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)


@SCHEDULES.register("constant")
def constant(steps: int) -> Factor:
    """The peak rate throughout."""
    return lambda step: 1.0


@SCHEDULES.register("cosine")
def cosine(steps: int, *, final: Share = 0.0) -> Factor:
    """Half a cosine from 1 down to ``final``."""
    return lambda step: final + (1 - final) * (1 + math.cos(math.pi * min(step / steps, 1))) / 2


@SCHEDULES.register("step")
def step(steps: int, *, at: tuple[Share, ...] = (0.67, 0.89), gamma: PositiveShare = 0.1) -> Factor:
    """Times ``gamma`` at each share ``at`` of the run."""
    return lambda now: gamma ** sum(now >= share * steps for share in at)


@SCHEDULES.register("poly")
def poly(steps: int, *, power: NonNegativeFloat = 0.9) -> Factor:
    """``(1 - progress) ** power`` (docs/recipes.md)."""
    return lambda now: max(1 - now / steps, 0.0) ** power


@SCHEDULES.register("exponential")
def exponential(
    steps: int, *, gamma: PositiveShare = 0.98, every: PositiveInt = 1000, staircase: bool = True
) -> Factor:
    """Times ``gamma`` every ``every`` steps (paper, section 6.1: .98 per epoch)."""
    return lambda now: gamma ** (now // every if staircase else now / every)


def build_optimizer(
    model: nn.Module, config: OptimConfig, steps: int, extra: Sequence[nn.Parameter] = ()
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """The optimizer over four groups (backbone or heads, with or without weight decay) and its schedule.

    Args:
        model: Has ``backbone`` and ``heads``; frozen parameters are left out.
        config: Rates and warm-up.
        steps: Number of steps of the whole run.
        extra: Further parameters, learned at the heads' rate without weight decay.

    Raises:
        ConfigError: A component or argument is wrong, or nothing is left to train.
    """
    groups = list(_groups(model, config))
    if not groups:
        raise ConfigError("model.freeze: no parameter is left to train")
    if extra:
        groups.append({"params": list(extra), "factor": config.head_lr_factor, "no_decay": True})
    try:
        optimizer = OPTIMIZERS.build(config.optimizer.name, config.optimizer.args, groups, place="optim.optimizer")
    except ValueError as error:
        raise ConfigError(f"optim.optimizer: {error}") from None
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("factor")
        if group.pop("no_decay"):
            group["weight_decay"] = 0.0
    warmup = config.warmup_steps
    after = SCHEDULES.build(config.schedule.name, config.schedule.args, max(steps - warmup, 1), place="optim.schedule")

    def factor(now: int) -> float:
        if now < warmup:
            return config.warmup_start + (1 - config.warmup_start) * now / warmup
        return float(after(now - warmup))

    return optimizer, LambdaLR(optimizer, factor)


def _groups(model: nn.Module, config: OptimConfig) -> Iterator[dict[str, Any]]:
    for scope, factor in (("backbone", 1.0), ("heads", config.head_lr_factor)):
        for no_decay in (False, True):
            parameters = [
                parameter
                for name, parameter in model.named_parameters()
                if name.startswith(scope)
                and parameter.requires_grad
                # the vectors are biases, and batch norm's scales and shifts
                and (parameter.ndim == 1 and not config.decay_norm_and_bias) == no_decay
            ]
            if parameters:
                yield {"params": parameters, "factor": factor, "no_decay": no_decay}
