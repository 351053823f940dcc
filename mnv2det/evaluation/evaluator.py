"""What every evaluator promises, and what several of them need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mnv2det.errors import ConfigError, DataError, near
from mnv2det.structures import TaskResult

R = TypeVar("R")
Truth = Mapping[str, NDArray[Any]]


class Evaluator(ABC):
    """Collects one record per image, then computes metrics from all of them at once.

    Records are plain data: processes exchange and join them by image id, so that the metrics do
    not depend on how many processes there were, nor on images that a sampler padded in twice.

    Attributes:
        main: The metric that decides which weights are best; more is better.
        classes: Class names.
        records: By image id.
    """

    main: str

    def __init__(self, *, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.records: dict[int | str, Any] = {}

    @abstractmethod
    def update(self, image_id: int | str, result: TaskResult, truth: Truth) -> None:
        """Records one image.

        Args:
            image_id: The data set's identifier.
            result: What the head's ``decode`` returned, in pixels of the original image.
            truth: The annotation as `Dataset.read` returns it, in pixels of the original image.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Metrics from 0 to 1 by name (``AP``, ``AP50`` ..., per class as ``AP/name``); -1 = undefined."""

    def report(self) -> dict[str, Any]:
        """What stands beside the metrics in a JSON file, as plain data (a confusion matrix, say); empty by default."""
        return {}

    def expect(self, result: TaskResult, kind: type[R], name: str) -> R:
        """Returns the result if it is of the kind that this evaluator measures.

        Raises:
            ConfigError: The head returns results of another kind.
        """
        if not isinstance(result, kind):
            raise ConfigError(f"evaluator {type(self).__name__} needs {name}, the head gives {type(result).__name__}")
        return result

    def check_labels(self, labels: NDArray[np.integer[Any]], what: str) -> None:
        """Checks that all labels have a class.

        Args:
            labels: Integers of any shape.
            what: Image and kind of label, for the message.

        Raises:
            DataError: A label is below 0, or not below the number of classes.
        """
        wrong = labels[(labels < 0) | (labels >= len(self.classes))]
        if wrong.size:
            raise DataError(f"{what} {wrong[0]}, but there are {len(self.classes)} classes")


def mean_of_defined(values: ArrayLike) -> float:
    """The mean of the values that are defined, that is not -1; -1 if none is."""
    array = np.asarray(values, np.float64)
    defined = array[array >= 0]
    return float(defined.mean()) if defined.size else -1.0


def check_choice(value: str, options: Iterable[str], what: str) -> None:
    """Checks an argument that has a fixed set of values.

    Args:
        value: The argument.
        options: Its allowed values.
        what: Component and argument, as in ``coco: no backend``, for the message.

    Raises:
        ConfigError: The value is none of them.
    """
    options = tuple(options)
    if value not in options:
        raise ConfigError(f"{what} '{value}'{near(value, options)}")
