"""From scored boxes to detections: the one order of steps, for eager use and for exported graphs.

The steps are:

1. Every pair of a box and a class whose score is above ``score_threshold`` is a candidate.
2. Boxes are cut to the part of the network's input that shows the picture, unless ``clip_after_nms``.
3. Greedy NMS within each class: best first; a box is dropped if its IoU with a better one of its class is above
   ``nms_iou``. Equal scores are taken in the order of their boxes, then of their classes.
4. The best ``max_detections`` of all classes stay.
5. Boxes are scaled to the picture's own pixels, and cut to it.

`detect` does so for one picture with NumPy, `detect_in_graph` for a batch by operations that can be traced, and
`mnv2det.runtime.openvino_detections` by operators of OpenVINO.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnv2det.ops.boxes import clip_boxes
from mnv2det.ops.geometry import GraphFrame
from mnv2det.ops.nms import Suppress, class_nms
from mnv2det.structures import Detections, Frame


@dataclass(frozen=True)
class DetectionSettings:
    """What decides which scored boxes are detections.

    Attributes:
        score_threshold: Detections score above this, 0 ... 1.
        nms_iou: A box whose IoU with a better one of its class is above this is dropped, 0 ... 1.
        max_detections: Most detections of a picture.
        clip_after_nms: Whether boxes are cut to the picture only after NMS.
    """

    score_threshold: float
    nms_iou: float
    max_detections: int
    clip_after_nms: bool = False

    def least_logit(self, *, softmax: bool) -> float:
        """``score_threshold`` as a logit, or as a log-probability where scores are a softmax."""
        score = self.score_threshold
        if score <= 0:
            return -math.inf
        return math.log(score) if softmax else math.inf if score >= 1 else math.log(score / (1 - score))


def detect(
    boxes: NDArray[np.float32] | Callable[[NDArray[np.int64]], NDArray[np.float32]],
    logits: Tensor,
    frame: Frame,
    settings: DetectionSettings,
    *,
    softmax: bool = False,
    first_class: int = 0,
) -> Detections:
    """Detections of one picture.

    Candidates are chosen by their logits, so that few logits become scores and few boxes are computed. All but
    the suppression is done by NumPy: on so few rows calls are what takes time, and torch would wake its threads,
    which then spin on the cores that another runtime's next prediction needs.

    Args:
        boxes: (N, 4), xyxy in pixels of the input; or a function that computes those of given rows, int64 (n,).
        logits: float32 (N, first_class + K), on the CPU, without gradient.
        frame: Where the picture lies in the input.
        settings: Thresholds and the number of detections.
        softmax: Whether scores are the softmax of each row; otherwise they are the sigmoid of each logit.
        first_class: Columns before that of the first class: the background's, if there is one.

    Returns:
        Boxes in pixels of the picture, best first.
    """
    size, used = frame
    compute = boxes.__getitem__ if isinstance(boxes, np.ndarray) else boxes
    values = np.ascontiguousarray(logits.numpy())
    if softmax:
        values = values - values.max(axis=-1, keepdims=True)
        values = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    kept, best, labels = class_nms(
        compute if settings.clip_after_nms else lambda rows: clip_boxes(compute(rows), used),
        values,
        score_threshold=settings.least_logit(softmax=softmax),
        nms_iou=settings.nms_iou,
        max_detections=settings.max_detections,
        first_class=first_class,
    )
    scores = torch.from_numpy(np.exp(best)) if softmax else torch.from_numpy(best).sigmoid()
    factor = np.array([size[1] / used[1], size[0] / used[0]] * 2, np.float32)
    return Detections(torch.from_numpy(clip_boxes(kept * factor, size)), scores, torch.from_numpy(labels))


def detect_in_graph(
    boxes: Tensor, scores: Tensor, frame: GraphFrame, settings: DetectionSettings, suppress: Suppress
) -> dict[str, Tensor]:
    """Detections of a batch, by operations that can be traced.

    Args:
        boxes: float (B, N, 4), xyxy in pixels of the input.
        scores: float (B, N, K), 0 ... 1.
        frame: Where the pictures lie in the input.
        settings: Thresholds and the number of detections.
        suppress: Does the suppression.

    Returns:
        ``boxes`` float32 (B, M, 4), xyxy in pixels of the pictures, ``scores`` (B, M), descending, ``labels`` int64
        (B, M), and ``count`` int64 (B,): how many of the M are detections; the others have score 0.
    """
    scores = scores.transpose(1, 2)
    used, size = (torch.cat([side.flip(0), side.flip(0)]).float() for side in (frame.used, frame.size))
    if not settings.clip_after_nms:
        boxes = boxes.clamp(min=0.0).minimum(used)
    number = scores.shape[2]
    kept = suppress(boxes, scores, settings.nms_iou, settings.score_threshold, settings.max_detections)
    best, index = kept.flatten(1).topk(min(settings.max_detections, scores.shape[1] * number), dim=1)
    boxes = boxes.gather(1, (index % number)[..., None].expand(-1, -1, 4))
    return {
        "boxes": (boxes * (size / used)).clamp(min=0.0).minimum(size),
        "scores": best,
        "labels": index // number,
        "count": (best > 0).sum(dim=1),
    }
