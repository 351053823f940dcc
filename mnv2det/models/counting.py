"""Parameters and multiply-adds, counted without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def parameters(module: nn.Module, *, norms: bool = True) -> int:
    """Trained numbers of a module; its running statistics are none.

    Args:
        module: Any.
        norms: False leaves out batch norm's weights and biases, which inference folds away.
    """
    left_out = {
        id(parameter)
        for layer in module.modules()
        if isinstance(layer, nn.BatchNorm2d) and not norms
        for parameter in layer.parameters()
    }
    return sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in left_out)


def multiply_adds(run: Callable[..., Any], *inputs: Any, space_to_batch: bool = False) -> int:
    """What a call multiplies and adds in convolutions and matrix products, as torch counts them.

    Batch norm, activations, pooling and resizing do not count, as is usual (and in the paper).

    Args:
        run: A module or function. Tensors on the meta device are only counted, not computed.
        inputs: Its arguments.
        space_to_batch: Count a dilated convolution as TensorFlow used to compute it, by cutting its map
            into as many smaller ones as the square of the rate: on a map filled up to a multiple of it.
    """
    counted = {torch.ops.aten.convolution: _filled_up} if space_to_batch else None
    with FlopCounterMode(display=False, custom_mapping=counted) as counter, torch.no_grad():
        run(*inputs)
    return counter.get_total_flops() // 2


def _filled_up(
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
    """Twice the multiply-adds of a convolution, in the arguments of torch's own formula."""
    sides = [-(-side // rate) * rate for side, rate in zip(out_shape[2:], dilation, strict=True)]
    return conv_flop_count(x_shape, w_shape, [*out_shape[:2], *sides], transposed=transposed)
