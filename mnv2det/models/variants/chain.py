"""Backbones that are a stem and a row of blocks, whose insides cannot be tapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from mnv2det.models.backbone import Backbone, collect, read_taps, split_tap
from mnv2det.models.layers import ConvNorm, Padding


class Chain(Backbone):
    """A stem and blocks, one behind the other.

    Features: ``image``, ``stem``, ``block1`` ..., and ``last``, which is the last block's.

    Attributes:
        stem: The first convolution.
        blocks: Map (B, C, H, W) to the next.
        padding: How layers of stride 2 pad.
        depth: Number of blocks before any was dropped.
    """

    stem: ConvNorm
    blocks: nn.ModuleList
    padding: Padding
    depth: int

    def forward(self, images: Tensor, taps: Iterable[str] = ("last",)) -> dict[str, Tensor]:
        """See `Backbone`."""
        taps = tuple(taps)
        values = collect(images, {split_tap(tap)[0] for tap in taps}, self._walk(images))
        return read_taps(taps, values, {name: self.features[name].stride for name in values}, self.padding)

    def truncate(self, taps: Iterable[str]) -> None:
        """See `Backbone`."""
        names = {split_tap(tap)[0] for tap in taps}
        if "last" not in names:
            del self.blocks[max((int(name.removeprefix("block")) for name in names if "block" in name), default=0) :]

    def stages(self) -> list[tuple[str, nn.Module]]:
        """See `Backbone`."""
        return [("stem", self.stem), *((f"block{number}", block) for number, block in enumerate(self.blocks, 1))]

    def _walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, stage in self.stages():
            x = stage(x)
            yield name, x
        if len(self.blocks) == self.depth:
            yield "last", x
