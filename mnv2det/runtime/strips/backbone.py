"""Inference that never holds an expanded tensor whole (paper, section 5.1): strip by strip, or part by part."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from mnv2det.errors import ConfigError
from mnv2det.export.graph import Folded, Raw, fold
from mnv2det.export.split import check_bottlenecks
from mnv2det.models.backbone import Backbone, read_taps, split_tap
from mnv2det.models.layers import InvertedResidual, subsample
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.models.model import Model
from mnv2det.runtime.strips.layers import Bottleneck, Pointwise
from mnv2det.runtime.strips.plan import Plan, Planner, Rows, Step, is_widened, make_plan

M = TypeVar("M", Model, Raw)


def cache_size() -> int:
    """Bytes of a core's own cache; 1 MiB where the system does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 1 << 20


def memory_efficient(network: M, budget: int | None = None, *, splits: int | None = None, strips: bool = True) -> M:
    """A copy whose bottlenecks never hold their expanded tensor whole; the same weights, the same results.

    Args:
        network: Its backbone must be MobileNetV2, on the CPU. A `Model` is folded, too.
        budget: Bytes of the backbone's activations alive at most, pictures not counted; what cannot be kept
            within is in `Plan.over`. None sets no limit; the strips then merely fit the cache.
        splits: Parts of the expanded channels, as in the paper; None leaves it to the planner.
        strips: False computes all rows at once, as the paper does.

    Raises:
        ConfigError: The backbone is another, of an ablation, not on the CPU, or a number is below 1.
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
        splits: Likewise.
        cache: Bytes that what is computed at a time should fit; None takes all rows at once.
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
        # the trick of the paper's Table 3: the stem is what widens the first bottleneck, which has no expansion
        self.bottlenecks = [Bottleneck("block1", stem, first if isinstance(first, InvertedResidual) else None)]
        for number, block in enumerate(blocks[1:], 2):
            assert isinstance(block, InvertedResidual)
            assert isinstance(block.expand, Folded)
            self.bottlenecks.append(Bottleneck(f"block{number}", block.expand, block))
        if isinstance(backbone.last, Folded):
            self.last = Pointwise(backbone.last)

    def plan(self, size: tuple[int, int], taps: Iterable[str] = ("last",), *, batch: int = 1) -> Plan:
        """How pictures of this (H, W) are computed."""
        taps = tuple(taps)
        names = frozenset(split_tap(tap)[0] for tap in taps)
        shapes = tuple(bottleneck.shape for bottleneck in self.bottlenecks[: self._depth(names)])
        last, finest = (0, 1), self.features.finest_stride("last", taps)
        if finest and self.last is not None:
            last = (len(self.last.bias), finest // self.features["last"].stride)
        each = next(self.parameters()).element_size()
        return make_plan(Planner(shapes, size, batch, each, names, self.budget, self.cache, self.splits, last))

    def _depth(self, names: Collection[str]) -> int:
        """Bottlenecks that these taps need."""
        if "last" in names:
            return len(self.bottlenecks)
        return max(
            (int(name.removeprefix("block").removesuffix(".expand")) for name in names if "block" in name), default=1
        )

    def forward(self, images: Tensor, taps: Iterable[str] = ("last",)) -> dict[str, Tensor]:
        """See `MobileNetV2.forward`."""
        taps = tuple(taps)
        names = {split_tap(tap)[0] for tap in taps}
        found = {"image": images}
        # (B, H, W, C): pixels of channels_last memory are rows of a matrix
        x = images.permute(0, 2, 3, 1)
        for step in self.plan((x.shape[1], x.shape[2]), taps, batch=len(x)).steps if names != {"image"} else ():
            x = self._compute(step, x, names, found)
        strides = {name: self.features[name].stride for name in found}
        finest = self.features.finest_stride("last", taps)
        if finest and self.last is not None:
            read = subsample(x.permute(0, 3, 1, 2), finest // self.features["last"].stride, self.inner.padding)
            found["last"], strides["last"] = self.last(read.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), finest
        return read_taps(taps, found, strides, self.inner.padding)

    def truncate(self, taps: Iterable[str]) -> None:
        """See `Backbone`."""
        raise ConfigError("memory budget: truncate the backbone before")

    def stages(self) -> list[tuple[str, nn.Module]]:
        """See `Backbone`."""
        return self.inner.stages()

    def _compute(self, step: Step, x: Tensor, names: Collection[str], found: dict[str, Tensor]) -> Tensor:
        """The output (B, H, W, C) of a step's last bottleneck; keeps what is tapped."""
        chain = self.bottlenecks[step.first : step.stop]
        final, widened = chain[-1], None
        if is_widened(final.shape, names):
            widened = final.widen(x, Rows(0, final.shape.front.size(x.shape[1]), 0, 0), 0, x.shape[1])
            key = "stem" if step.first == 0 and "stem" in names else f"{final.shape.name}.expand"
            found[key] = widened.permute(0, 3, 1, 2)
            if final.project is None:
                return widened
        sizes = [(x.shape[1], x.shape[2])]
        for bottleneck in chain:
            sizes.append(bottleneck.shape.size(sizes[-1]))
        height, width = sizes[-1]
        out = x.new_empty(len(x), height, width, final.shape.outputs)
        for image in range(0, len(x), step.images):
            some = slice(image, image + step.images)
            whole = None if widened is None else widened[some]
            for start in range(0, height, step.rows):
                stop = min(start + step.rows, height)
                _strip(chain, sizes, x[some], start, stop, step.splits, out[some, start:stop], whole)
        if final.shape.name in names:
            found[final.shape.name] = out.permute(0, 3, 1, 2)
        return out


def _strip(
    chain: list[Bottleneck],
    sizes: list[tuple[int, int]],
    x: Tensor,
    start: int,
    stop: int,
    splits: int,
    out: Tensor | None = None,
    widened: Tensor | None = None,
) -> Tensor:
    """Rows of the last bottleneck's output, by way of those rows of the others that they need."""
    final, height = chain[-1], sizes[len(chain) - 1][0]
    inner = final.shape.middle.rows(start, stop, final.shape.front.size(height))
    first = 0
    if len(chain) > 1:
        outer = final.shape.front.rows(inner.start, inner.stop, height)
        x, first = _strip(chain[:-1], sizes, x, outer.start, outer.stop, splits), outer.start
    if out is None:
        out = x.new_empty(len(x), stop - start, sizes[len(chain)][1], final.shape.outputs)
    final.compute(x, first, height, start, stop, inner, splits, out, widened)
    return out
