"""Convolution blocks shared by the backbone and the heads."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnv2det.models.depthwise import learn_depthwise, learns_in_bf16
from mnv2det.ops.padding import same_padding

Padding = Literal["symmetric", "same"]
Activation = Literal["relu6", "relu", "none"]


def make_divisible(value: float, divisor: int = 8) -> int:
    """Rounds a channel count to a multiple, never down by more than 10 % (the authors' rule).

    Args:
        value: Channels times width multiplier.
        divisor: What the result is a multiple of, and its least value.

    Returns:
        The nearest multiple of ``divisor``, one more if that lost over 10 %.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class Conv(nn.Conv2d):
    """A convolution whose output has ``ceil(size / stride)`` positions, padded symmetrically or as TensorFlow's SAME.

    SAME adds more at the bottom and right than at the top and left where the total is odd, as with stride 2 on
    even sizes. Weights that were trained that way need it, such as the TFLite releases. With stride 1 both ways
    are the same.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        pad: Padding = "symmetric",
    ) -> None:
        reach = dilation * (kernel - 1)
        self.pads_by_size = pad == "same" and stride > 1 and kernel > 1
        super().__init__(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=0 if self.pads_by_size else reach // 2,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        return self.convolve(input, self.weight, self.bias)

    def convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Does what `forward` does, with the weights that are given."""
        if self.pads_by_size:
            axis = (self.kernel_size[0], self.stride[0], self.dilation[0])
            input = F.pad(input, (*same_padding(input.shape[-1], *axis), *same_padding(input.shape[-2], *axis)))
        if self.groups == self.in_channels > 1 and self.kernel_size == (3, 3) and learns_in_bf16(input, weight):
            # padding by size has been added above
            padding = 0 if self.pads_by_size else self.dilation[0]
            return learn_depthwise(input, weight, bias, self.stride[0], padding, self.dilation[0])
        return self._conv_forward(input, weight, bias)


class Norm(nn.BatchNorm2d):
    """Batch norm that can be trained with a single value per channel (one image, a 1x1 map).

    The variance of a single value is zero, so it is normalised by the running statistics.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and activation: ReLU6 as in the paper, ReLU, or none (linear).

    Attributes:
        fold: Whether evaluation may compute convolution and norm as one convolution.
    """

    fold = True

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        pad: Padding = "symmetric",
        act: Activation = "relu6",
        eps: float = 1e-3,
        momentum: float = 0.03,
    ) -> None:
        super().__init__()
        self.high = {"relu6": 6.0, "relu": float("inf"), "none": None}[act]
        self.conv = Conv(inputs, outputs, kernel, stride=stride, dilation=dilation, groups=groups, pad=pad)
        self.norm = Norm(outputs, eps=eps, momentum=momentum)
        if act != "none":
            self.act = nn.ReLU6(inplace=True) if act == "relu6" else nn.ReLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride)).

        Where neither statistics nor gradients are needed (evaluation, frozen layers), the norm is multiplied
        into the convolution's weights, which saves a pass over the map.
        """
        if not self.fold or self.norm.training or (torch.is_grad_enabled() and self.conv.weight.requires_grad):
            return super().forward(input)
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        scale = self.norm.weight * (variance + self.norm.eps).rsqrt()
        shift = self.norm.bias - mean * scale
        output = self.conv.convolve(input, self.conv.weight * scale[:, None, None, None], shift)
        return output if self.high is None else output.clamp_(0.0, self.high)


class JoinPooled(ConvNorm):
    """Joins channels that are pooled over the whole map, and come first, with the channels of the map itself.

    Training and `mnv2det.models.counting` see one layer over all channels, as it was published. An export computes a
    1x1 join in two parts (`mnv2det.graphs.graph.FoldedJoin`).

    Attributes:
        pooled: How many channels are pooled.
    """

    pooled: int

    def forward(self, pooled: Tensor, rest: Tensor) -> Tensor:  # type: ignore[override]
        """Maps the pooled channels (B, C, 1, 1) and the others (B, D, H, W) to (B, outputs, H, W)."""
        return super().forward(repeat_and_join(pooled, rest))


def repeat_and_join(pooled: Tensor, rest: Tensor) -> Tensor:
    """Maps (B, C, 1, 1) and (B, D, H, W) to (B, C + D, H, W); to resize a single value is to repeat it."""
    return torch.cat([pooled.expand(-1, -1, *rest.shape[-2:]), rest], dim=1)


class Separable(nn.Module):
    """Depthwise 3x3, then 1x1, both with norm and activation: MobileNetV1's layer (paper, Figure 2b)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        pad: Padding = "symmetric",
        act: Activation = "relu6",
        eps: float = 1e-3,
        momentum: float = 0.03,
    ) -> None:
        super().__init__()
        self.depthwise = ConvNorm(
            inputs,
            inputs,
            3,
            stride=stride,
            dilation=dilation,
            groups=inputs,
            pad=pad,
            act=act,
            eps=eps,
            momentum=momentum,
        )
        self.pointwise = ConvNorm(inputs, outputs, act=act, eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        return self.pointwise(self.depthwise(x))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation (paper, section 3.3, Table 1).

    The shortcut connects the bottlenecks, and only where stride and channels allow. Only ablations change
    ``act`` and ``bottleneck_act`` (behind the projection, before the shortcut is added).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        expansion: int = 6,
        dilation: int = 1,
        pad: Padding = "symmetric",
        act: Activation = "relu6",
        bottleneck_act: Activation = "none",
        eps: float = 1e-3,
        momentum: float = 0.03,
        shortcut: bool | None = None,
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = (stride == 1 and inputs == outputs) if shortcut is None else shortcut
        # the first bottleneck has expansion 1, hence no expanding convolution
        self.expand = ConvNorm(inputs, hidden, act=act, eps=eps, momentum=momentum) if expansion > 1 else None
        self.depthwise = ConvNorm(
            hidden,
            hidden,
            3,
            stride=stride,
            dilation=dilation,
            groups=hidden,
            pad=pad,
            act=act,
            eps=eps,
            momentum=momentum,
        )
        self.project = ConvNorm(hidden, outputs, act=bottleneck_act, eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        return self.finish(x, self.widen(x))

    def widen(self, x: Tensor) -> Tensor:
        """Computes the expanded tensor, which can be tapped: (B, inputs * expansion, H, W)."""
        return x if self.expand is None else self.expand(x)

    def finish(self, x: Tensor, widened: Tensor) -> Tensor:
        """Computes the output from the block's input ``x``, which the shortcut adds, and the expanded tensor."""
        y = self.project(self.depthwise(widened))
        return x + y if self.shortcut else y


class Residual(nn.Module):
    """The classical bottleneck (paper, Figure 3a): reduce 1x1, depthwise 3x3, widen 1x1.

    The shortcut connects the wide tensors. As in ResNet, the last activation follows the sum.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        pad: Padding = "symmetric",
        eps: float = 1e-3,
        momentum: float = 0.03,
        shortcut: bool | None = None,
    ) -> None:
        super().__init__()
        self.shortcut = (stride == 1 and inputs == outputs) if shortcut is None else shortcut
        self.reduce = ConvNorm(inputs, inner, eps=eps, momentum=momentum)
        self.depthwise = ConvNorm(
            inner, inner, 3, stride=stride, dilation=dilation, groups=inner, pad=pad, eps=eps, momentum=momentum
        )
        self.widen = ConvNorm(inner, outputs, act="none", eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        y = self.widen(self.depthwise(self.reduce(x)))
        return F.relu6(x + y if self.shortcut else y)


def subsample(x: Tensor, step: int, pad: Padding) -> Tensor:
    """Keeps those positions of a map that layers with a total stride of ``step`` would have computed.

    With SAME padding, a stride-2 layer on an even size centres its windows on the odd positions, otherwise on
    the even ones.

    Args:
        x: (B, C, H, W).
        step: A power of two.
        pad: How those layers pad.

    Returns:
        (B, C, ceil(H / step), ceil(W / step)).
    """
    while step > 1:
        top, left = ((x.shape[-2] - 1) % 2, (x.shape[-1] - 1) % 2) if pad == "same" else (0, 0)
        x = x[..., top:, left:]
        # ncnn, for which networks are traced, has no slices with a step; the largest of one value is that value
        traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
        x = F.max_pool2d(x, 1, stride=2) if traced else x[..., ::2, ::2]
        step //= 2
    return x


@torch.no_grad()
def init_weights(module: nn.Module, std: float | None = None) -> None:
    """Draws fresh weights of convolutions and linear layers in place, and resets biases and batch norms.

    Args:
        module: Any module.
        std: Standard deviation of convolutions' weights, which are normal and truncated at two deviations; None
            draws them as He et al. do, by the number of outputs.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
            elif std is None:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            else:
                nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
