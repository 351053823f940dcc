"""The layers of a bottleneck, of which some rows and some channels can be computed.

Maps are (B, H, W, C) here, the order in which channels_last memory holds them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mnv2det.export.graph import Folded
from mnv2det.export.split import LANES, part_of
from mnv2det.models.depthwise import has_bf16_kernels
from mnv2det.models.layers import InvertedResidual
from mnv2det.runtime.strips.plan import Rows, Shape, Window, needs_copy


class Pointwise:
    """A 1x1 convolution as a product of matrices.

    Its memory is channels_last, so pixels are rows, and the result is written where it is wanted; for few rows a
    convolution takes longer to start than this to end.
    """

    def __init__(self, layer: Folded) -> None:
        assert layer.conv.bias is not None
        self.weight, self.bias, self.high = layer.conv.weight.flatten(1), layer.conv.bias, layer.high

    def __call__(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Maps (B, H, W, inputs) to the channels from ``start`` to ``stop`` of (B, H, W, outputs)."""
        weight = self.weight[start:stop]
        flat = x.reshape(-1, x.shape[3])
        out = torch.addmm(self.bias[start:stop], flat, weight.t())
        if self.high is not None:
            out.clamp_(0.0, self.high)
        return out.view(*x.shape[:3], -1)

    def add(self, x: Tensor, start: int, stop: int, out: Tensor) -> None:
        """Adds to ``out`` what the inputs from ``start`` to ``stop`` give; the first of them also the bias."""
        flat = out.view(-1, out.shape[3])
        torch.addmm(flat if start else self.bias, x.reshape(-1, stop - start), self.weight[:, start:stop].t(), out=flat)


class Spatial:
    """A 3x3 convolution with its activation, of some channels and rows.

    oneDNN keeps its weights in its own order and applies the activation as it writes.
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
        self.packed: dict[tuple[int, int], Tensor] = {}

    def pad(self, x: Tensor, rows: Rows) -> Tensor:
        """The rows (B, rows.inside, W, C) with a border, where the convolution cannot add it by itself."""
        if not needs_copy(self.window, rows, x.shape[2]):
            return x
        return F.pad(x, (0, 0, *self.window.sides(x.shape[2]), rows.above, rows.below))

    def __call__(self, x: Tensor, rows: Rows, count: int, wide: int, start: int, stop: int) -> Tensor:
        """The output's (B, count, W', stop - start).

        Args:
            x: From `pad`: the rows needed, of all channels or, depthwise, of those from ``start``.
            rows: What they are.
            count: Rows that come out.
            wide: Columns before `pad`.
            start: Of the output's channels.
            stop: Likewise.
        """
        pad, skip = [0, 0], 0
        if not needs_copy(self.window, rows, wide):
            # it pads above as below; where that was not wanted, the rows that come of it are left out
            pad = [max(rows.above, rows.below), self.window.before(wide)]
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
    """An inverted residual, of which some rows and some expanded channels can be computed.

    Args:
        name: Of its output.
        front: What widens its input: the expansion, or the stem.
        block: The rest; without a depthwise layer only the expanded tensor is to be had.
    """

    def __init__(self, name: str, front: Folded, block: InvertedResidual | None) -> None:
        spatial = front.conv.kernel_size[0] > 1
        self.front: Pointwise | Spatial = Spatial(front) if spatial else Pointwise(front)
        self.depthwise: Spatial | None = None
        self.project: Pointwise | None = None
        self.shortcut, outputs = False, 0
        middle = Window()
        if block is not None and isinstance(depthwise := getattr(block, "depthwise", None), Folded):
            assert isinstance(block.project, Folded)
            self.depthwise, self.project = Spatial(depthwise), Pointwise(block.project)
            self.shortcut, outputs, middle = block.shortcut, block.project.conv.out_channels, self.depthwise.window
        window = self.front.window if isinstance(self.front, Spatial) else Window()
        self.shape = Shape(name, front.conv.in_channels, front.conv.out_channels, outputs, window, middle)

    def widen(self, x: Tensor, rows: Rows, first: int, height: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Some rows and channels of the expanded tensor, from the rows ``first`` ... of an input ``height`` high."""
        if isinstance(self.front, Pointwise):
            return self.front(x[:, rows.start - first : rows.stop - first], start, stop)
        outer = self.shape.front.rows(rows.start, rows.stop, height)
        window = self.front.pad(x[:, outer.start - first : outer.stop - first], outer)
        return self.front(window, outer, rows.inside, x.shape[2], start, self.shape.hidden if stop is None else stop)

    def compute(
        self,
        x: Tensor,
        first: int,
        height: int,
        start: int,
        stop: int,
        inner: Rows,
        splits: int,
        out: Tensor,
        widened: Tensor | None,
    ) -> None:
        """Writes the rows from ``start`` to ``stop`` of its output to ``out``; F(x) of section 5.1.

        Args:
            x: (B, h, W, inputs), the rows ``first`` ... of an input ``height`` high.
            first: See there.
            height: See there.
            start: Row.
            stop: Row.
            inner: Those of the expanded tensor that they need.
            splits: Parts of the expanded channels.
            out: (B, stop - start, W', outputs), contiguous.
            widened: The whole expanded tensor, where it is known.
        """
        assert self.depthwise is not None
        assert self.project is not None
        hidden, wide = self.shape.hidden, self.shape.front.size(x.shape[2])
        each = part_of(hidden, splits)
        for low in range(0, hidden, each):
            high = min(low + each, hidden)
            if widened is None:
                part = self.widen(x, inner, first, height, low, high)
            else:
                part = widened[:, inner.start : inner.stop, :, low:high].contiguous()
            part = self.depthwise.pad(part, inner)
            part = self.depthwise(part, inner, stop - start, wide, low, high)
            self.project.add(part, low, high, out)
            del part  # before there is a next one
        if self.shortcut:
            out += x[:, start - first : stop - first]
