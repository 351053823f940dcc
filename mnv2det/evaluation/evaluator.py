"""What every evaluator promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from mnv2det.structures import Result

Truth = Mapping[str, NDArray[Any]]


class Evaluator(ABC):
    """Collects one record per image, then computes metrics from all of them at once.

    Records are plain data: processes exchange and join them by image id, so that the metrics do
    not depend on how many processes there were, nor on images that a sampler padded in twice.

    Attributes:
        main: The figure that decides which weights are best; more is better.
        classes: Class names.
        records: By image id.
    """

    main: str

    def __init__(self, *, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.records: dict[int | str, Any] = {}

    @abstractmethod
    def update(self, image_id: int | str, result: Result, truth: Truth) -> None:
        """Records one image.

        Args:
            image_id: The data set's identifier.
            result: What the head's ``decode`` gave, in original pixels.
            truth: As `Dataset.target` (or ``read().target``) gives it, in original pixels.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Figures from 0 to 1 by name (``AP``, ``AP50`` ..., per class as ``AP/name``); -1 = undefined."""

    def report(self) -> dict[str, Any]:
        """What stands beside the metrics in a json, as plain data (a confusion matrix, say); nothing by default."""
        return {}
