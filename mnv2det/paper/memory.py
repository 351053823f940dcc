"""How much memory a backbone's activations take: section 5.1 of the paper, and its Table 3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mnv2det.models.backbone import Backbone
from mnv2det.models.layers import ConvNorm, InvertedResidual, Separable

BYTES = 2  # of an activation: "We assume 16-bit floats" (Table 3)


class Operator(NamedTuple):
    """A step of inference, and the activations in memory while it runs.

    Attributes:
        name: Of the layers it stands for.
        inputs: Number of values it reads.
        outputs: Number of values it writes.
        inner: Number of further values it holds while it runs.
        channels: Channels of its output.
        side: Side of its square output, pixels.
    """

    name: str
    inputs: int
    outputs: int
    inner: int
    channels: int
    side: int

    @property
    def memory(self) -> int:
        """Bytes of inputs, outputs and what the operator itself holds (equation 2)."""
        return (self.inputs + self.outputs + self.inner) * BYTES

    @property
    def tensor(self) -> int:
        """Bytes of its output, which must be materialised."""
        return self.outputs * BYTES


def image(size: int) -> Tensor:
    """An input on the meta device, (1, 3, size, size)."""
    return torch.empty(1, 3, size, size, device="meta")


def peak(steps: list[Operator]) -> Operator:
    """The operator that decides how much memory the graph needs (equation 2)."""
    return max(steps, key=lambda step: step.memory)


@torch.no_grad()
def convolutions(backbone: Backbone, size: int) -> list[Operator]:
    """The plain graph: every convolution (with norm and activation) and every shortcut is an operator.

    Args:
        backbone: On the meta device, in eval mode; each of its stages reads the one before.
        size: Side of its square input, pixels.
    """
    operators = []
    x = image(size)
    for name, stage in backbone.stages():
        y = x
        for layer in _layers(stage):
            z = layer(y)
            operators.append(_operator(name, [y], z))
            y = z
        if isinstance(stage, InvertedResidual) and stage.shortcut:
            operators.append(_operator(f"{name} shortcut", [x, y], y))
        x = y
    return [*operators, _operator("pooling", [x], _pooled(x))]


@torch.no_grad()
def blocks(backbone: Backbone, size: int, *, split: int | None = None) -> list[Operator]:
    """The graph whose operators are whole layers of the paper: their expanded tensors are never materialised.

    A bottleneck is F(x) = sum over i of (A_i N B_i)(x), i over ``split`` parts of the expanded channels; only one part
    is in memory at a time. MobileNetV2's stem is computed with the first bottleneck ("the trick" of Table 3) and its
    last 1x1 convolution with the pooling behind it, in the same way.

    Args:
        backbone: As for `convolutions`.
        size: Side of its square input, pixels.
        split: Number of parts; a layer with fewer channels has one part per channel. None does not count what is inside
            of an operator.
    """
    operators = []
    x = image(size)
    for name, stages in _joined(backbone):
        y, inner = x, 0
        layers = [layer for stage in stages for layer in _layers(stage)]
        for layer in layers:
            z = layer(y)
            if layer is not layers[-1] or name == "last":
                # convolutions between the first and the last one work on the same channels, one by one
                inner += _part(z, split)
            y = z
        if name == "last":
            y = _pooled(y)
        operators.append(_operator(name, [x], y, inner))
        x = y
    return operators if operators[-1].side == 1 else [*operators, _operator("pooling", [x], _pooled(x))]


def largest(steps: list[Operator]) -> dict[int, tuple[int, int]]:
    """The values of Table 3: by side of the map, the most channels materialised there and their bytes."""
    most: dict[int, tuple[int, int]] = {}
    for step in steps:
        most[step.side] = max(most.get(step.side, (0, 0)), (step.channels, step.tensor))
    return most


def _joined(backbone: Backbone) -> Iterator[tuple[str, list[nn.Module]]]:
    """Names and stages of a backbone, with the stem and the first bottleneck as one."""
    stages = backbone.stages()
    if len(stages) > 1 and isinstance(stages[1][1], InvertedResidual):
        yield "stem and block1", [stages[0][1], stages[1][1]]
        stages = stages[2:]
    for name, stage in stages:
        yield name, [stage]


def _layers(stage: nn.Module) -> list[ConvNorm]:
    """A stage's convolutions; they are registered in the order they run in."""
    assert isinstance(stage, ConvNorm | InvertedResidual | Separable)
    return [layer for layer in stage.modules() if isinstance(layer, ConvNorm)]


def _pooled(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3), keepdim=True)


def _part(x: Tensor, split: int | None) -> int:
    """Values of one of ``split`` parts of the channels."""
    return 0 if split is None else -(-x.shape[1] // split) * x.shape[2] * x.shape[3]


def _operator(name: str, inputs: list[Tensor], output: Tensor, inner: int = 0) -> Operator:
    read = sum(x.numel() for x in inputs)
    return Operator(name, read, output.numel(), inner, output.shape[1], output.shape[-1])
