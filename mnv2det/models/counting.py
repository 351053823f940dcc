"""Counts parameters and multiply-adds without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def parameters(module: nn.Module, *, norms: bool = True) -> int:
    """Counts the trained numbers of a module, without its running statistics.

    Args:
        module: Any module.
        norms: False leaves out the weights and biases of batch norm, which inference folds away.
    """
    left_out = {
        id(parameter)
        for layer in module.modules()
        if isinstance(layer, nn.BatchNorm2d) and not norms
        for parameter in layer.parameters()
    }
    return sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in left_out)


def multiply_adds(run: Callable[..., Any], *inputs: Any, space_to_batch: bool = False) -> int:
    """Counts the multiply-adds of convolutions and matrix products in a call, as torch does.

    Batch norm, activations, pooling and resizing do not count, as is usual (and in the paper).

    Args:
        run: A module or function. On tensors of the meta device it computes nothing.
        inputs: Its arguments.
        space_to_batch: Whether a dilated convolution counts as TensorFlow used to compute it: on a map padded to a
            multiple of the rate and cut into as many smaller ones as the square of the rate.
    """
    formulas = {torch.ops.aten.convolution: _padded_flop_count} if space_to_batch else None
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, torch.no_grad():
        run(*inputs)
    return counter.get_total_flops() // 2


def _padded_flop_count(
    x_shape: list[int],
    w_shape: list[int],
    bias: object,
    stride: object,
    padding: object,
    dilation: Sequence[int],
    transposed: bool,
    *rest: object,
    out_shape: list[int],
    **more: object,
) -> int:
    """Twice the multiply-adds of a convolution; it takes the arguments of torch's own formula."""
    sides = [-(-side // rate) * rate for side, rate in zip(out_shape[2:], dilation, strict=True)]
    return conv_flop_count(x_shape, w_shape, [*out_shape[:2], *sides], transposed=transposed)
