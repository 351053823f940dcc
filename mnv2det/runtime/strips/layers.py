"""The layers of a bottleneck, computed for some rows and some channels at a time.

Maps are (B, H, W, C) here, the order in which channels_last memory holds them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mnv2det.graphs.graph import Folded
from mnv2det.graphs.split import LANES, part_of
from mnv2det.models.depthwise import has_bf16_kernels
from mnv2det.models.layers import InvertedResidual
from mnv2det.runtime.strips.rows import BottleneckShape, Rows, Window, needs_copy


class Strip(NamedTuple):
    """Some rows of a map.

    Attributes:
        values: (B, h, W, C).
        first: Number of the first row in the map.
        height: Rows of the whole map.
    """

    values: Tensor
    first: int
    height: int

    def rows(self, start: int, stop: int) -> Tensor:
        """A view of the map's rows from ``start`` to ``stop``."""
        return self.values[:, start - self.first : stop - self.first]


class Pointwise:
    """A 1x1 convolution as a matrix product.

    In channels_last memory pixels are the rows of a matrix, and the result is written to where it belongs. For few rows
    a convolution takes longer to start than this takes altogether.
    """

    def __init__(self, layer: Folded) -> None:
        assert layer.conv.bias is not None
        self.weight, self.bias, self.high = layer.conv.weight.flatten(1), layer.conv.bias, layer.high

    def __call__(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Maps (B, H, W, inputs) to the output channels from ``start`` to ``stop``, (B, H, W, stop - start)."""
        weight = self.weight[start:stop]
        flat = x.reshape(-1, x.shape[3])
        out = torch.addmm(self.bias[start:stop], flat, weight.t())
        if self.high is not None:
            out.clamp_(0.0, self.high)
        return out.view(*x.shape[:3], -1)

    def add(self, x: Tensor, start: int, stop: int, out: Tensor) -> None:
        """Adds to ``out`` the product of the input channels from ``start`` to ``stop``.

        With the first channels ``out`` is overwritten, and gets the bias.
        """
        flat = out.view(-1, out.shape[3])
        torch.addmm(flat if start else self.bias, x.reshape(-1, stop - start), self.weight[:, start:stop].t(), out=flat)


class Spatial:
    """A 3x3 convolution with its activation, for some channels and rows.

    oneDNN keeps the weights in its own order and applies the activation as it writes.
    """

    def __init__(self, layer: Folded) -> None:
        conv = layer.conv
        assert conv.bias is not None
        assert layer.high is not None
        self.weight, self.bias, self.high = conv.weight, conv.bias, layer.high
        self.depthwise = conv.groups > 1
        self.stride, self.dilation = list(conv.stride), list(conv.dilation)
        self.window = Window(
            conv.dilation[0] * (conv.kernel_size[0] - 1),
            conv.stride[0],
            None if layer.pads_by_size else int(conv.padding[0]),
        )
        self.packed: dict[tuple[int, int], Tensor] = {}  # by the channels that a part begins and ends with

    def pad(self, x: Tensor, rows: Rows) -> Tensor:
        """Pads (B, rows.inside, W, C) by a copy, where the convolution cannot pad by itself."""
        if not needs_copy(self.window, rows, x.shape[2]):
            return x
        return F.pad(x, (0, 0, *self.window.sides(x.shape[2]), rows.above, rows.below))

    def __call__(self, x: Tensor, rows: Rows, count: int, width: int, start: int, stop: int) -> Tensor:
        """Computes some rows and channels of the output.

        Args:
            x: From `pad`: the rows needed, with all channels or, depthwise, with those from ``start`` to ``stop``.
            rows: Which rows they are.
            count: How many rows of the output they give.
            width: Columns before `pad`.
            start: First output channel.
            stop: Channel behind the last.

        Returns:
            (B, count, W', stop - start).
        """
        pad, skip = [0, 0], 0
        if not needs_copy(self.window, rows, width):
            # both sides are padded alike; the rows that the padding adds where none is needed are left out
            pad = [max(rows.above, rows.below), self.window.sides(width)[0]]
            skip = (pad[0] - rows.above) // self.window.stride
        y = self._convolve(x.permute(0, 3, 1, 2), pad, start, stop).permute(0, 2, 3, 1)
        return y[:, skip : skip + count]

    def _convolve(self, x: Tensor, pad: list[int], start: int, stop: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        groups = stop - start if self.depthwise else 1
        bias = self.bias[start:stop]
        if (stop - start) % LANES or not _can_pack(x.dtype):
            y = F.conv2d(x, self.weight[start:stop], bias, self.stride, pad, self.dilation, groups)
            return y.contiguous(memory_format=torch.channels_last).clamp_(0.0, self.high)
        if (start, stop) not in self.packed:
            self.packed[start, stop] = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
                self.weight[start:stop].to_mkldnn(), pad, self.stride, self.dilation, groups, list(x.shape)
            )
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.packed[start, stop], bias, pad, self.stride, self.dilation, groups, "hardtanh", [0.0, self.high], ""
        )


def _can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN keeps weights of this type in its own order, on this processor."""
    if dtype == torch.float32:
        return torch.backends.mkldnn.is_available()
    return dtype == torch.bfloat16 and has_bf16_kernels()


class Bottleneck:
    """An inverted residual, computed for some rows and some expanded channels at a time.

    Args:
        name: Name of the feature that is its output.
        expansion: What computes the expanded tensor: the block's expansion, or the stem.
        block: The block; without a depthwise layer only the expanded tensor can be computed.
    """

    def __init__(self, name: str, expansion: Folded, block: InvertedResidual | None) -> None:
        spatial = expansion.conv.kernel_size[0] > 1
        self.expansion: Pointwise | Spatial = Spatial(expansion) if spatial else Pointwise(expansion)
        self.depthwise: Spatial | None = None
        self.project: Pointwise | None = None
        self.shortcut, outputs = False, 0
        if block is not None and isinstance(depthwise := getattr(block, "depthwise", None), Folded):
            assert isinstance(block.project, Folded)
            self.depthwise, self.project = Spatial(depthwise), Pointwise(block.project)
            self.shortcut, outputs = block.shortcut, block.project.conv.out_channels
        windows = (
            layer.window if isinstance(layer, Spatial) else Window() for layer in (self.expansion, self.depthwise)
        )
        self.shape = BottleneckShape(name, expansion.conv.in_channels, expansion.conv.out_channels, outputs, *windows)

    def expand(self, x: Strip, rows: Rows, start: int = 0, stop: int | None = None) -> Tensor:
        """Computes the rows ``rows.start`` to ``rows.stop`` of the expanded tensor, its channels ``start`` to ``stop``.

        Args:
            x: The rows of the input that they need, or more.
            rows: Rows of the expanded tensor.
            start: First channel.
            stop: Channel behind the last; None for all that follow.

        Returns:
            (B, rows.inside, W, stop - start).
        """
        if isinstance(self.expansion, Pointwise):
            return self.expansion(x.rows(rows.start, rows.stop), start, stop)
        outer = self.shape.input_rows(rows, x.height)
        padded = self.expansion.pad(x.rows(outer.start, outer.stop), outer)
        stop = self.shape.hidden if stop is None else stop
        return self.expansion(padded, outer, rows.inside, x.values.shape[2], start, stop)

    def compute(
        self, x: Strip, start: int, stop: int, rows: Rows, splits: int, out: Tensor, expanded: Tensor | None = None
    ) -> None:
        """Writes some rows of the output: F(x) of the paper's section 5.1.

        Args:
            x: The rows of the input that they need, or more.
            start: First row.
            stop: Row behind the last.
            rows: Rows of the expanded tensor that they need.
            splits: Parts that the expanded channels are computed in.
            out: (B, stop - start, W', outputs), contiguous; is written to.
            expanded: The whole expanded tensor, if it was computed before.
        """
        assert self.depthwise is not None
        assert self.project is not None
        hidden, width = self.shape.hidden, self.shape.expansion.size(x.values.shape[2])
        size = part_of(hidden, splits)
        for low in range(0, hidden, size):
            high = min(low + size, hidden)
            if expanded is None:
                part = self.expand(x, rows, low, high)
            else:
                part = expanded[:, rows.start : rows.stop, :, low:high].contiguous()
            part = self.depthwise.pad(part, rows)
            part = self.depthwise(part, rows, stop - start, width, low, high)
            self.project.add(part, low, high, out)
            del part  # it is freed before the next part is computed
        if self.shortcut:
            out += x.rows(start, stop)
