"""What backbones have in common that are a stem and blocks, nothing inside which can be tapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from mnv2det.models.backbone import Backbone, collect, split_tap
from mnv2det.models.layers import ConvNorm, Padding, subsample


class Chain(Backbone):
    """Stem and blocks, one behind the other.

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
        """Computes the tapped features, and nothing behind the last of them.

        Args:
            images: float (B, 3, H, W), normalised as the weights expect.
            taps: Names from `features`, each with an optional ``/stride``.

        Returns:
            Each tap's (B, C, H / stride, W / stride).
        """
        taps = tuple(taps)
        found = collect(images, {split_tap(tap)[0] for tap in taps}, self._walk(images))
        return {tap: self._read(tap, found[split_tap(tap)[0]]) for tap in taps}

    def truncate(self, taps: Iterable[str]) -> None:
        """Drops the layers that no tap needs, so that they are neither stored nor counted."""
        names = {split_tap(tap)[0] for tap in taps}
        if "last" not in names:
            del self.blocks[max((int(name.removeprefix("block")) for name in names if "block" in name), default=0) :]

    def stages(self) -> list[tuple[str, nn.Module]]:
        """The layers in order, by the name of what each computes (for freezing up to one)."""
        return [("stem", self.stem), *((f"block{number}", block) for number, block in enumerate(self.blocks, 1))]

    def _walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, stage in self.stages():
            x = stage(x)
            yield name, x
        if len(self.blocks) == self.depth:
            yield "last", x

    def _read(self, tap: str, value: Tensor) -> Tensor:
        """A feature at the stride its tap asks for."""
        name, stride = split_tap(tap)
        return value if stride is None else subsample(value, stride // self.features[name].stride, self.padding)
