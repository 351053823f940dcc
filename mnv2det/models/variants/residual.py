"""MobileNetV2 with the classical residual bottlenecks that the paper compares with (Figure 3)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from mnv2det.models.backbone import Features
from mnv2det.models.layers import ConvNorm, Padding, Residual, init_weights, make_divisible
from mnv2det.models.mobilenet_v2 import TABLE_2
from mnv2det.models.variants.chain import Chain
from mnv2det.ranges import NormEpsilon, Share, Width
from mnv2det.registry import BACKBONES
from mnv2det.structures import FeatureInfo


@BACKBONES.register("mobilenet_residual")
class MobileNetResidual(Chain):
    """Stem and 17 residual bottlenecks with the channels of MobileNetV2's Table 2.

    The reduced tensors inside a bottleneck have the table's channels, its input and output t times as many, and
    the last output 1280. These are the tensors of MobileNetV2, but the shortcuts connect the wide ones, and the
    depthwise layers work on the thin ones. The paper has no such network in its tables; it is one way to build
    its Figure 3a.

    Features: ``image``, ``stem``, ``block1`` ... ``block17`` and ``last``, which is ``block17``. SSDLite reads
    ``block13/16`` and ``last/32``, DeepLab ``last``.

    Args:
        width: Multiplier of all channel counts but the last, which never shrinks below 1280.
        output_stride: 32, 16 or 8, by dilation, as in `MobileNetV2`.
        padding: ``symmetric`` or ``same``.
        norm_eps: Epsilon of batch norm.
        norm_momentum: Weight of the newest batch in the running statistics.
    """

    def __init__(
        self,
        *,
        width: Width = 1.0,
        output_stride: Literal[8, 16, 32] = 32,
        padding: Padding = "symmetric",
        norm_eps: NormEpsilon = 1e-3,
        norm_momentum: Share = 0.03,
    ) -> None:
        super().__init__()
        self.padding = padding
        channels = make_divisible(32 * width)
        self.stem = ConvNorm(3, channels, 3, stride=2, pad=padding, eps=norm_eps, momentum=norm_momentum)
        known = {"image": FeatureInfo(3, 1), "stem": FeatureInfo(channels, 2)}
        self.blocks = nn.ModuleList()
        self.depth = sum(repeats for _, _, repeats, _ in TABLE_2)
        stride, dilation = 2, 1
        for times, base, repeats, first_stride in TABLE_2:
            inner = make_divisible(base * width)
            for repeat in range(repeats):
                number, step, lost = len(self.blocks) + 1, first_stride if repeat == 0 else 1, 1
                if step > 1 and stride >= output_stride:
                    step, lost = 1, step
                outputs = inner * times if number < self.depth else max(1280, make_divisible(1280 * width))
                stride *= step
                self.blocks.append(
                    Residual(
                        channels,
                        inner,
                        outputs,
                        stride=step,
                        dilation=dilation,
                        pad=padding,
                        eps=norm_eps,
                        momentum=norm_momentum,
                        # a layer that lost its stride is still the first of its row, which has no shortcut
                        shortcut=False if lost > 1 else None,
                    )
                )
                dilation *= lost
                channels = outputs
                known[f"block{number}"] = FeatureInfo(channels, stride)
        known["last"] = known[f"block{self.depth}"]
        self.features = Features(known)
        init_weights(self)
