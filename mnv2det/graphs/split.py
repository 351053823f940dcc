"""The paper's split bottlenecks (section 5.1) for export: expanded channels in t parts, whose outputs are added up."""

from __future__ import annotations

from torch import Tensor, nn

from mnv2det.errors import ConfigError
from mnv2det.graphs.graph import Folded
from mnv2det.models.backbone import split_tap
from mnv2det.models.layers import InvertedResidual
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.models.model import Model

LANES = 16  # channels in a vector register; the size of a part is a multiple of it


class SplitResidual(InvertedResidual):
    """A bottleneck F(x) as the sum of A_i(N(B_i(x))) over parts of the expanded channels (paper, section 5.1).

    Each part has layers of its own: expansion B_i, depthwise convolution N and projection A_i.

    Args:
        block: With `Folded` layers.
        splits: Number of parts; fewer if these would be no multiples of 16 channels.
    """

    parts: nn.ModuleList

    def __init__(self, block: InvertedResidual, splits: int) -> None:
        nn.Module.__init__(self)
        self.shortcut, self.expand = block.shortcut, None
        expand, depthwise, project = block.expand, block.depthwise, block.project
        assert isinstance(expand, Folded)
        assert isinstance(depthwise, Folded)
        assert isinstance(project, Folded)
        hidden = expand.conv.out_channels
        size = part_of(hidden, splits)
        self.parts = nn.ModuleList(
            nn.Sequential(
                _part(expand, outputs=slice(low, low + size)),
                _part(depthwise, outputs=slice(low, low + size)),
                _part(project, inputs=slice(low, low + size), bias=low == 0),
            )
            for low in range(0, hidden, size)
        )

    def finish(self, x: Tensor, widened: Tensor) -> Tensor:
        """Maps the block's input (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        y = self.parts[0](x)
        for part in self.parts[1:]:
            y = y + part(x)
        return x + y if self.shortcut else y


def split_channels(model: Model, splits: int) -> None:
    """Splits the bottlenecks of a folded model in place, except those whose expanded tensor a head reads.

    Raises:
        ConfigError: The backbone is not MobileNetV2 as published, or the number is below 1.
    """
    backbone = model.backbone
    if splits < 1:
        raise ConfigError(f"splits: expected at least 1, got {splits}")
    if not isinstance(backbone, MobileNetV2):
        raise ConfigError(f"splits: needs the backbone mobilenet_v2, not {type(backbone).__name__}")
    check_bottlenecks(backbone, "splits")
    read = {split_tap(tap)[0] for tap in model.taps}
    for index, block in enumerate(backbone.blocks):
        assert isinstance(block, InvertedResidual)
        if block.expand is not None and f"block{index + 1}.expand" not in read:
            backbone.blocks[index] = SplitResidual(block, splits)


def _part(layer: Folded, *, inputs: slice = slice(None), outputs: slice = slice(None), bias: bool = True) -> Folded:
    """A layer with some of the inputs and outputs of another; a depthwise layer is cut by its outputs alone."""
    part, whole = Folded.__new__(Folded), layer.conv
    nn.Module.__init__(part)
    part.pads_by_size, part.high = layer.pads_by_size, layer.high
    weight = whole.weight[outputs, inputs].clone()
    groups = len(weight) if whole.groups > 1 else 1
    part.conv = nn.Conv2d(
        weight.shape[1] * groups,
        len(weight),
        whole.kernel_size,  # type: ignore[arg-type]
        whole.stride,  # type: ignore[arg-type]
        whole.padding,  # type: ignore[arg-type]
        whole.dilation,  # type: ignore[arg-type]
        groups,
        bias=bias,
    )
    part.conv.weight = nn.Parameter(weight, requires_grad=False)
    if bias:
        assert whole.bias is not None
        part.conv.bias = nn.Parameter(whole.bias[outputs].clone(), requires_grad=False)
    return part


def check_bottlenecks(backbone: MobileNetV2, what: str) -> None:
    """Refuses the bottlenecks of ablations: the outputs of their parts cannot be added up.

    Args:
        backbone: With `Folded` layers.
        what: The setting that needs bottlenecks as published, for the message.

    Raises:
        ConfigError: They are not as published.
    """
    layers = [getattr(block, name, None) for block in backbone.blocks for name in ("depthwise", "project")]
    linear = all(getattr(layer, "high", None) is None for layer in layers[1::2])
    active = all(layer is None or layer.high is not None for layer in layers[::2])
    expanded = all(getattr(block, "expand", None) is not None for block in backbone.blocks[1:])
    if backbone.carrying or not (linear and active and expanded):
        raise ConfigError(f"{what}: needs bottlenecks as published: expanded, linear, with the shortcut between them")


def part_of(hidden: int, splits: int) -> int:
    """The number of channels of every part but the last: whole vector registers, unless a part fills less than one."""
    part = -(-hidden // splits)
    return part if part < LANES else -(-part // LANES) * LANES
