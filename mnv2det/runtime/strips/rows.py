"""Which rows of its input a convolution needs for some rows of its output."""

from __future__ import annotations

import math
from typing import NamedTuple

from mnv2det.ops.padding import same_padding

Size = tuple[int, int]  # (H, W)


class Rows(NamedTuple):
    """The rows of a convolution's input that some rows of its output need.

    Attributes:
        start: The first one that lies inside of the input.
        stop: The one behind the last that lies inside.
        above: How many more are padding above the input.
        below: How many more are padding below it.
    """

    start: int
    stop: int
    above: int
    below: int

    @property
    def inside(self) -> int:
        """Number of rows that lie inside of the input."""
        return self.stop - self.start

    @property
    def padded(self) -> int:
        """Number of rows with the padding."""
        return self.inside + self.above + self.below


class Window(NamedTuple):
    """How a convolution slides along an axis.

    Attributes:
        reach: Dilation x (kernel - 1); 0 for a 1x1.
        stride: Distance of neighbouring windows.
        pad: Padding before and after the axis; None for TensorFlow's SAME.
    """

    reach: int = 0
    stride: int = 1
    pad: int | None = 0

    def size(self, length: int) -> int:
        """Length of the output for an input of this length."""
        return -(-length // self.stride)

    def sides(self, length: int) -> tuple[int, int]:
        """Padding before and after an input of this length."""
        if self.pad is not None:
            return self.pad, self.pad
        return same_padding(length, self.reach + 1, self.stride)

    def rows(self, start: int, stop: int, length: int) -> Rows:
        """The rows of an input of this length that the output's rows from ``start`` to ``stop`` need."""
        before, _ = self.sides(length)
        first = start * self.stride - before
        last = (stop - 1) * self.stride - before + self.reach + 1
        return Rows(max(first, 0), min(last, length), max(-first, 0), max(last - length, 0))


class BottleneckShape(NamedTuple):
    """Sizes of a bottleneck.

    Attributes:
        name: ``block2``.
        inputs: Channels of its input.
        hidden: Channels of the expanded tensor.
        outputs: Channels of its output; 0 where only the expanded tensor is computed.
        expansion: Window of what computes the expanded tensor: the 1x1 expansion, or the stem for the first bottleneck.
        depthwise: Window of the depthwise convolution.
    """

    name: str
    inputs: int
    hidden: int
    outputs: int
    expansion: Window
    depthwise: Window

    def expanded_size(self, size: Size) -> Size:
        """Size of the expanded tensor for an input of this size."""
        return self.expansion.size(size[0]), self.expansion.size(size[1])

    def output_size(self, size: Size) -> Size:
        """Size of the output for an input of this size."""
        height, width = self.expanded_size(size)
        return self.depthwise.size(height), self.depthwise.size(width)

    def expanded_rows(self, start: int, stop: int, height: int) -> Rows:
        """Rows of the expanded tensor that output rows ``start`` to ``stop`` need, for an input of this height."""
        return self.depthwise.rows(start, stop, self.expansion.size(height))

    def input_rows(self, expanded: Rows, height: int) -> Rows:
        """Rows of an input of this height that these rows of the expanded tensor need."""
        return self.expansion.rows(expanded.start, expanded.stop, height)

    def expanded_values(self, size: Size) -> int:
        """Values of the expanded tensor for an input of this size."""
        return math.prod(self.expanded_size(size)) * self.hidden


def needs_copy(window: Window, rows: Rows, width: int) -> bool:
    """Whether rows must be padded by a copy, because a convolution that pads both sides alike cannot compute them."""
    left, right = window.sides(width)
    return left != right or (max(rows.above, rows.below) - rows.above) % window.stride > 0
