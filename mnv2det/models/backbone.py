"""What a backbone is, and how its features are named and read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import Tensor, nn

from mnv2det.errors import ConfigError, near
from mnv2det.models.layers import Padding, subsample
from mnv2det.structures import FeatureInfo


class Backbone(nn.Module, ABC):
    """A network that computes features and knows no task.

    Attributes:
        features: The features that can be tapped, by name. ``image`` is the input itself, for its size.
    """

    features: Features

    @abstractmethod
    def forward(self, images: Tensor, taps: Iterable[str] = ("last",)) -> dict[str, Tensor]:
        """Computes the tapped features, and nothing behind the last of them.

        Args:
            images: float (B, 3, H, W), normalised as the weights expect.
            taps: Names from ``features``, each with an optional ``/stride``.

        Returns:
            Each tap's (B, C, ceil(H / stride), ceil(W / stride)).
        """

    @abstractmethod
    def truncate(self, taps: Iterable[str]) -> None:
        """Drops the layers that no tap needs, so that they are neither stored nor counted."""

    @abstractmethod
    def stages(self) -> list[tuple[str, nn.Module]]:
        """Lists the layers in order, by the name of what each computes; training can freeze them up to one."""


class Features(Mapping[str, FeatureInfo]):
    """The features that a backbone offers, by tap name; ``name/32`` is that feature read at stride 32."""

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

    def finest_stride(self, name: str, taps: Iterable[str]) -> int:
        """The least stride at which any of the taps reads this feature; 0 if none does."""
        return min((self[tap].stride for tap in taps if split_tap(tap)[0] == name), default=0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def collect(images: Tensor, names: Collection[str], layers: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Collects the named features, and computes nothing behind the last of them.

    Args:
        images: The feature ``image``.
        names: Of features, without strides.
        layers: The name and output of each layer, computed when it is asked for.
    """
    missing, values = set(names) - {"image"}, {"image": images}
    for name, value in layers if missing else ():
        if name in missing:
            values[name] = value
            missing.remove(name)
        if not missing:
            break
    return values


def read_taps(
    taps: Iterable[str], values: Mapping[str, Tensor], strides: Mapping[str, int], padding: Padding
) -> dict[str, Tensor]:
    """Reads features at the strides that their taps ask for.

    Args:
        taps: Names, each with an optional ``/stride``.
        values: The features by name.
        strides: The strides at which they were computed.
        padding: How the backbone pads.

    Returns:
        Tap to (B, C, ceil(H / stride), ceil(W / stride)).
    """
    features = {}
    for tap in taps:
        name, stride = split_tap(tap)
        features[tap] = values[name] if stride is None else subsample(values[name], stride // strides[name], padding)
    return features


def split_tap(tap: str) -> tuple[str, int | None]:
    """Splits ``block14.expand/16`` into the feature's name and the stride it is read at."""
    name, slash, stride = tap.partition("/")
    if slash and not stride.isdigit():
        raise ConfigError(f"tap '{tap}': expected name or name/stride")
    return name, int(stride) if slash else None
