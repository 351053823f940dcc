"""The MobileNetV1 backbone (Howard et al., arXiv 1704.04861, Table 1): what the paper compares with."""

from __future__ import annotations

from typing import Literal

from torch import nn

from mnv2det.models.backbone import Features
from mnv2det.models.layers import ConvNorm, Padding, Separable, init_weights, make_divisible
from mnv2det.models.variants.chain import Chain
from mnv2det.ranges import NormEpsilon, Share, Width
from mnv2det.registry import BACKBONES
from mnv2det.structures import FeatureInfo

# Table 1: channels and stride of every separable layer. It gives the last layer stride 2, but the same 7x7 map.
TABLE_1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


@BACKBONES.register("mobilenet_v1")
class MobileNetV1(Chain):
    """Stem and 13 depthwise-separable layers.

    Features: ``image`` (the input itself, for its size), ``stem``, ``block1`` ... ``block13`` (TensorFlow's
    ``Conv2d_1_pointwise`` ...) and ``last``, which is ``block13``. SSDLite's published taps are ``block11/16`` and
    ``last/32``; DeepLab reads ``last``.

    Args:
        width: Multiplier of all channel counts.
        output_stride: 32, 16 or 8, by dilation. As in `MobileNetV2` the last map, read at stride 32 (tap
            ``last/32``), is the same for every output stride.
        padding: ``symmetric`` or ``same`` (TensorFlow's).
        act: ReLU6 as in the released weights, or ReLU as in Howard et al.
        norm_eps: Epsilon of batch norm.
        norm_momentum: Weight of the newest batch in the running statistics.
    """

    def __init__(
        self,
        *,
        width: Width = 1.0,
        output_stride: Literal[8, 16, 32] = 32,
        padding: Padding = "symmetric",
        act: Literal["relu6", "relu"] = "relu6",
        norm_eps: NormEpsilon = 1e-3,
        norm_momentum: Share = 0.03,
    ) -> None:
        super().__init__()
        self.padding: Padding = padding
        channels = make_divisible(32 * width)
        self.stem = ConvNorm(3, channels, 3, stride=2, pad=padding, act=act, eps=norm_eps, momentum=norm_momentum)
        known = {"image": FeatureInfo(3, 1), "stem": FeatureInfo(channels, 2)}
        self.blocks = nn.ModuleList()
        stride, dilation = 2, 1
        for number, (base, step) in enumerate(TABLE_1, 1):
            outputs, lost = make_divisible(base * width), 1
            if step > 1 and stride >= output_stride:
                step, lost = 1, step
            stride *= step
            self.blocks.append(
                Separable(
                    channels,
                    outputs,
                    stride=step,
                    dilation=dilation,
                    pad=padding,
                    act=act,
                    eps=norm_eps,
                    momentum=norm_momentum,
                )
            )
            dilation *= lost
            channels = outputs
            known[f"block{number}"] = FeatureInfo(channels, stride)
        self.depth = len(TABLE_1)
        known["last"] = known[f"block{self.depth}"]
        self.features = Features(known)
        init_weights(self)
