"""What the protocols for boxes share: a record per image, and tables of all annotated and detected boxes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnv2det.errors import TrainingError
from mnv2det.evaluation.evaluator import Evaluator, Truth
from mnv2det.structures import Detections, TaskResult


class Record(NamedTuple):
    """What is kept of one image: plain arrays, boxes float32 (N, 4), xyxy in pixels."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    truth_boxes: NDArray[np.float32]
    truth_labels: NDArray[np.int64]
    ignore: NDArray[np.bool_]
    area: NDArray[np.float32]


class AnnotatedBoxes(NamedTuple):
    """Annotated boxes of all images, sorted by image.

    Boxes are xywh and double here, unlike everywhere else: `x + w - x` need not be `w`, and on the
    boxes of a COCO file every overlap shall round as the official tool's does.

    Attributes:
        image: int64 (N,), position of the image.
        label: int64 (N,), 0 ... K-1.
        boxes: float64 (N, 4), xywh in pixels.
        ignore: bool (N,), COCO ``iscrowd`` or VOC ``difficult``.
        area: float64 (N,), square pixels of the object (of its mask where there is one).
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes: NDArray[np.float64]
    ignore: NDArray[np.bool_]
    area: NDArray[np.float64]

    def pick(self, rows: NDArray[Any]) -> AnnotatedBoxes:
        """Some rows, by mask or position."""
        return AnnotatedBoxes(*(column[rows] for column in self))


class DetectedBoxes(NamedTuple):
    """Detected boxes of all images, sorted by image.

    Attributes:
        image: int64 (N,), position of the image.
        label: int64 (N,), 0 ... K-1.
        boxes: float64 (N, 4), xywh in pixels.
        score: float64 (N,).
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes: NDArray[np.float64]
    score: NDArray[np.float64]

    def pick(self, rows: NDArray[Any]) -> DetectedBoxes:
        """Some rows, by mask or position."""
        return DetectedBoxes(*(column[rows] for column in self))


class BoxEvaluator(Evaluator):
    """Base of the protocols that compare detected with annotated boxes."""

    records: dict[int | str, Record]

    def update(self, image_id: int | str, result: TaskResult, truth: Truth) -> None:
        """Records one image; one whose boxes are not annotated is left out.

        Raises:
            ConfigError: The head does not return boxes.
            DataError: A label has no class.
            TrainingError: The model returns boxes or scores that are not finite.
        """
        detections = self.expect(result, Detections, "detections")
        if "boxes" not in truth:
            return
        boxes = np.array(truth["boxes"], np.float32).reshape(-1, 4)
        record = Record(
            boxes=_copy(detections.boxes, np.float32).reshape(-1, 4),
            scores=_copy(detections.scores, np.float32),
            labels=_copy(detections.labels, np.int64),
            truth_boxes=boxes,
            truth_labels=np.array(truth["labels"], np.int64),
            ignore=np.array(truth.get("ignore", np.zeros(len(boxes))), np.bool_),
            area=np.array(truth.get("area", np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)), np.float32),
        )
        if not (np.isfinite(record.boxes).all() and np.isfinite(record.scores).all()):
            raise TrainingError(f"image {image_id}: a detected box or score is not finite")
        self.check_labels(record.labels, f"image {image_id}: detected label")
        self.check_labels(record.truth_labels, f"image {image_id}: annotated label")
        self.records[image_id] = record

    def tables(self) -> tuple[AnnotatedBoxes, DetectedBoxes]:
        """All records as two tables, in the order of the image ids whatever the order of updates."""
        records = [self.records[key] for key in sorted(self.records, key=order_of_id)]

        def column(name: str, dtype: type, *tail: int) -> NDArray[Any]:
            arrays = [getattr(record, name) for record in records]
            return np.concatenate([np.empty((0, *tail), dtype), *arrays]).astype(dtype, copy=False)

        def image(name: str) -> NDArray[np.int64]:
            return np.repeat(np.arange(len(records)), [len(getattr(record, name)) for record in records])

        annotated = AnnotatedBoxes(
            image("truth_labels"),
            column("truth_labels", np.int64),
            _xywh(column("truth_boxes", np.float64, 4)),
            column("ignore", np.bool_),
            column("area", np.float64),
        )
        boxes = _xywh(column("boxes", np.float64, 4))
        return annotated, DetectedBoxes(
            image("labels"), column("labels", np.int64), boxes, column("scores", np.float64)
        )


def order_of_id(image_id: int | str) -> tuple[bool, int | str]:
    """Sorting key of image ids, which may be numbers, strings or both."""
    return isinstance(image_id, str), image_id


def _copy(tensor: Any, dtype: type) -> NDArray[Any]:
    """A compact copy on the host, so that a record keeps no batch alive."""
    return np.array(tensor.detach().cpu().numpy(), dtype)


def _xywh(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
