"""What every backbone promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import Tensor, nn

from mnv2det.errors import ConfigError, near
from mnv2det.structures import FeatureInfo


class Backbone(nn.Module, ABC):
    """Computes features; knows no task.

    Attributes:
        features: What it offers, by tap name. ``image`` is the input itself, for its size.
    """

    features: Features

    @abstractmethod
    def forward(self, images: Tensor, taps: Iterable[str] = ("last",)) -> dict[str, Tensor]:
        """The tapped features of normalised images (B, 3, H, W)."""

    @abstractmethod
    def truncate(self, taps: Iterable[str]) -> None:
        """Drops the layers that no tap needs, so that they are neither stored nor counted."""

    @abstractmethod
    def stages(self) -> list[tuple[str, nn.Module]]:
        """The layers in order, by the name of what each computes (for freezing up to one)."""


class Features(Mapping[str, FeatureInfo]):
    """What a backbone offers, by tap name; ``name/32`` is that feature read at stride 32."""

    def __init__(self, known: Mapping[str, FeatureInfo]) -> None:
        self._known = dict(known)

    def __getitem__(self, tap: str) -> FeatureInfo:
        name, stride = split_tap(tap)
        if name not in self._known:
            raise ConfigError(f"backbone has no feature '{name}'{near(name, self._known)}")
        info = self._known[name]
        if stride is None or stride == info.stride:
            return info
        if stride % info.stride or (stride // info.stride).bit_count() != 1:
            raise ConfigError(f"feature '{name}' has stride {info.stride}, it cannot be read at stride {stride}")
        return FeatureInfo(info.channels, stride)

    def __contains__(self, tap: object) -> bool:
        return isinstance(tap, str) and tap.partition("/")[0] in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def collect(images: Tensor, names: Collection[str], layers: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The named features, and nothing computed behind the last of them.

    Args:
        images: What the feature ``image`` is.
        names: Of features, without strides.
        layers: Each one's name and output, computed when it is asked for.
    """
    wanted, found = set(names), {"image": images}
    for name, value in layers:
        if name in wanted:
            found[name] = value
        if wanted <= found.keys():
            break
    return found


def split_tap(tap: str) -> tuple[str, int | None]:
    """Splits ``block14.expand/16`` into the feature's name and the stride it is read at."""
    name, slash, stride = tap.partition("/")
    if slash and not stride.isdigit():
        raise ConfigError(f"tap '{tap}': expected name or name/stride")
    return name, int(stride) if slash else None
