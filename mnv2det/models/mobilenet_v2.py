"""The MobileNetV2 backbone (Sandler et al., arXiv 1801.04381, Table 2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from mnv2det.errors import WeightsError
from mnv2det.models.backbone import Backbone, Features, collect, read_taps, split_tap
from mnv2det.models.layers import (
    Activation,
    ConvNorm,
    InvertedResidual,
    Padding,
    init_weights,
    make_divisible,
)
from mnv2det.ranges import NormEpsilon, PositiveInt, Share, Width
from mnv2det.registry import BACKBONES
from mnv2det.structures import FeatureInfo

# Table 2: expansion t, channels c, repeats n, stride s
TABLE_2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _check(args: Mapping[str, Any]) -> Iterator[str]:
    if args["shortcut"] == "expansion" and args["expansion"] == 1:
        yield "shortcut: with expansion 1 there are no expanded tensors to join"


@BACKBONES.register("mobilenet_v2", check=_check)
class MobileNetV2(Backbone):
    """Stem, 17 inverted residuals and the last 1x1 convolution.

    Features: ``image`` (the input itself, for its size), ``stem``, ``block1`` ... ``block17``,
    ``block2.expand`` ... ``block17.expand`` (the expanded tensor inside a block) and ``last``.

    Args:
        width: Multiplier of all channel counts but the last, which never shrinks below 1280
            (paper, section 4: "for multipliers less than one").
        divisor: What channel counts are multiples of: 8 as in the paper's code, 1 as in DeepLab's for widths below 1,
            or 4 as in mobilenetv2.pytorch's width of 0.1.
        last_channels: Of the last convolution; null takes the paper's. The Object Detection API's are 1280 times the
            width for widths below 1 as well.
        output_stride: 32, 16 or 8. A layer that would exceed it loses its stride but keeps its
            dilation; only later layers double theirs. So the last map, read at stride 32
            (tap ``last/32``), is the same for every output stride.
        dilate: Which layers are dilated for that: those that come ``later`` than a layer without its stride, as
            published; or, as MMSegmentation trains it, the ``first`` of each row of Table 2 alone, that layer itself
            included. The map at stride 32 is another one then.
        padding: ``symmetric`` (torchvision's weights) or ``same`` (TensorFlow's).
        norm_eps: Epsilon of batch norm: 1e-3 in TensorFlow, 1e-5 in torchvision's weights.
        norm_momentum: Weight of the newest batch in the running statistics. 0.03 suits short
            schedules; the authors used 0.0003 (decay .9997).
        expansion: t of all rows of Table 2 but the first, whose t is 1. This and the following arguments are for
            the paper's ablations (section 6.4); no published weights have other values.
        act: Activation inside the bottlenecks, and of the first and last convolution.
        bottleneck_act: Activation behind the projection, before the shortcut is added; the paper's is linear.
        shortcut: What shortcuts connect: ``bottleneck``, the thin tensors; ``expansion``, the expanded tensors of
            consecutive blocks, in the same blocks; ``none`` leaves them out.
    """

    def __init__(
        self,
        *,
        width: Width = 1.0,
        divisor: Literal[1, 4, 8] = 8,
        last_channels: PositiveInt | None = None,
        output_stride: Literal[8, 16, 32] = 32,
        dilate: Literal["later", "first"] = "later",
        padding: Padding = "symmetric",
        norm_eps: NormEpsilon = 1e-3,
        norm_momentum: Share = 0.03,
        expansion: Annotated[int, Field(ge=1, le=20)] = 6,
        act: Activation = "relu6",
        bottleneck_act: Activation = "none",
        shortcut: Literal["bottleneck", "expansion", "none"] = "bottleneck",
    ) -> None:
        super().__init__()
        self.padding: Padding = padding
        channels = make_divisible(32 * width, divisor)
        self.stem = ConvNorm(3, channels, 3, stride=2, pad=padding, act=act, eps=norm_eps, momentum=norm_momentum)
        known = {"image": FeatureInfo(3, 1), "stem": FeatureInfo(channels, 2)}
        self.blocks = nn.ModuleList()
        stride, dilation = 2, 1
        # blocks whose expanded tensor is added to that of the next block
        self.carrying: set[int] = set()
        for published, base, repeats, first_stride in TABLE_2:
            times = expansion if published > 1 else 1
            outputs = make_divisible(base * width, divisor)
            for repeat in range(repeats):
                step = first_stride if repeat == 0 else 1
                number, lost = len(self.blocks) + 1, 1
                if step > 1 and stride >= output_stride:
                    step, lost = 1, step
                if times > 1:
                    known[f"block{number}.expand"] = FeatureInfo(channels * times, stride)
                # a layer that lost its stride is still the first of its row, which has no shortcut
                joins = step == 1 and lost == 1 and channels == outputs
                if joins and shortcut == "expansion" and times > 1:
                    self.carrying.add(number)
                stride *= step
                self.blocks.append(
                    InvertedResidual(
                        channels,
                        outputs,
                        stride=step,
                        expansion=times,
                        dilation=dilation if dilate == "later" else dilation * lost if repeat == 0 else 1,
                        pad=padding,
                        act=act,
                        bottleneck_act=bottleneck_act,
                        eps=norm_eps,
                        momentum=norm_momentum,
                        shortcut=joins and shortcut == "bottleneck",
                    )
                )
                dilation *= lost
                channels = outputs
                known[f"block{number}"] = FeatureInfo(channels, stride)
        last = last_channels or max(1280, make_divisible(1280 * width, divisor))
        self.last: ConvNorm | None = ConvNorm(channels, last, act=act, eps=norm_eps, momentum=norm_momentum)
        known["last"] = FeatureInfo(last, stride)
        self.features = Features(known)
        init_weights(self)

    def forward(self, images: Tensor, taps: Iterable[str] = ("last",)) -> dict[str, Tensor]:
        """See `Backbone`."""
        taps = tuple(taps)
        names, end = {split_tap(tap)[0] for tap in taps}, f"block{len(self.blocks)}"
        values = collect(images, {end if name == "last" else name for name in names}, self._walk(images))
        strides = {name: self.features[name].stride for name in values}
        if "last" in names and self.last is not None:
            # it is a 1x1 convolution, so the positions that nobody reads need not be computed
            strides["last"] = self.features.finest_stride("last", taps)
            tap = f"{end}/{strides['last']}"
            values["last"] = self.last(read_taps([tap], values, strides, self.padding)[tap])
        return read_taps(taps, values, strides, self.padding)

    def truncate(self, taps: Iterable[str]) -> None:
        """See `Backbone`."""
        names = {split_tap(tap)[0] for tap in taps}
        if "last" in names:
            return
        self.last = None
        depths = {name: int(name.removeprefix("block").removesuffix(".expand")) for name in names if "block" in name}
        depth = max(depths.values(), default=0)
        del self.blocks[depth:]
        if depth and f"block{depth}" not in names:
            # only the expanded tensor of the last block is read
            del self.blocks[-1].depthwise, self.blocks[-1].project

    def stages(self) -> list[tuple[str, nn.Module]]:
        """See `Backbone`."""
        blocks = [(f"block{number}", block) for number, block in enumerate(self.blocks, 1)]
        return [("stem", self.stem), *blocks, *([("last", self.last)] if self.last is not None else [])]

    def _walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = self.stem(x)
        yield "stem", x
        carried: Tensor | None = None
        for number, block in enumerate(self.blocks, 1):
            assert isinstance(block, InvertedResidual)
            widened = block.widen(x) if carried is None else block.widen(x) + carried
            carried = widened if number in self.carrying else None
            yield f"block{number}.expand", widened
            x = block.finish(x, widened)
            yield f"block{number}", x


def width_of(stem: int, outputs: list[int], *, where: str) -> tuple[float, int]:
    """Finds the width multiplier and divisor that give these channel counts.

    Args:
        stem: Channels of the first convolution.
        outputs: Output channels of the 17 bottlenecks.
        where: Name of the source, for messages.

    Raises:
        WeightsError: No multiplier from 0.05 to 4 in steps of 0.05 gives them.
    """
    # the usual multipliers first: several can give the same channels
    usual = (1.0, 0.35, 0.5, 0.75, 1.3, 1.4, *(round(0.05 * n, 2) for n in range(1, 81)))
    for divisor, width in product((8, 1, 4), usual):
        rows = [make_divisible(base * width, divisor) for _, base, repeats, _ in TABLE_2 for _ in range(repeats)]
        if stem == make_divisible(32 * width, divisor) and outputs == rows:
            return width, divisor
    raise WeightsError(f"{where}: channels {[stem, *outputs]} are those of no MobileNetV2 width multiplier")
