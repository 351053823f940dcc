"""OpenMMLab's networks, built anew from their public layer definitions, with the names of their tensors.

Nothing here uses mnv2det. The detector has its project's own anchors and box decoding as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_projects import ROWS, divisible, flat
from torch import Tensor, nn
from torch.nn import functional as F


class ConvModule(nn.Module):
    """ConvModule of mmcv/cnn/bricks/conv_module.py."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, *, act: str = "relu6", **conv: Any) -> None:
        super().__init__()
        padding = conv.get("dilation", 1) * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False, **conv)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu6(x) if self.act == "relu6" else F.relu(x) if self.act == "relu" else x


class DetBlock(nn.Module):
    """mmdet/models/layers/inverted_residual.py."""

    def __init__(self, inputs: int, outputs: int, stride: int, ratio: int) -> None:
        super().__init__()
        hidden = inputs * ratio
        if ratio != 1:
            self.expand_conv = ConvModule(inputs, hidden)
        self.depthwise_conv = ConvModule(hidden, hidden, 3, stride=stride, groups=hidden)
        self.linear_conv = ConvModule(hidden, outputs, act="none")
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand_conv(x) if hasattr(self, "expand_conv") else x
        y = self.linear_conv(self.depthwise_conv(y))
        return x + y if self.skip else y


