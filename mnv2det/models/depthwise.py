"""Depthwise 3x3 convolutions whose bfloat16 gradients on the CPU are correct and fast.

torch 2.14 calls kernels of oneDNN, of which some are slow and some are wrong
(benchmarks/depthwise_gradients.py shows both):

- With stride 2 there is no fast kernel for the input gradient.
- With dilation there is none for either gradient, and from about 29 columns on the weight gradient is wrong.
- On maps of one or two rows or columns the weight gradient is uninitialised memory.

Here the gradients are computed by convolutions of stride 1 without dilation, whose kernels are correct.

On processors for which oneDNN has no bfloat16 kernels, torch's own ones add up the images of a batch in bfloat16: the
weight gradient is then off by 1 % (2 images, dilation 4) to 6 % (16 images), and takes four times as long as in
float32. There these layers compute in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def has_bf16_kernels() -> bool:
    """Whether oneDNN has bfloat16 kernels for this processor."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def learns_in_bf16(input: Tensor, weight: Tensor) -> bool:
    """Tells whether gradients will be computed in bfloat16 on the CPU."""
    return (
        input.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and (input.requires_grad or weight.requires_grad)
    )


def learn_depthwise(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int
) -> Tensor:
    """Computes a depthwise 3x3 convolution under bfloat16 autocast.

    Args:
        input: (B, C, H, W).
        weight: (C, 1, 3, 3).
        bias: (C,) or None.
        stride: 1 or 2.
        padding: Number of zeros on every side.
        dilation: 1, 2, 4 ...

    Returns:
        bfloat16, or float32 where the map is too small for bfloat16 or the processor has no kernels for it.
    """
    smallest = -(-min(input.shape[-2:]) // dilation)
    if smallest < 3 or not has_bf16_kernels():
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(input.float(), weight.float(), bias, stride, padding, dilation, groups=weight.shape[0])
    if bias is None and stride == 2 and dilation == 1 and smallest >= 8:
        return _Strided.apply(input, weight.to(torch.bfloat16), padding)
    if bias is None and stride == 1 and dilation == padding > 1:
        return _Dilated.apply(input, weight.to(torch.bfloat16), dilation)
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups=weight.shape[0])


class _Strided(torch.autograd.Function):
    """Stride 2: the input gradient is a convolution of stride 1 over the output's gradient with zeros in between."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, padding: int) -> Tensor:
        input = input.to(torch.bfloat16)
        ctx.save_for_backward(input, weight)
        ctx.padding = padding
        return F.conv2d(input, weight, stride=2, padding=padding, groups=weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        input, weight = ctx.saved_tensors
        padding, groups = ctx.padding, weight.shape[0]
        input_grad = None
        if ctx.needs_input_grad[0]:
            height, width = input.shape[-2] + 2 * padding - 2, input.shape[-1] + 2 * padding - 2
            shape = (grad.shape[0], groups, height, width)
            with_zeros = torch.empty(shape, dtype=grad.dtype, memory_format=torch.channels_last).zero_()
            with_zeros[..., ::2, ::2] = grad
            input_grad = F.conv2d(with_zeros, weight.flip(2, 3), padding=2 - padding, groups=groups)
        _, weight_grad, _ = torch.ops.aten.convolution_backward(
            grad, input, weight, None, [2, 2], [padding] * 2, [1, 1], False, [0, 0], groups, [False, True, False]
        )
        return input_grad, weight_grad, None


class _Dilated(torch.autograd.Function):
    """Dilation d, padded by d: a convolution without dilation of each of the d * d phases of the map."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, dilation: int) -> Tensor:
        input = input.to(torch.bfloat16)
        ctx.save_for_backward(input, weight)
        ctx.dilation = dilation
        return F.conv2d(input, weight, padding=dilation, dilation=dilation, groups=weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        input, weight = ctx.saved_tensors
        needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        input_grad, weight_grad, _ = torch.ops.aten.convolution_backward(
            _phases(grad, ctx.dilation),
            _phases(input, ctx.dilation),
            *(weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], weight.shape[0], needed),
        )
        return None if input_grad is None else _joined(input_grad, ctx.dilation, input.shape), weight_grad, None


def _phases(x: Tensor, step: int) -> Tensor:
    """Turns (B, C, H, W) into (step * step * B, C, ceil(H / step), ceil(W / step)), zeros added at the ends."""
    batch, channels, height, width = x.shape
    rows, columns = -(-height // step), -(-width // step)
    x = F.pad(x, (0, columns * step - width, 0, rows * step - height)).permute(0, 2, 3, 1)
    x = x.reshape(batch, rows, step, columns, step, channels).permute(2, 4, 0, 1, 3, 5)
    return x.reshape(step * step * batch, rows, columns, channels).permute(0, 3, 1, 2)


def _joined(x: Tensor, step: int, shape: torch.Size) -> Tensor:
    """Undoes `_phases`."""
    batch, channels, height, width = shape
    rows, columns = x.shape[-2:]
    x = x.permute(0, 2, 3, 1).reshape(step, step, batch, rows, columns, channels).permute(2, 3, 0, 4, 1, 5)
    x = x.reshape(batch, rows * step, columns * step, channels)
    return x[:, :height, :width].permute(0, 3, 1, 2)
