"""What every head promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from mnv2det.structures import Frame, Result, Target


class Head(nn.Module, ABC):
    """A task: reads features of any backbone, knows no data set.

    A subclass is constructed as ``Head(features, classes=K, **hyper)`` with the backbone's
    mapping of tap name to `FeatureInfo`.

    Attributes:
        taps: Backbone features it reads.
        needs: Target keys it learns from; an image without them adds nothing to its loss.
        class_key: Target key whose class names count its classes: ``labels``, ``mask`` or ``label``.
    """

    taps: tuple[str, ...]
    needs: ClassVar[tuple[str, ...]]
    class_key: ClassVar[str]

    @abstractmethod
    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raw tensors; the same in train and eval mode, and exportable."""

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