class SegBlock(nn.Module):
    """InvertedResidual of mmseg/models/utils/inverted_residual.py."""

    def __init__(self, inputs: int, outputs: int, stride: int, ratio: int, dilation: int) -> None:
        super().__init__()
        hidden = inputs * ratio
        expand = [ConvModule(inputs, hidden)] if ratio != 1 else []
        depthwise = ConvModule(hidden, hidden, 3, stride=stride, groups=hidden, dilation=dilation)
        self.conv = nn.Sequential(*expand, depthwise, ConvModule(hidden, outputs, act="none"))
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class OpenMMLabBackbone(nn.Module):
    """mobilenet_v2.py of mmdet/models/backbones (without ``strides``) or of mmseg/models/backbones."""

    def __init__(self, width: float, strides: tuple[int, ...] = (), dilations: tuple[int, ...] = ()) -> None:
        super().__init__()
        inputs = divisible(32 * width)
        self.conv1 = ConvModule(3, inputs, 3, stride=2)
        for row, (ratio, base, repeats, stride) in enumerate(ROWS):
            blocks, outputs = [], divisible(base * width)
            for number in range(repeats):
                first = number == 0
                if strides:
                    step, dilation = (strides[row], dilations[row]) if first else (1, 1)
                    blocks.append(SegBlock(inputs, outputs, step, ratio, dilation))
                else:
                    blocks.append(DetBlock(inputs, outputs, stride if first else 1, ratio))
                inputs = outputs
            setattr(self, f"layer{row + 1}", nn.Sequential(*blocks))
        if not strides:
            self.conv2 = ConvModule(inputs, int(1280 * width) if width > 1 else 1280)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs of all rows and, where there is one, of the last convolution."""
        outputs, x = [], self.conv1(x)
        for name in [*(f"layer{row}" for row in range(1, 8)), *(["conv2"] if hasattr(self, "conv2") else [])]:
            x = getattr(self, name)(x)
            outputs.append(x)
        return outputs


class DepthwiseSeparable(nn.Module):
    """DepthwiseSeparableConvModule of mmcv/cnn/bricks."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvModule(inputs, inputs, 3, stride=2, groups=inputs)
        self.pointwise_conv = ConvModule(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class MMDetection(nn.Module):
    """configs/ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py of github.com/open-mmlab/mmdetection."""

    sides = ((48, 100), (100, 150), (150, 202), (202, 253), (253, 304), (304, 320))
    strides = (16, 32, 64, 107, 160, 320)
    maps = (20, 10, 5, 3, 2, 1)

    def __init__(self, classes: int, width: float = 1.0) -> None:
        super().__init__()
        self.classes = classes
        self.backbone = OpenMMLabBackbone(width)
        channels = (divisible(96 * width), self.backbone.conv2.conv.out_channels, 512, 256, 256, 128)
        self.neck, self.bbox_head = nn.Module(), nn.Module()
        self.neck.extra_layers = nn.ModuleList(
            nn.Sequential(ConvModule(inputs, outputs // 2), DepthwiseSeparable(outputs // 2, outputs))
            for inputs, outputs in itertools.pairwise(channels[1:])
        )
        for name, values in (("cls_convs", classes + 1), ("reg_convs", 4)):
            heads = [nn.Sequential(ConvModule(c, c, 3, groups=c), nn.Conv2d(c, 6 * values, 1)) for c in channels]
            setattr(self.bbox_head, name, nn.ModuleList(heads))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits with the background last, and box codes, of a normalised picture."""
        outputs = self.backbone(x)
        levels = [outputs[4], outputs[7]]  # out_indices
        for layer in self.neck.extra_layers:
            levels.append(layer(levels[-1]))
        logits = [flat(head(y), self.classes + 1) for head, y in zip(self.bbox_head.cls_convs, levels, strict=True)]
        codes = [flat(head(y), 4) for head, y in zip(self.bbox_head.reg_convs, levels, strict=True)]
        return torch.cat(logits, 1), torch.cat(codes, 1)

    def normalize(self, picture: Tensor) -> Tensor:
        """Of an RGB picture, 0 ... 255."""
        mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])
        return (picture - mean[:, None, None]) / std[:, None, None]

    def anchors(self) -> Iterator[Tensor]:
        """Of each level: SSDAnchorGenerator of mmdet/models/task_modules/prior_generators/anchor_generator.py."""
        for count, stride, (least, largest) in zip(self.maps, self.strides, self.sides, strict=True):
            scales, ratios = torch.tensor([1.0, math.sqrt(largest / least)]), torch.tensor([1, 1 / 2, 2, 1 / 3, 3])
            heights, widths = (least * scales[:, None] * side for side in (ratios.sqrt(), 1 / ratios.sqrt()))
            order = [0, 5, 1, 2, 3, 4]  # of the ten, the second square is moved behind the first
            half = torch.stack([widths.flatten(), heights.flatten()], 1)[order] / 2
            base = torch.cat([stride / 2 - half, stride / 2 + half], 1)
            steps = torch.arange(count) * stride
            y, x = torch.meshgrid(steps, steps, indexing="ij")
            yield (torch.stack([x, y, x, y], -1).reshape(-1, 1, 4) + base).reshape(-1, 4)

    def boxes(self, codes: Tensor) -> Tensor:
        """xyxy in pixels: DeltaXYWHBBoxCoder of mmdet/models/task_modules/coders."""
        anchors = torch.cat([*self.anchors()])
        deltas = codes * torch.tensor([0.1, 0.1, 0.2, 0.2])
        size = anchors[:, 2:] - anchors[:, :2]
        center = (anchors[:, 2:] + anchors[:, :2]) / 2 + deltas[..., :2] * size
        size = size * deltas[..., 2:].clamp(-abs(math.log(16 / 1000)), abs(math.log(16 / 1000))).exp()
        return torch.cat([center - size / 2, center + size / 2], -1)


class MMSegmentation(nn.Module):
    """configs/mobilenet_v2/mobilenet-v2-d8_deeplabv3_* of github.com/open-mmlab/mmsegmentation, with ASPPHead."""

    def __init__(self, classes: int, width: float = 1.0, channels: int = 512) -> None:
        super().__init__()
        self.backbone = OpenMMLabBackbone(width, (1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4))
        inputs, self.decode_head, self.auxiliary_head = divisible(320 * width), nn.Module(), nn.Module()
        head = self.decode_head
        head.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(inputs, channels, act="relu"))
        head.aspp_modules = nn.ModuleList(
            ConvModule(inputs, channels, 1 if rate == 1 else 3, act="relu", dilation=rate) for rate in (1, 12, 24, 36)
        )
        head.bottleneck = ConvModule(5 * channels, channels, 3, act="relu")
        head.conv_seg = nn.Conv2d(channels, classes, 1)
        self.auxiliary_head.convs = nn.Sequential(ConvModule(divisible(96 * width), 16, 3, act="relu"))
        self.auxiliary_head.conv_seg = nn.Conv2d(16, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the map."""
        x, head = self.backbone(x)[6], self.decode_head
        pooled = F.interpolate(head.image_pool(x), x.shape[2:], mode="bilinear", align_corners=False)
        return head.conv_seg(head.bottleneck(torch.cat([pooled, *(branch(x) for branch in head.aspp_modules)], 1)))
