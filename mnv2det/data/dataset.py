"""What every data set promises, and the flat arrays that detection annotations live in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.structures import Sample

Arrays = dict[str, NDArray[Any]]


class Dataset(ABC):
    """Images with annotations, by index; knows no model and no head.

    Loader workers are forked, so whatever a data set keeps should be numpy arrays: these are
    shared, while Python lists and dicts are copied as soon as they are read.

    Attributes:
        classes: Class names by target key: ``labels`` (of boxes), ``mask``, ``label``.
        problems: One line for each annotation that ``bad_data: skip`` left out.
    """

    classes: dict[str, list[str]]
    problems: list[str]

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def image_id(self, index: int) -> int | str:
        """The data set's own identifier."""

    @abstractmethod
    def target(self, index: int) -> Arrays:
        """Annotation without decoding the image.

        Returns:
            ``boxes`` float32 (N, 4) xyxy in pixels, ``labels`` int64 (N,), ``ignore`` bool (N,)
            and ``area`` float32 (N,), for data sets with boxes; ``label`` int64 () for
            classification. A mask needs reading and comes with `read` alone.
        """

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Decodes the image and gives it with its target (and ``mask`` uint8 (H, W) if it has one)."""


class BoxTable:
    """Boxes of all images in flat arrays, the rows of image ``i`` at ``offsets[i]:offsets[i + 1]``."""

    def __init__(
        self,
        counts: NDArray[np.int64],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        ignore: NDArray[np.bool_],
        area: NDArray[np.float32],
    ) -> None:
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.boxes = np.ascontiguousarray(boxes, np.float32).reshape(-1, 4)
        self.labels = np.ascontiguousarray(labels, np.int64)
        self.ignore = np.ascontiguousarray(ignore, np.bool_)
        self.area = np.ascontiguousarray(area, np.float32)

    def rows(self, index: int) -> slice:
        """Where the boxes of an image are."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def target(self, index: int) -> Arrays:
        """Copies of one image's rows, as `Dataset.target` gives them."""
        rows = self.rows(index)
        return {key: getattr(self, key)[rows].copy() for key in ("boxes", "labels", "ignore", "area")}
