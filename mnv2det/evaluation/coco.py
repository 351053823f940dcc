"""COCO's average precision and recall, and the box records and tables that other protocols share."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from mnv2det.errors import ConfigError, DataError, TrainingError, near
from mnv2det.evaluation.evaluator import Evaluator, Truth
from mnv2det.ranges import PositiveInt
from mnv2det.registry import EVALUATORS
from mnv2det.structures import Detections, Result

Backend = Literal["faster_coco_eval", "pycocotools"]

SIZES = ("small", "medium", "large")  # areas below 32^2, below 96^2, above; the libraries put "all" before them
IOU_50, IOU_75 = 0, 5  # positions in their thresholds .50:.05:.95


class Record(NamedTuple):
    """What is kept of one image: plain arrays, boxes float32 xyxy in pixels."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    truth_boxes: NDArray[np.float32]
    truth_labels: NDArray[np.int64]
    ignore: NDArray[np.bool_]
    area: NDArray[np.float32]


class Truths(NamedTuple):
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

    def pick(self, rows: NDArray[Any]) -> Truths:
        """Some rows, by mask or position."""
        return Truths(*(column[rows] for column in self))


class Found(NamedTuple):
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

    def pick(self, rows: NDArray[Any]) -> Found:
        """Some rows, by mask or position."""
        return Found(*(column[rows] for column in self))


class BoxEvaluator(Evaluator):
    """Base of the protocols that compare detected with annotated boxes."""

    records: dict[int | str, Record]

    def update(self, image_id: int | str, result: Result, truth: Truth) -> None:
        """Records one image; one whose boxes are not annotated is left out.

        Raises:
            ConfigError: The head does not give boxes.
            DataError: A label has no class.
            TrainingError: The model gives boxes or scores that are not finite.
        """
        if not isinstance(result, Detections):
            raise ConfigError(
                f"evaluator {type(self).__name__} needs detections, the head gives {type(result).__name__}"
            )
        if "boxes" not in truth:
            return
        boxes = np.array(truth["boxes"], np.float32).reshape(-1, 4)
        record = Record(
            boxes=_copy(result.boxes, np.float32).reshape(-1, 4),
            scores=_copy(result.scores, np.float32),
            labels=_copy(result.labels, np.int64),
            truth_boxes=boxes,
            truth_labels=np.array(truth["labels"], np.int64),
            ignore=np.array(truth.get("ignore", np.zeros(len(boxes))), np.bool_),
            area=np.array(truth.get("area", np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)), np.float32),
        )
        if not (np.isfinite(record.boxes).all() and np.isfinite(record.scores).all()):
            raise TrainingError(f"image {image_id}: a detected box or score is not finite")
        for what, labels in (("detected", record.labels), ("annotated", record.truth_labels)):
            wrong = labels[(labels < 0) | (labels >= len(self.classes))]
            if wrong.size:
                raise DataError(f"image {image_id}: {what} label {wrong[0]}, but there are {len(self.classes)} classes")
        self.records[image_id] = record

    def tables(self) -> tuple[Truths, Found]:
        """All records as two tables, in the order of the image ids whatever the order of updates."""
        records = [self.records[key] for key in sorted(self.records, key=order_of_id)]

        def column(name: str, dtype: type, *tail: int) -> NDArray[Any]:
            parts = [getattr(record, name) for record in records]
            return np.concatenate([np.empty((0, *tail), dtype), *parts]).astype(dtype, copy=False)

        def image(name: str) -> NDArray[np.int64]:
            return np.repeat(np.arange(len(records)), [len(getattr(record, name)) for record in records])

        truths = Truths(
            image("truth_labels"),
            column("truth_labels", np.int64),
            _xywh(column("truth_boxes", np.float64, 4)),
            column("ignore", np.bool_),
            column("area", np.float64),
        )
        boxes = _xywh(column("boxes", np.float64, 4))
        return truths, Found(image("labels"), column("labels", np.int64), boxes, column("scores", np.float64))


def _check(args: Mapping[str, Any]) -> Iterator[str]:
    first, second, third = args["max_detections"]
    if not first < second < third:
        yield f"max_detections: expected three increasing counts, got {[first, second, third]}"


@EVALUATORS.register("coco", check=_check)
class CocoAP(BoxEvaluator):
    """The 12 COCO metrics, ``AP AP50 AP75 AP_small ... AR_large``, and ``AP/<class>``.

    Args:
        classes: Class names.
        backend: The library that matches and accumulates; both give the same metrics.
        max_detections: Best boxes per image and class counted by AR1, AR10 and all other metrics;
            the AR metrics are named after them.
    """

    main = "AP"

    def __init__(
        self,
        *,
        classes: Sequence[str],
        backend: Backend = "faster_coco_eval",
        max_detections: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 10, 100),
    ) -> None:
        super().__init__(classes=classes)
        self.backend: Backend = backend
        self.max_detections = max_detections

    def compute(self) -> dict[str, float]:
        """The metrics of all records; see `coco_metrics`."""
        truths, found = self.tables()
        return coco_metrics(
            truths, found, classes=self.classes, backend=self.backend, max_detections=self.max_detections
        )


