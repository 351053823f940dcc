"""Detections as annotation files of PASCAL VOC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.labels.voc import VocObject, annotation_xml
from mnv2det.structures import Detections


def voc_xml(file: str, size: tuple[int, int], results: Sequence[tuple[Detections, Sequence[str]]]) -> bytes:
    """Detections as an annotation file that PASCAL VOC's tools and our data set ``voc`` read, with a ``score`` per box.

    VOC counts whole pixels from 1 and includes the last. Boxes are rounded to them and made at least two pixels wide
    where the picture has room, because readers take ``xmin = xmax`` for a mistake.

    Args:
        file: Name of the picture's file; characters that xml cannot hold become question marks.
        size: (H, W) of the picture.
        results: Detections with their class names.
    """
    objects = []
    for detections, names in results:
        boxes = _voc_boxes(detections.boxes.cpu().numpy(), size).tolist()
        for bounds, score, label in zip(boxes, detections.scores.tolist(), detections.labels.tolist(), strict=True):
            objects.append(VocObject(names[label], bounds, score=score))
    return annotation_xml(Path(file).name, size, objects)


def _voc_boxes(boxes: NDArray[Any], size: tuple[int, int]) -> NDArray[np.int64]:
    """xmin, ymin, xmax, ymax, int64 (N, 4), from continuous boxes on a picture of ``size`` (H, W)."""
    room = np.array([size[1], size[0]])
    smallest = np.minimum(2, room)
    boxes = boxes.reshape(-1, 4).astype(np.float64)
    rounded = np.rint(boxes).astype(np.int64)
    centred = np.rint(boxes[:, :2] / 2 + boxes[:, 2:] / 2 - smallest / 2).astype(np.int64)
    too_small = rounded[:, 2:] - rounded[:, :2] < smallest
    low = np.clip(np.where(too_small, centred, rounded[:, :2]), 0, room - smallest)
    high = np.clip(np.maximum(rounded[:, 2:], low + smallest), 0, room)
    return np.hstack([low + 1, high])
