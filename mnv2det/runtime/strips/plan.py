"""Decides which rows and channels of a bottleneck are computed at a time; pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from mnv2det.graphs.split import LANES, part_of
from mnv2det.runtime.strips.rows import BottleneckShape, Rows, Size, Window, needs_copy

CALL_COST = 2.5e6  # multiply-adds that a core does in the time it takes to start the operations of a part
SPLITS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 60)
MAX_CHAIN = 4  # bottlenecks that are computed together at most


class Step(NamedTuple):
    """Bottlenecks that are computed together.

    Attributes:
        first: Number of the first bottleneck, from 0.
        stop: Number behind the last one.
        rows: Rows of the last one's output that are computed at a time.
        splits: Parts that the expanded channels are computed in.
        images: Images that are computed at a time.
        peak: Bytes of activations alive at most: the input (unless it is the picture), the output, taps, and ``work``.
        work: Bytes of what is computed at a time, beside whole tensors.
        cost: Multiply-adds, with the time that other work takes converted into them.
    """

    first: int
    stop: int
    rows: int
    splits: int
    images: int
    peak: int
    work: int
    cost: float


class Plan(NamedTuple):
    """How pictures of one size are computed.

    Attributes:
        steps: In order.
        budget: Bytes that were asked for; None for no limit but the cache.
        names: Names of all bottlenecks.
        last_layer: Bytes of activations alive while the last 1x1 convolution is computed, which is not split; 0 if it
            is not needed.
    """

    steps: tuple[Step, ...]
    budget: int | None
    names: tuple[str, ...]
    last_layer: int = 0

    @property
    def peak(self) -> int:
        """Bytes of activations alive at most."""
        return max(self.last_layer, *(step.peak for step in self.steps))

    @property
    def over(self) -> dict[str, int]:
        """Bytes by which layers exceed the budget, by name (the last name of those that are computed together).

        The layer that exceeds it most takes as little as it can; the others take no more than that one.
        """
        if self.budget is None:
            return {}
        peaks = {self.names[step.stop - 1]: step.peak for step in self.steps} | {"last": self.last_layer}
        return {name: peak - self.budget for name, peak in peaks.items() if peak > self.budget}


@dataclass(frozen=True)
class Planner:
    """Chooses the cheapest way to compute a backbone that fits into a budget.

    Attributes:
        shapes: The bottlenecks, up to the last one that is needed.
        size: (H, W) of the pictures.
        batch: Number of pictures.
        element_size: Bytes of an activation.
        taps: Names of the features that must be kept whole: ``block3``, ``block14.expand``, ``stem``.
        budget: Bytes of activations alive at most; None for no limit.
        cache: Bytes that what is computed at a time should fit into; None computes all rows at once.
        splits: Parts of the expanded channels; None leaves it to the planner.
        last_channels: Output channels of the last 1x1 convolution; 0 if it is not needed.
        last_stride: How many pixels of its input lie between two that it is computed at.
    """

    shapes: tuple[BottleneckShape, ...]
    size: Size
    batch: int
    element_size: int
    taps: frozenset[str]
    budget: int | None
    cache: int | None
    splits: int | None
    last_channels: int = 0
    last_stride: int = 1

    def plan(self) -> Plan:
        """The cheapest plan within the budget; where there is none, the cheapest of those that need least."""
        sizes = [self.size]
        for shape in self.shapes:
            sizes.append(shape.output_size(sizes[-1]))
        choices = {span: self._choices(*span, sizes) for span in self._spans()}
        last_layer, limit = self._last_layer(sizes), math.inf
        if self.budget is not None:
            # no step need be smaller than the one that needs most
            limit = max(self.budget, last_layer, self._best(choices, lambda step: step.peak, max)[0])
        allowed = {span: [step for step in steps if step.peak <= limit] for span, steps in choices.items()}
        steps = self._best(allowed, lambda step: step.cost, lambda a, b: a + b)[1]
        return Plan(tuple(steps), self.budget, tuple(shape.name for shape in self.shapes), last_layer)

    def _best(
        self,
        choices: Mapping[tuple[int, int], Sequence[Step]],
        price: Callable[[Step], float],
        join: Callable[[float, float], float],
    ) -> tuple[float, list[Step]]:
        """The steps from the first bottleneck to the last whose joint price is lowest, and that price."""
        best: list[tuple[float, list[Step]]] = [(0, [])]
        for stop in range(1, len(self.shapes) + 1):
            ways = []
            for first in range(stop):
                if choices.get((first, stop)) and best[first][0] < math.inf:
                    step = min(choices[first, stop], key=price)
                    ways.append((join(best[first][0], price(step)), [*best[first][1], step]))
            best.append(min(ways, key=lambda way: way[0], default=(math.inf, [])))
        return best[-1]

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Bottlenecks that can be computed together, as (first, behind the last)."""
        count = len(self.shapes)
        yield from ((number, number + 1) for number in range(count))
        # only at the beginning are maps so large that keeping them out of memory pays
        for stop in range(2, min(MAX_CHAIN, count) + 1) if self.cache is not None else ():
            inside = {shape.name for shape in self.shapes[: stop - 1]}
            if inside.isdisjoint(self.taps) and not any(reads_expanded(s, self.taps) for s in self.shapes[:stop]):
                yield 0, stop

    def _choices(self, first: int, stop: int, sizes: Sequence[Size]) -> list[Step]:
        """Rows, parts and images at a time that these bottlenecks may be computed with."""
        chain = self.shapes[first:stop]
        height, width = sizes[stop]
        whole = height * width * chain[-1].outputs + (math.prod(sizes[first]) * chain[0].inputs if first else 0)
        tapped = reads_expanded(chain[0], self.taps)
        whole += sum(self._tapped_values(number, sizes) for number in range(first))
        whole += chain[0].expanded_values(sizes[first]) if tapped else 0
        fixed = whole * self.batch * self.element_size
        splits: Sequence[int] = [n for n in SPLITS if n * LANES <= min(shape.hidden for shape in chain)] or [1]
        if self.splits is not None:
            splits = [self.splits]
        row_counts = {-(-height // n) for n in range(1, height + 1)} if self.cache is not None else {height}
        steps = []
        for rows in row_counts:
            for parts in splits:
                values, multiply_adds = _strip_cost(chain, sizes[first : stop + 1], rows, parts, tapped)
                calls = -(-height // rows) * parts * len(chain) * CALL_COST
                for images in {1, self.batch} if rows == height else {1}:
                    cost = self.batch * multiply_adds + self.batch // images * calls
                    work = values * images * self.element_size
                    steps.append(Step(first, stop, rows, parts, images, fixed + work, work, cost))
        # what does not fit the cache is slower, by how much depends; the least of it if nothing does
        fitting = [step for step in steps if self.cache is None or step.work <= self.cache]
        return fitting or [min(steps, key=lambda step: step.work)]

    def _last_layer(self, sizes: Sequence[Size]) -> int:
        """Bytes alive while the last 1x1 convolution is computed."""
        if not self.last_channels:
            return 0
        (height, width), stride, inputs = sizes[-1], self.last_stride, self.shapes[-1].outputs
        pixels = -(-height // stride) * -(-width // stride)
        taps = sum(self._tapped_values(number, sizes) for number in range(len(self.shapes) - 1))
        # what is read at a coarser stride is copied, as a matrix
        values = taps + height * width * inputs + pixels * (self.last_channels + (inputs if stride > 1 else 0))
        return values * self.batch * self.element_size

    def _tapped_values(self, number: int, sizes: Sequence[Size]) -> int:
        """Values of one picture that a bottleneck leaves in memory because they are tapped."""
        shape = self.shapes[number]
        output = math.prod(sizes[number + 1]) * shape.outputs if shape.name in self.taps else 0
        return output + (shape.expanded_values(sizes[number]) if reads_expanded(shape, self.taps) else 0)


@lru_cache(maxsize=256)
def make_plan(planner: Planner) -> Plan:
    """The plan that a planner chooses; plans of the last sizes are remembered."""
    return planner.plan()


def reads_expanded(shape: BottleneckShape, taps: Collection[str]) -> bool:
    """Whether one of the taps is the expanded tensor of this bottleneck."""
    return f"{shape.name}.expand" in taps or (shape.name == "block1" and "stem" in taps)


def _strip_cost(
    chain: Sequence[BottleneckShape], sizes: Sequence[Size], rows: int, parts: int, tapped: bool
) -> tuple[int, float]:
    """What it takes to compute bottlenecks strip by strip.

    Args:
        chain: The bottlenecks.
        sizes: (H, W) of the first one's input and of each one's output.
        rows: Rows of the last one's output in a strip.
        parts: Parts of the expanded channels.
        tapped: Whether the expanded tensor is kept whole, and so is not computed for the strip.

    Returns:
        The most values in memory while a strip of one picture is computed, and the multiply-adds of all its strips.
    """
    height, most, total = sizes[-1][0], 0, 0.0
    starts = range(0, height, rows)
    # those at the edges, where some rows lie outside of the map, and one or two inside
    for start in {*starts[:3], *starts[-2:]}:
        stop, cost = min(start + rows, height), 0.0
        for number in reversed(range(len(chain))):
            shape, size, (_, out_width) = chain[number], sizes[number], sizes[number + 1]
            width = shape.expansion.size(size[1])
            if not shape.outputs:
                return 0, float(shape.expanded_values(size) * shape.inputs)
            inner = shape.expanded_rows(start, stop, size[0])
            outer = shape.input_rows(inner, size[0])
            part, count = part_of(shape.hidden, parts), stop - start
            depthwise = _computed_rows(shape.depthwise, inner, count, width) * out_width * part
            copied = needs_copy(shape.depthwise, inner, width)
            copy = inner.padded * sum((width, *shape.depthwise.sides(width))) * part if copied else 0
            expanded = 0 if tapped and part >= shape.hidden else inner.inside * width * part
            if needs_copy(shape.expansion, outer, size[1]):
                expanded += outer.padded * (size[1] + shape.expansion.reach) * shape.inputs
            strip_input = outer.inside * size[1] * shape.inputs if number else 0
            strip_output = count * out_width * shape.outputs if number < len(chain) - 1 else 0
            inside = max(expanded + copy, copy + depthwise) if copied else expanded + depthwise
            most = max(most, strip_input + strip_output + inside)
            weights = 0 if tapped else shape.inputs * (shape.expansion.reach + 1) ** 2
            cost += inner.inside * width * shape.hidden * weights
            cost += count * out_width * shape.hidden * (9 + shape.outputs)
            start, stop = outer.start, outer.stop
        total = max(total, cost * height / rows)
    return most, total


def _computed_rows(window: Window, rows: Rows, count: int, width: int) -> int:
    """Rows that a convolution computes for ``count`` rows; more where both sides are padded but one needs it."""
    if window.stride > 1 or needs_copy(window, rows, width):
        return count
    return count + 2 * max(rows.above, rows.below) - rows.above - rows.below
