"""What every head promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from mnv2det.structures import Frame, Result, Target


class ClassRows(NamedTuple):
    """How the first axis of a parameter is made up: ``groups`` times (private rows, then one per class)."""

    groups: int = 1
    private: int = 0


class Head(nn.Module, ABC):
    """A task: reads features of any backbone, knows no data set.

    A subclass is constructed as ``Head(features, classes=K, **hyper)`` with the backbone's
    mapping of tap name to `FeatureInfo`.

    Attributes:
        taps: Backbone features it reads.
        needs: Target keys it learns from; an image without them adds nothing to its loss.
        target_key: Target key whose class names count its classes: ``labels``, ``mask`` or ``label``.
        structure: Arguments that must agree with weights for these to mean the same; training from
            a file takes them from there.
        optional: Beginnings of the names of layers that a file may lack; they start anew then.
    """

    taps: tuple[str, ...]
    needs: ClassVar[tuple[str, ...]]
    target_key: ClassVar[str]
    architecture_args: ClassVar[tuple[str, ...]] = ()
    optional_layers: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raw tensors; the same in train and eval mode, and exportable."""

    def forward_export(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What an export computes: of `forward`'s tensors those that `decode` reads, without those of `fixed`."""
        return self.forward(features)

    def fold(self) -> None:
        """Drops, in a copy that is for inference only, what `decode` does not need; nothing by default."""
        return

    def constants(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Those of `forward`'s tensors that follow from the input's (H, W) alone; none by default."""
        return {}

    @abstractmethod
    def loss(self, raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Named scalars to be summed; zero with a gradient where nothing is annotated."""

    @abstractmethod
    def decode(self, raw: Mapping[str, Tensor], frames: Sequence[Frame]) -> Sequence[Result]:
        """Results in pixels of the original images.

        Args:
            raw: From `forward`.
            frames: Where each image lies in the input, and its original size.
        """

    @abstractmethod
    def class_rows(self) -> dict[str, ClassRows]:
        """Parameters whose first axis runs over classes, by name; with another class list only these restart."""


class Dense(Head):
    """A head that scores every pixel, so that its scores can be averaged over scales and windows."""

    @abstractmethod
    def scores(self, raw: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Class probabilities, float32 (B, K, H, W), at the ``size`` (H, W) asked for."""
