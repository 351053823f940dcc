"""COCO's average precision and recall."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mnv2det.errors import ConfigError
from mnv2det.evaluation.boxes import AnnotatedBoxes, BoxEvaluator, DetectedBoxes
from mnv2det.evaluation.evaluator import check_choice, mean_of_defined
from mnv2det.ranges import PositiveInt
from mnv2det.registry import EVALUATORS

Backend = Literal["faster_coco_eval", "pycocotools"]

SIZES = ("small", "medium", "large")  # areas below 32^2, below 96^2, above; the libraries put "all" before them
IOU_50, IOU_75 = 0, 5  # positions in their thresholds .50:.05:.95


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
        return coco_metrics(
            *self.tables(), classes=self.classes, backend=self.backend, max_detections=self.max_detections
        )


def coco_metrics(
    annotated: AnnotatedBoxes,
    detected: DetectedBoxes,
    *,
    classes: Sequence[str],
    backend: Backend = "faster_coco_eval",
    max_detections: tuple[int, int, int] = (1, 10, 100),
) -> dict[str, float]:
    """COCO's protocol: IoU .50:.05:.95, 101 recall points, four ranges of area.

    Ignored annotations count as crowds: they are no misses, and any number of boxes may fall on them.

    Args:
        annotated: Annotated boxes.
        detected: Detected boxes; among equal scores the earlier row comes first.
        classes: Names of labels 0 ... K-1.
        backend: Library that does the work.
        max_detections: Best boxes per image and class; three, increasing.

    Returns:
        Metrics from 0 to 1 by name; -1 where nothing is annotated. A class of which nothing is
        annotated is -1 and left out of the means.

    Raises:
        ConfigError: A setting is wrong.
    """
    _check_settings(backend, max_detections)
    # A class at a time: the libraries want a dict for every box, gigabytes for a whole data set.
    labels = np.unique(annotated.label).tolist()
    curves = [
        _evaluate_class(
            annotated.pick(annotated.label == label), detected.pick(detected.label == label), backend, max_detections
        )
        for label in labels
    ]
    precision = np.stack([p for p, _ in curves], axis=2) if curves else np.full((10, 101, 0, 4, 3), -1.0)
    recall = np.stack([r for _, r in curves], axis=1) if curves else np.full((10, 0, 4, 3), -1.0)
    metrics = {
        "AP": mean_of_defined(precision[..., 0, -1]),
        "AP50": mean_of_defined(precision[IOU_50, ..., 0, -1]),
        "AP75": mean_of_defined(precision[IOU_75, ..., 0, -1]),
    }
    metrics |= {f"AP_{area}": mean_of_defined(precision[..., i, -1]) for i, area in enumerate(SIZES, 1)}
    metrics |= {f"AR{count}": mean_of_defined(recall[..., 0, i]) for i, count in enumerate(max_detections)}
    metrics |= {f"AR_{area}": mean_of_defined(recall[..., i, -1]) for i, area in enumerate(SIZES, 1)}
    by_label = {label: mean_of_defined(precision[:, :, i, 0, -1]) for i, label in enumerate(labels)}
    return metrics | {f"AP/{name}": by_label.get(label, -1.0) for label, name in enumerate(classes)}


def _evaluate_class(
    annotated: AnnotatedBoxes, detected: DetectedBoxes, backend: Backend, max_detections: Sequence[int]
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

    shared = {
        "images": [{"id": image} for image in np.union1d(annotated.image, detected.image).tolist()],
        "categories": [{"id": 1, "name": "1"}],
    }
    area = detected.boxes[:, 2] * detected.boxes[:, 3]
    truths, results = COCO(), COCO()
    truths.dataset = {**shared, "annotations": _annotations(annotated, annotated.area, "iscrowd", annotated.ignore)}
    results.dataset = {**shared, "annotations": _annotations(detected, area, "score", detected.score)}
    with contextlib.redirect_stdout(io.StringIO()):
        truths.createIndex()
        results.createIndex()
        evaluation = COCOeval(truths, results, "bbox")
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[:, :, 0], np.asarray(evaluation.eval["recall"])[:, 0]


def _annotations(
    table: AnnotatedBoxes | DetectedBoxes, area: NDArray[np.float64], key: str, values: NDArray[Any]
) -> list[dict[str, Any]]:
    """The dict per box that the libraries read; ids start at 1 because they take 0 for unmatched."""
    rows = zip(table.image.tolist(), table.boxes.tolist(), area.tolist(), values.tolist(), strict=True)
    return [
        {"id": number, "image_id": image, "category_id": 1, "bbox": box, "area": square, key: value}
        for number, (image, box, square, value) in enumerate(rows, 1)
    ]


def _check_settings(backend: str, max_detections: Sequence[int]) -> None:
    check_choice(backend, get_args(Backend), "coco: no backend")
    if len(max_detections) != 3 or not 0 < max_detections[0] < max_detections[1] < max_detections[2]:
        raise ConfigError(f"coco: max_detections must be three increasing counts above 0, got {max_detections}")