def coco_metrics(
    truths: Truths,
    found: Found,
    *,
    classes: Sequence[str],
    backend: Backend = "faster_coco_eval",
    max_detections: tuple[int, int, int] = (1, 10, 100),
) -> dict[str, float]:
    """COCO's protocol: IoU .50:.05:.95, 101 recall points, four ranges of area.

    Ignored truths count as crowds: they are no misses, and any number of boxes may fall on them.

    Args:
        truths: Annotated boxes.
        found: Detected boxes; among equal scores the earlier row comes first.
        classes: Names of labels 0 ... K-1.
        backend: Library that does the work.
        max_detections: Best boxes per image and class; three, increasing.

    Returns:
        Figures from 0 to 1 by name; -1 where there is no ground truth. A class without any is -1
        and left out of the means.

    Raises:
        ConfigError: A setting is wrong.
    """
    _check_settings(backend, max_detections)
    # A class at a time: the libraries want a dict for every box, gigabytes for a whole data set.
    present = np.unique(truths.label).tolist()
    each = [
        _evaluate_class(truths.pick(truths.label == k), found.pick(found.label == k), backend, max_detections)
        for k in present
    ]
    precision = np.stack([p for p, _ in each], axis=2) if each else np.full((10, 101, 0, 4, 3), -1.0)
    recall = np.stack([r for _, r in each], axis=1) if each else np.full((10, 0, 4, 3), -1.0)
    metrics = {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[IOU_50, ..., 0, -1]),
        "AP75": _mean(precision[IOU_75, ..., 0, -1]),
    }
    metrics |= {f"AP_{area}": _mean(precision[..., i, -1]) for i, area in enumerate(SIZES, 1)}
    metrics |= {f"AR{count}": _mean(recall[..., 0, i]) for i, count in enumerate(max_detections)}
    metrics |= {f"AR_{area}": _mean(recall[..., i, -1]) for i, area in enumerate(SIZES, 1)}
    by_label = {k: _mean(precision[:, :, i, 0, -1]) for i, k in enumerate(present)}
    return metrics | {f"AP/{name}": by_label.get(k, -1.0) for k, name in enumerate(classes)}


def order_of_id(image_id: int | str) -> tuple[bool, int | str]:
    """Sorting key of image ids, which may be numbers, strings or both."""
    return isinstance(image_id, str), image_id


def _evaluate_class(
    truths: Truths, found: Found, backend: Backend, max_detections: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Runs the library on the boxes of one class.

    Returns:
        Precision (IoU, recall point, area, max_detections) and recall (IoU, area, max_detections).
    """
    if backend == "faster_coco_eval":
        from faster_coco_eval.core.coco import COCO
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    head = {
        "images": [{"id": image} for image in np.union1d(truths.image, found.image).tolist()],
        "categories": [{"id": 1, "name": "1"}],
    }
    area = found.boxes[:, 2] * found.boxes[:, 3]
    sides = [COCO(), COCO()]
    sides[0].dataset = {**head, "annotations": _annotations(truths, truths.area, "iscrowd", truths.ignore)}
    sides[1].dataset = {**head, "annotations": _annotations(found, area, "score", found.score)}
    with contextlib.redirect_stdout(io.StringIO()):
        for side in sides:
            side.createIndex()
        evaluation = COCOeval(*sides, "bbox")
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[:, :, 0], np.asarray(evaluation.eval["recall"])[:, 0]


def _annotations(
    table: Truths | Found, area: NDArray[np.float64], key: str, values: NDArray[Any]
) -> list[dict[str, Any]]:
    """The dict per box that the libraries read; ids start at 1 because they take 0 for unmatched."""
    rows = zip(table.image.tolist(), table.boxes.tolist(), area.tolist(), values.tolist(), strict=True)
    return [
        {"id": number, "image_id": image, "category_id": 1, "bbox": box, "area": square, key: value}
        for number, (image, box, square, value) in enumerate(rows, 1)
    ]


def _check_settings(backend: str, max_detections: Sequence[int]) -> None:
    known = get_args(Backend)
    if backend not in known:
        raise ConfigError(f"coco: no backend '{backend}'{near(backend, known)}")
    if len(max_detections) != 3 or not 0 < max_detections[0] < max_detections[1] < max_detections[2]:
        raise ConfigError(f"coco: max_detections must be three increasing counts above 0, got {max_detections}")


def _mean(values: NDArray[np.float64]) -> float:
    """Mean over what is defined, -1 if nothing is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _copy(tensor: Any, dtype: type) -> NDArray[Any]:
    """A compact copy on the host, so that a record keeps no batch alive."""
    return np.array(tensor.detach().cpu().numpy(), dtype)


def _xywh(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
