"""Mean intersection over union of masks, from one confusion matrix over all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnv2det.errors import ConfigError, DataError
from mnv2det.evaluation.evaluator import Evaluator, Truth, mean_of_defined
from mnv2det.registry import EVALUATORS
from mnv2det.structures import IGNORE, Segmentation, TaskResult

VALUES = 256  # of a mask's pixel


class Record(NamedTuple):
    """What is kept of one image: the non-zero cells of its confusion matrix.

    Attributes:
        cells: int64 (N,), ``truth * K + prediction``, increasing.
        counts: int64 (N,), pixels, 1 or more.
    """

    cells: NDArray[np.int64]
    counts: NDArray[np.int64]


@EVALUATORS.register("miou")
class MeanIoU(Evaluator):
    """Mean intersection over union, per class ``IoU/<class>``, and accuracies of pixels.

    Pixels are counted in the size of the truth, over all images together and never averaged over
    images or processes; where the truth is 255 the prediction does not count.

    Args:
        classes: Class names, background included where it is a class; at most 255.

    Raises:
        ConfigError: There are more classes than a mask has values for.
    """

    main = "mIoU"
    records: dict[int | str, Record]

    def __init__(self, *, classes: Sequence[str]) -> None:
        super().__init__(classes=classes)
        if len(self.classes) > IGNORE:
            raise ConfigError(f"miou: a mask has values for at most {IGNORE} classes, there are {len(self.classes)}")

    def update(self, image_id: int | str, result: TaskResult, truth: Truth) -> None:
        """Records one image; one whose mask is not annotated is left out.

        Args:
            image_id: The data set's identifier.
            result: Mask uint8 (H, W), 0 ... K-1, also where the truth is 255.
            truth: ``mask`` (H, W) of integers, 0 ... K-1 or 255.

        Raises:
            ConfigError: The head does not return masks.
            DataError: The masks differ in size, or a value has no class.
        """
        segmentation = self.expect(result, Segmentation, "masks")
        if "mask" not in truth:
            return
        predicted = _bytes(segmentation.mask.detach().cpu().numpy(), f"image {image_id}: predicted mask")
        annotated = _bytes(np.asarray(truth["mask"]), f"image {image_id}: annotated mask")
        if predicted.shape != annotated.shape or predicted.ndim != 2:
            raise DataError(
                f"image {image_id}: predicted mask has shape {predicted.shape}, annotated mask {annotated.shape}; "
                "expected both (H, W)"
            )
        # A table of all pairs of bytes: wrong values and ignored pixels are then cells like any other.
        pairs = annotated.astype(np.uint16) * VALUES + predicted
        table = np.bincount(pairs.ravel(), minlength=VALUES**2).astype(np.int64, copy=False)
        filled = np.flatnonzero(table)
        rows, columns = np.divmod(filled, VALUES)
        kept = rows != IGNORE
        self.check_labels(columns, f"image {image_id}: predicted mask has value")
        self.check_labels(rows[kept], f"image {image_id}: annotated mask has value")
        self.records[image_id] = Record(rows[kept] * len(self.classes) + columns[kept], table[filled[kept]])

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Pixels of all records, int64 (K, K): rows are the truth, columns the prediction."""
        matrix = np.zeros((len(self.classes), len(self.classes)), np.int64)
        for record in self.records.values():
            matrix.flat[record.cells] += record.counts  # cells of one record differ
        return matrix

    def compute(self) -> dict[str, float]:
        """The metrics of all records; see `miou_metrics`."""
        return miou_metrics(self.confusion, classes=self.classes)

    def report(self) -> dict[str, Any]:
        """``confusion``, rows of `confusion`, and ``classes``, their names."""
        return {"confusion": self.confusion.tolist(), "classes": list(self.classes)}


def miou_metrics(confusion: NDArray[np.int64], *, classes: Sequence[str]) -> dict[str, float]:
    """Metrics of a confusion matrix.

    A class that is predicted somewhere but nowhere annotated has IoU 0 and counts in the mean, as in
    the VOC development kit (VOCevalseg.m) and torchmetrics (macro). A class that is neither is -1 and
    left out of the mean, as in torchmetrics; the kit divides 0 by 0, and its mean is undefined then.

    Args:
        confusion: int64 (K, K), pixels; rows are the truth, columns the prediction.
        classes: Names of 0 ... K-1.

    Returns:
        From 0 to 1, -1 = undefined. ``mIoU``, the mean of the classes' IoU; ``pixel_accuracy``, the
        share of pixels that are right; ``mean_accuracy``, that share within each annotated class,
        averaged; ``fw_IoU``, the mean IoU weighted by annotated pixels; ``IoU/<class>``.
    """
    right = np.diagonal(confusion).astype(np.float64)
    annotated = confusion.sum(axis=1)
    union = annotated + confusion.sum(axis=0) - right
    total = int(annotated.sum())
    overlap = np.divide(right, union, out=np.full(len(classes), -1.0), where=union > 0)
    recall = np.divide(right, annotated, out=np.full(len(classes), -1.0), where=annotated > 0)
    metrics = {
        "mIoU": mean_of_defined(overlap),
        "pixel_accuracy": float(right.sum() / total) if total else -1.0,
        "mean_accuracy": mean_of_defined(recall),
        "fw_IoU": float((annotated * overlap).sum() / total) if total else -1.0,
    }
    return metrics | {f"IoU/{name}": float(value) for name, value in zip(classes, overlap, strict=True)}


def _bytes(mask: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """The mask as uint8, if that changes no value."""
    if mask.dtype == np.uint8:
        return mask
    if mask.dtype.kind not in "iu":
        raise DataError(f"{what} has type {mask.dtype}, expected integers")
    wrong = mask[(mask < 0) | (mask >= VALUES)]
    if wrong.size:
        raise DataError(f"{what} has value {wrong[0]}, expected 0 to {VALUES - 1}")
    return mask.astype(np.uint8)
