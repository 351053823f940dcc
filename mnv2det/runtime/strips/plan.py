"""Which rows and channels of a bottleneck to compute at a time: pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from mnv2det.export.split import LANES, part_of
from mnv2det.ops.padding import same_padding

CALL = 2.5e6  # multiply-adds that a core does in the time it takes to start the operations of a part
SPLITS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 60)
CHAIN = 4  # most bottlenecks that are computed together


class Rows(NamedTuple):
    """Rows that some rows of a convolution's output need, clipped to its input, and those outside of it."""

    start: int
    stop: int
    above: int
    below: int

    @property
    def inside(self) -> int:
        """Rows of the input."""
        return self.stop - self.start


class Window(NamedTuple):
    """How a convolution goes over an axis.

    Attributes:
        reach: Dilation x (kernel - 1); 0 for a 1x1.
        stride: Its step.
        pad: Before and after; None for TensorFlow's SAME.
    """

    reach: int = 0
    stride: int = 1
    pad: int | None = 0

    def size(self, length: int) -> int:
        """Of the output."""
        return -(-length // self.stride)

    def before(self, length: int) -> int:
        """Padding before the first."""
        return self.sides(length)[0]

    def sides(self, length: int) -> tuple[int, int]:
        """Padding before and after."""
        if self.pad is not None:
            return self.pad, self.pad
        return same_padding(length, self.reach + 1, self.stride)

    def rows(self, start: int, stop: int, length: int) -> Rows:
        """What the outputs ``start`` to ``stop`` need of an input of this ``length``."""
        first = start * self.stride - self.before(length)
        last = (stop - 1) * self.stride - self.before(length) + self.reach + 1
        return Rows(max(first, 0), min(last, length), max(-first, 0), max(last - length, 0))


class Shape(NamedTuple):
    """What a bottleneck is to the planner.

    Attributes:
        name: ``block2``.
        inputs: Channels.
        hidden: Channels of the expanded tensor.
        outputs: Channels; 0 where only the expanded tensor is computed.
        front: The expansion; for the first bottleneck the stem.
        middle: The depthwise convolution.
    """

    name: str
    inputs: int
    hidden: int
    outputs: int
    front: Window
    middle: Window

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of its output for that of its input."""
        return self.middle.size(self.front.size(size[0])), self.middle.size(self.front.size(size[1]))


class Step(NamedTuple):
    """Bottlenecks that are computed together.

    Attributes:
        first: Number of the first, from 0.
        stop: Number behind the last.
        rows: Of the last one's output that are computed at a time.
        splits: Parts of the expanded channels, likewise.
        images: Likewise.
        peak: Bytes of activations alive at most: its input (but no picture), its output, taps, and what it computes.
        work: Those of them beside whole tensors.
        cost: Multiply-adds, and what else takes the time of some.
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
    """How a picture goes through.

    Attributes:
        steps: In order.
        budget: Bytes asked for; None for no limit but the cache.
        names: Of all bottlenecks.
        last: Bytes of activations alive while the last 1x1 convolution is computed, which is not split; 0 without it.
    """

    steps: tuple[Step, ...]
    budget: int | None
    names: tuple[str, ...]
    last: int = 0

    @property
    def peak(self) -> int:
        """Bytes of activations alive at most."""
        return max(self.last, *(step.peak for step in self.steps))

    @property
    def over(self) -> dict[str, int]:
        """By layer (of some that are computed together, the last): bytes by which it exceeds the budget.

        The layer that exceeds it most takes as little as it can; the others no more than that one.
        """
        if self.budget is None:
            return {}
        peaks = {self.names[step.stop - 1]: step.peak for step in self.steps} | {"last": self.last}
        return {name: peak - self.budget for name, peak in peaks.items() if peak > self.budget}


@dataclass(frozen=True)
class Planner:
    """Chooses the cheapest way that fits.

    Attributes:
        shapes: Bottlenecks, up to the last that is needed.
        size: (H, W) of the pictures.
        batch: Their number.
        bytes_each: Of an activation.
        taps: Names of what must be kept whole: ``block3``, ``block14.expand``, ``stem``.
        budget: Bytes of activations alive at most; None for any number.
        cache: Bytes that what is computed at a time should fit; None takes all rows at once.
        splits: Parts of the expanded channels; None leaves it to the planner.
        last: Channels of the last 1x1 convolution, 0 without it, and how much coarser than its input it is read.
    """

    shapes: tuple[Shape, ...]
    size: tuple[int, int]
    batch: int
    bytes_each: int
    taps: frozenset[str]
    budget: int | None
    cache: int | None
    splits: int | None
    last: tuple[int, int] = (0, 1)

    def plan(self) -> Plan:
        """The cheapest way within the budget; where there is none, the cheapest of those that need least."""
        sizes = [self.size]
        for shape in self.shapes:
            sizes.append(shape.size(sizes[-1]))
        choices = {span: self._choices(*span, sizes) for span in self._spans()}
        ending, limit = self._ending(sizes), math.inf
        if self.budget is not None:
            # no step need be smaller than the one that needs most
            limit = max(self.budget, ending, self._best(choices, lambda step: step.peak, max)[0])
        allowed = {span: [step for step in steps if step.peak <= limit] for span, steps in choices.items()}
        steps = self._best(allowed, lambda step: step.cost, lambda a, b: a + b)[1]
        return Plan(tuple(steps), self.budget, tuple(shape.name for shape in self.shapes), ending)

    def _best(
        self,
        choices: Mapping[tuple[int, int], Sequence[Step]],
        price: Callable[[Step], float],
        join: Callable[[float, float], float],
    ) -> tuple[float, list[Step]]:
        """The steps from the first bottleneck to the last whose joint price is least."""
        best: list[tuple[float, list[Step]]] = [(0, [])]
        for stop in range(1, len(self.shapes) + 1):
            found = []
            for first in range(stop):
                if choices.get((first, stop)) and best[first][0] < math.inf:
                    step = min(choices[first, stop], key=price)
                    found.append((join(best[first][0], price(step)), [*best[first][1], step]))
            best.append(min(found, key=lambda way: way[0], default=(math.inf, [])))
        return best[-1]

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Bottlenecks that can be computed together, as (first, behind the last)."""
        count = len(self.shapes)
        yield from ((number, number + 1) for number in range(count))
        # only at the beginning are maps so large that keeping them out of memory pays
        for stop in range(2, min(CHAIN, count) + 1) if self.cache is not None else ():
            inside = {shape.name for shape in self.shapes[: stop - 1]}
            if inside.isdisjoint(self.taps) and not any(is_widened(shape, self.taps) for shape in self.shapes[:stop]):
                yield 0, stop

    def _choices(self, first: int, stop: int, sizes: Sequence[tuple[int, int]]) -> list[Step]:
        """Rows, parts and images at a time that these bottlenecks may be computed with."""
        chain = self.shapes[first:stop]
        height, width = sizes[stop]
        whole = height * width * chain[-1].outputs + (math.prod(sizes[first]) * chain[0].inputs if first else 0)
        tapped = is_widened(chain[0], self.taps)
        whole += sum(self._tapped(number, sizes) for number in range(first))
        whole += _widened(chain[0], sizes[first]) if tapped else 0
        fixed = whole * self.batch * self.bytes_each
        parts: Sequence[int] = [n for n in SPLITS if n * LANES <= min(shape.hidden for shape in chain)] or [1]
        if self.splits is not None:
            parts = [self.splits]
        counts = {-(-height // n) for n in range(1, height + 1)} if self.cache is not None else {height}
        steps = []
        for rows in counts:
            for part in parts:
                work, cost = _work(chain, sizes[first : stop + 1], rows, part, tapped)
                calls = -(-height // rows) * part * len(chain) * CALL
                for images in {1, self.batch} if rows == height else {1}:
                    total = self.batch * cost + self.batch // images * calls
                    held = work * images * self.bytes_each
                    steps.append(Step(first, stop, rows, part, images, fixed + held, held, total))
        # what does not fit the cache is slower, by how much depends; the least of it if nothing does
        fitting = [step for step in steps if self.cache is None or step.work <= self.cache]
        return fitting or [min(steps, key=lambda step: step.work)]

    def _ending(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Bytes alive in the last 1x1 convolution."""
        (channels, step), (height, width), inputs = self.last, sizes[-1], self.shapes[-1].outputs
        if not channels:
            return 0
        pixels = -(-height // step) * -(-width // step)
        held = sum(self._tapped(number, sizes) for number in range(len(self.shapes) - 1))
        # what is read at a coarser stride is copied, as a matrix
        total = held + height * width * inputs + pixels * (channels + (inputs if step > 1 else 0))
        return total * self.batch * self.bytes_each

    def _tapped(self, number: int, sizes: Sequence[tuple[int, int]]) -> int:
        """Values of a picture that stay in memory behind this bottleneck."""
        shape = self.shapes[number]
        found = math.prod(sizes[number + 1]) * shape.outputs if shape.name in self.taps else 0
        return found + (_widened(shape, sizes[number]) if is_widened(shape, self.taps) else 0)


@lru_cache(maxsize=256)
def make_plan(planner: Planner) -> Plan:
    """What a planner chooses; those of the last sizes are remembered."""
    return planner.plan()


def is_widened(shape: Shape, taps: Collection[str]) -> bool:
    """Whether its expanded tensor is tapped."""
    return f"{shape.name}.expand" in taps or (shape.name == "block1" and "stem" in taps)


def _widened(shape: Shape, size: tuple[int, int]) -> int:
    return shape.front.size(size[0]) * shape.front.size(size[1]) * shape.hidden


def _work(
    chain: Sequence[Shape], sizes: Sequence[tuple[int, int]], rows: int, parts: int, tapped: bool
) -> tuple[int, float]:
    """Most values in memory while a strip of one picture is computed, and multiply-adds of all strips."""
    height, most, total = sizes[-1][0], 0, 0.0
    starts = range(0, height, rows)
    # those at the edges, where some rows lie outside of the map, and one or two inside
    for start in {*starts[:3], *starts[-2:]}:
        need, spent = (start, min(start + rows, height)), 0.0
        for number in reversed(range(len(chain))):
            shape, size, out = chain[number], sizes[number], sizes[number + 1]
            tall, wide = shape.front.size(size[0]), shape.front.size(size[1])
            if not shape.outputs:
                return 0, float(tall * wide * shape.inputs * shape.hidden)
            inner = shape.middle.rows(*need, tall)
            outer = shape.front.rows(inner.start, inner.stop, size[0])
            part, count = part_of(shape.hidden, parts), need[1] - need[0]
            deep = _computed(shape.middle, inner, count, wide) * out[1] * part
            copy = 0
            if needs_copy(shape.middle, inner, wide):
                copy = (inner.inside + inner.above + inner.below) * sum((wide, *shape.middle.sides(wide))) * part
            spread = 0 if tapped and part >= shape.hidden else inner.inside * wide * part
            if needs_copy(shape.front, outer, size[1]):
                spread += (outer.inside + outer.above + outer.below) * (size[1] + shape.front.reach) * shape.inputs
            read = outer.inside * size[1] * shape.inputs if number else 0
            made = count * out[1] * shape.outputs if number < len(chain) - 1 else 0
            most = max(most, read + made + max(spread + copy, copy + deep if copy else spread + deep))
            widening = 0 if tapped else shape.inputs * (shape.front.reach + 1) ** 2
            spent += inner.inside * wide * shape.hidden * widening
            spent += count * out[1] * shape.hidden * (9 + shape.outputs)
            need = (outer.start, outer.stop)
        total = max(total, spent * height / rows)
    return most, total


def _computed(window: Window, rows: Rows, count: int, wide: int) -> int:
    """Rows that come out of a convolution padded alike on both sides."""
    if window.stride > 1 or needs_copy(window, rows, wide):
        return count
    return count + 2 * max(rows.above, rows.below) - rows.above - rows.below


def needs_copy(window: Window, rows: Rows, wide: int) -> bool:
    """Whether padding alike on both sides cannot give these rows, so that they must be padded by a copy."""
    left, right = window.sides(wide)
    return left != right or (max(rows.above, rows.below) - rows.above) % window.stride > 0
