"""Inference that never holds an expanded tensor as a whole (paper, section 5.1): by strips and parts of channels."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from mnv2det.errors import ConfigError
from mnv2det.graphs.graph import Folded, Raw, fold
from mnv2det.graphs.split import check_bottlenecks
from mnv2det.models.backbone import Backbone, read_taps, split_tap
from mnv2det.models.layers import InvertedResidual, subsample
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.models.model import Model
from mnv2det.runtime.strips.layers import Bottleneck, Pointwise, Strip
from mnv2det.runtime.strips.plan import Plan, Planner, Step, make_plan, reads_expanded
from mnv2det.runtime.strips.rows import Rows, Size

M = TypeVar("M", Model, Raw)


def cache_size() -> int:
    """Bytes of a core's own cache; 1 MiB where the system does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 1 << 20


def memory_efficient(network: M, budget: int | None = None, *, splits: int | None = None, strips: bool = True) -> M:
    """Copies a network so that its bottlenecks never hold their expanded tensor as a whole; the results are the same.

    Args:
        network: A model or a folded one, on the CPU; its backbone must be MobileNetV2. A `Model` is folded, too.
        budget: Bytes of the backbone's activations that may be alive at once, without the pictures. `Plan.over` tells
            which layers need more. None sets no limit; the strips then fit the cache.
        splits: Parts of the expanded channels, as in the paper; None leaves it to the planner.
        strips: False computes all rows at once, as the paper does.

    Raises:
        ConfigError: The backbone is another one or an ablation's, or is not on the CPU; or a number is below 1.
    """
    for name, value in (("memory budget", budget), ("splits", splits)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: expected at least 1, got {value}")
    copied: Model | Raw = copy.deepcopy(network) if isinstance(network, Raw) else fold(network)
    model = copied.model if isinstance(copied, Raw) else copied
    if not isinstance(model.backbone, MobileNetV2):
        raise ConfigError(f"memory budget: needs the backbone mobilenet_v2, not {type(model.backbone).__name__}")
    check_bottlenecks(model.backbone, "memory budget")
    if next(model.parameters()).device.type != "cpu":
        raise ConfigError("memory budget: only on the CPU")
    model.backbone = StripBackbone(model.backbone, budget, splits=splits, cache=cache_size() if strips else None)
    return copied  # type: ignore[return-value]


class StripBackbone(Backbone):
    """A folded MobileNetV2 that computes in strips of rows and parts of channels. Threads may share it.

    Args:
        backbone: With `Folded` layers.
        budget: See `memory_efficient`.
        splits: See `memory_efficient`.
        cache: Bytes that what is computed at a time should fit into; None computes all rows at once.
    """

    bottlenecks: list[Bottleneck]
    last: Pointwise | None = None

    def __init__(self, backbone: MobileNetV2, budget: int | None, *, splits: int | None, cache: int | None) -> None:
        super().__init__()
        self.inner, self.features = backbone, backbone.features
        self.budget, self.splits, self.cache = budget, splits, cache
        stem, blocks = backbone.stem, list(backbone.blocks)
        assert isinstance(stem, Folded)
        first = blocks[0] if blocks else None
        # the trick of the paper's Table 3: the first bottleneck has no expansion; the stem takes its place
        self.bottlenecks = [Bottleneck("block1", stem, first if isinstance(first, InvertedResidual) else None)]
        for number, block in enumerate(blocks[1:], 2):
            assert isinstance(block, InvertedResidual)
            assert isinstance(block.expand, Folded)
            self.bottlenecks.append(Bottleneck(f"block{number}", block.expand, block))
        if isinstance(backbone.last, Folded):
            self.last = Pointwise(backbone.last)

    def plan(self, size: Size, taps: Iterable[str] = ("last",), *, batch: int = 1) -> Plan:
        """How pictures of this (H, W) are computed."""
        taps = tuple(taps)
        names = frozenset(split_tap(tap)[0] for tap in taps)
        shapes = tuple(bottleneck.shape for bottleneck in self.bottlenecks[: self._depth(names)])
        channels, stride, finest = 0, 1, self.features.finest_stride("last", taps)
        if finest and self.last is not None:
            channels, stride = len(self.last.bias), finest // self.features["last"].stride
        element_size = next(self.parameters()).element_size()
        return make_plan(
            Planner(shapes, size, batch, element_size, names, self.budget, self.cache, self.splits, channels, stride)
        )

    def _depth(self, names: Collection[str]) -> int:
        """Number of bottlenecks that these features need."""
        if "last" in names:
            return len(self.bottlenecks)
        numbers = (int(name.removeprefix("block").removesuffix(".expand")) for name in names if "block" in name)
        return max(numbers, default=1)

    def forward(self, images: Tensor, taps: Iterable[str] = ("last",)) -> dict[str, Tensor]:
        """See `MobileNetV2.forward`."""
        taps = tuple(taps)
        names = {split_tap(tap)[0] for tap in taps}
        features = {"image": images}
        # (B, H, W, C): pixels of channels_last memory are rows of a matrix
        x = images.permute(0, 2, 3, 1)
        for step in self.plan((x.shape[1], x.shape[2]), taps, batch=len(x)).steps if names != {"image"} else ():
            x = self._compute(step, x, names, features)
        strides = {name: self.features[name].stride for name in features}
        finest = self.features.finest_stride("last", taps)
        if finest and self.last is not None:
            last_input = subsample(x.permute(0, 3, 1, 2), finest // self.features["last"].stride, self.inner.padding)
            features["last"], strides["last"] = self.last(last_input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), finest
        return read_taps(taps, features, strides, self.inner.padding)

    def truncate(self, taps: Iterable[str]) -> None:
        """Is refused: it must be done before."""
        raise ConfigError("memory budget: truncate the backbone before")

    def stages(self) -> list[tuple[str, nn.Module]]:
        """See `Backbone`."""
        return self.inner.stages()

    def _compute(self, step: Step, x: Tensor, names: Collection[str], features: dict[str, Tensor]) -> Tensor:
        """Computes the output (B, H, W, C) of a step's last bottleneck, and adds what is tapped to ``features``."""
        chain = self.bottlenecks[step.first : step.stop]
        final, expanded = chain[-1], None
        if reads_expanded(final.shape, names):
            rows = Rows(0, final.shape.expansion.size(x.shape[1]), 0, 0)
            expanded = final.expand(Strip(x, 0, x.shape[1]), rows)
            key = "stem" if step.first == 0 and "stem" in names else f"{final.shape.name}.expand"
            features[key] = expanded.permute(0, 3, 1, 2)
            if final.project is None:
                return expanded
        sizes = [(x.shape[1], x.shape[2])]
        for bottleneck in chain:
            sizes.append(bottleneck.shape.output_size(sizes[-1]))
        height, width = sizes[-1]
        out = x.new_empty(len(x), height, width, final.shape.outputs)
        for image in range(0, len(x), step.images):
            images = slice(image, image + step.images)
            whole = None if expanded is None else expanded[images]
            for start in range(0, height, step.rows):
                stop = min(start + step.rows, height)
                _compute_strip(chain, sizes, x[images], start, stop, step.splits, out[images, start:stop], whole)
        if final.shape.name in names:
            features[final.shape.name] = out.permute(0, 3, 1, 2)
        return out


def _compute_strip(
    chain: list[Bottleneck],
    sizes: list[Size],
    x: Tensor,
    start: int,
    stop: int,
    splits: int,
    out: Tensor | None = None,
    expanded: Tensor | None = None,
) -> Tensor:
    """Computes rows of the last bottleneck's output, by way of those rows of the others that they need.

    Args:
        chain: The bottlenecks.
        sizes: (H, W) of the first one's input and of each one's output.
        x: The first one's whole input, (B, H, W, C).
        start: First row.
        stop: Row behind the last.
        splits: Parts that the expanded channels are computed in.
        out: Where the rows are written to; by default new memory.
        expanded: The last one's whole expanded tensor, if it was computed before.

    Returns:
        ``out``.
    """
    final, height = chain[-1], sizes[len(chain) - 1][0]
    rows, strip = final.shape.expanded_rows(start, stop, height), Strip(x, 0, height)
    if len(chain) > 1:
        outer = final.shape.input_rows(rows, height)
        before = _compute_strip(chain[:-1], sizes, x, outer.start, outer.stop, splits)
        strip = Strip(before, outer.start, height)
    if out is None:
        out = x.new_empty(len(x), stop - start, sizes[len(chain)][1], final.shape.outputs)
    final.compute(strip, start, stop, rows, splits, out, expanded)
    return out
