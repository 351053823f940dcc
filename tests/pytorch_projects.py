"""Networks of PyTorch projects, built anew from their public layer definitions, with the names of their tensors.

Nothing here uses mnv2det. Each network has its project's own priors and box decoding as well.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# expansion, channels, repeats, stride: Table 2 of the paper, which all projects repeat
ROWS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def divisible(value: float, divisor: int = 8) -> int:
    """The rounding of mobilenetv2.pytorch, timm and OpenMMLab."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * value else rounded + divisor


def unit(
    inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, act: bool = True
) -> list[Any]:
    """Convolution, batch norm and ReLU6 as three modules."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), *([nn.ReLU6()] if act else [])]


class SequenceBlock(nn.Module):
    """InvertedResidual of MobileNetV2.py in github.com/tonylins/pytorch-mobilenet-v2."""

    def __init__(self, inputs: int, outputs: int, stride: int, ratio: float) -> None:
        super().__init__()
        hidden = round(inputs * ratio)
        expand = unit(inputs, hidden) if ratio != 1 else []
        depthwise = unit(hidden, hidden, 3, stride=stride, groups=hidden)
        self.conv = nn.Sequential(*expand, *depthwise, *unit(hidden, outputs, act=False))
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


def sequence_features(stem: int, channels: list[int]) -> list[nn.Module]:
    """Stem and bottlenecks; ``channels`` of each row."""
    layers: list[nn.Module] = [nn.Sequential(*unit(3, stem, 3, stride=2))]
    inputs = stem
    for (ratio, _, repeats, stride), outputs in zip(ROWS, channels, strict=True):
        for number in range(repeats):
            layers.append(SequenceBlock(inputs, outputs, stride if number == 0 else 1, ratio))
            inputs = outputs
    return layers


class PytorchMobileNetV2(nn.Module):
    """MobileNetV2.py of github.com/tonylins/pytorch-mobilenet-v2; ``nested`` has the classifier behind a dropout."""

    def __init__(self, classes: int, *, nested: bool = False) -> None:
        super().__init__()
        layers = sequence_features(32, [channels for _, channels, _, _ in ROWS])
        self.features = nn.Sequential(*layers, nn.Sequential(*unit(320, 1280)))
        linear = nn.Linear(1280, classes)
        self.classifier = nn.Sequential(nn.Dropout(), linear) if nested else linear

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(3).mean(2))


class MobileNetV2Pytorch(nn.Module):
    """models/imagenet/mobilenetv2.py of github.com/d-li14/mobilenetv2.pytorch."""

    def __init__(self, classes: int, width: float) -> None:
        super().__init__()
        divisor = 4 if width == 0.1 else 8
        channels = [divisible(base * width, divisor) for _, base, _, _ in ROWS]
        self.features = nn.Sequential(*sequence_features(divisible(32 * width, divisor), channels))
        last = divisible(1280 * width, divisor) if width > 1 else 1280
        self.conv = nn.Sequential(*unit(channels[-1], last))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.conv(self.features(x))).flatten(1))


class TimmBlock(nn.Module):
    """DepthwiseSeparableConv and InvertedResidual of timm/models/_efficientnet_blocks.py."""

    def __init__(self, inputs: int, outputs: int, stride: int, ratio: int) -> None:
        super().__init__()
        hidden = inputs * ratio
        self.separable, self.skip = ratio == 1, stride == 1 and inputs == outputs
        depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        if self.separable:
            self.conv_dw, self.bn1 = depthwise, nn.BatchNorm2d(hidden)
            self.conv_pw, self.bn2 = nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        else:
            self.conv_pw, self.bn1 = nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
            self.conv_dw, self.bn2 = depthwise, nn.BatchNorm2d(hidden)
            self.conv_pwl, self.bn3 = nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.separable:
            return self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))
        y = F.relu6(self.bn2(self.conv_dw(F.relu6(self.bn1(self.conv_pw(x))))))
        return x + self.bn3(self.conv_pwl(y)) if self.skip else self.bn3(self.conv_pwl(y))


class Timm(nn.Module):
    """``mobilenetv2_*`` of timm/models/efficientnet.py in github.com/huggingface/pytorch-image-models."""

    def __init__(self, classes: int, width: float) -> None:
        super().__init__()
        stem, last = divisible(32 * width), max(1280, divisible(1280 * width))
        self.conv_stem, self.bn1 = nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem)
        self.blocks, inputs = nn.Sequential(), stem
        for ratio, base, repeats, stride in ROWS:
            outputs = divisible(base * width)
            steps = [(inputs, stride)] + [(outputs, 1)] * (repeats - 1)
            self.blocks.append(nn.Sequential(*(TimmBlock(each, outputs, step, ratio) for each, step in steps)))
            inputs = outputs
        self.conv_head, self.bn2 = nn.Conv2d(inputs, last, 1, bias=False), nn.BatchNorm2d(last)
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.bn1(self.conv_stem(x))))
        return self.classifier(F.relu6(self.bn2(self.conv_head(x))).mean((2, 3)))


def flat(maps: Tensor, values: int) -> Tensor:
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, values)


class PytorchSSD(nn.Module):
    """``mb2-ssd-lite``: vision/ssd/mobilenet_v2_ssd_lite.py and ssd.py of github.com/qfgaohao/pytorch-ssd."""

    sides = ((60, 105), (105, 150), (150, 195), (195, 240), (240, 285), (285, 330))
    cells = (16, 32, 64, 100, 150, 300)
    maps = (19, 10, 5, 3, 2, 1)

    def __init__(self, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        channels = [int(base * width) for _, base, _, _ in ROWS]
        last = nn.Sequential(*unit(channels[-1], 1280))
        self.base_net = nn.Sequential(*sequence_features(int(32 * width), channels), last)
        extras = ((1280, 512, 0.2), (512, 256, 0.25), (256, 256, 0.5), (256, 64, 0.25))
        self.extras = nn.ModuleList(SequenceBlock(inputs, outputs, 2, ratio) for inputs, outputs, ratio in extras)
        inputs = (round(576 * width), 1280, 512, 256, 256)
        for name, values in (("classification_headers", num_classes), ("regression_headers", 4)):
            heads: list[nn.Module] = []
            for each in inputs:
                depthwise = nn.Conv2d(each, each, 3, padding=1, groups=each)  # with a bias, before batch norm
                heads.append(nn.Sequential(depthwise, nn.BatchNorm2d(each), nn.ReLU6(), nn.Conv2d(each, 6 * values, 1)))
            setattr(self, name, nn.ModuleList([*heads, nn.Conv2d(64, 6 * values, 1)]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits with the background first, and box codes, of a normalised picture."""
        levels = []
        for number, layer in enumerate(self.base_net):
            if number == 14:  # GraphPath(14, 'conv', 3)
                levels.append(layer.conv[:3](x))
            x = layer(x)
        levels.append(x)
        for layer in self.extras:
            levels.append(layer(levels[-1]))
        logits = [flat(head(y), self.num_classes) for head, y in zip(self.classification_headers, levels, strict=True)]
        codes = [flat(head(y), 4) for head, y in zip(self.regression_headers, levels, strict=True)]
        return torch.cat(logits, 1), torch.cat(codes, 1)

    def normalize(self, picture: Tensor) -> Tensor:
        """Of an RGB picture, 0 ... 255: mobilenetv1_ssd_config.py."""
        return (picture.float() - 127) / 128

    def priors(self) -> Tensor:
        """(centre x, centre y, width, height) as shares of the picture: generate_ssd_priors of box_utils.py."""
        rows = []
        for count, cell, (least, largest) in zip(self.maps, self.cells, self.sides, strict=True):
            for row, column in itertools.product(range(count), repeat=2):
                x, y = ((n + 0.5) * cell / 300 for n in (column, row))
                small, big = least / 300, math.sqrt(least * largest) / 300
                rows += [[x, y, small, small], [x, y, big, big]]
                for root in (math.sqrt(2), math.sqrt(3)):
                    rows += [[x, y, small * root, small / root], [x, y, small / root, small * root]]
        return torch.tensor(rows).clamp(0, 1)

    def boxes(self, codes: Tensor) -> Tensor:
        """xyxy in pixels: convert_locations_to_boxes and center_form_to_corner_form of box_utils.py."""
        priors = self.priors()
        center = codes[..., :2] * 0.1 * priors[:, 2:] + priors[:, :2]
        size = (codes[..., 2:] * 0.2).exp() * priors[:, 2:]
        return torch.cat([center - size / 2, center + size / 2], -1) * 300


@torch.no_grad()
def settle(network: nn.Module, images: Tensor) -> None:
    """Norms that do something, with statistics near those of real inputs, so that deep layers depend on the picture."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.3)
        nn.init.normal_(norm.bias, std=0.3)
        norm.momentum = None
    network.train()(images)
    for norm in norms:
        # of the few values of the coarsest maps, some hardly vary: they would magnify rounding
        norm.running_var.clamp_(min=0.1).mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.2))
        norm.running_mean += torch.randn_like(norm.running_mean) * 0.1
    network.eval()
