"""How far the results of two forms of the same model lie apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnv2det.errors import DataError
from mnv2det.ops.boxes import area, intersection
from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import Detections, Scores, Segmentation, TaskResult

SAME_BOX = 0.99  # IoU
SAME_CORNERS = 0.01  # pixels


@dataclass
class Differences:
    """The largest differences over all pictures.

    Attributes:
        pictures: How many were compared.
        detections: How many boxes were compared.
        largest: By ``task.kind``. Of a detector ``score`` and the number of ``unmatched`` boxes, of a
            segmenter the share of ``pixels`` of another class, of a classifier ``probability``.
    """

    pictures: int = 0
    detections: int = 0
    largest: dict[str, float] = field(default_factory=dict)

    def above(self, tolerance: float) -> list[str]:
        """Names of the differences that are larger; a box that has no partner is too much of a difference."""
        return [name for name, value in self.largest.items() if not value <= tolerance]

    def note(self, name: str, value: float, *, add: bool = False) -> None:
        """Keeps the larger value, or the sum."""
        old = self.largest.get(name, 0.0)
        # a NaN must not be the smaller one
        self.largest[name] = old + value if add else value if not value <= old else old


def compare(reference: Predictor, other: Predictor, pictures: Iterable[NDArray[np.uint8]]) -> Differences:
    """Runs both on each picture.

    A box has a partner if the other has one of its class with an IoU of 0.99; their scores are then compared.
    Of the last boxes of a full list it depends on the last bits which ones are in it, so those
    within 0.001 of the least score need no partner.

    Args:
        reference: The one that is right.
        other: The one that is checked.
        pictures: uint8 (H, W, 3), RGB.

    Raises:
        DataError: There is no picture.
    """
    differences = Differences()
    for picture in pictures:
        differences.pictures += 1
        (expected,), (results,) = reference.batch([picture]), other.batch([picture])
        for task, result in expected.items():
            # a head that keeps only so many boxes fills its list
            settings = reference.heads[task].detection_settings
            full = settings.max_detections if settings else 1 << 62
            _note(differences, task, result, results[task], full=full)
    if not differences.pictures:
        raise DataError("no picture to compare on")
    return differences


def unmatched(boxes: Detections, others: Detections, *, full: int, near: float) -> tuple[Tensor, Tensor]:
    """Looks for the partner of each box.

    Args:
        boxes: Whose partners are looked for, the best first.
        others: Among which they are looked for.
        full: Length of a list that may have been cut.
        near: Difference to the least score of a full list up to which a box needs no partner.

    Returns:
        Differences in score, float32 (N,), infinite where there is no partner; and which of the boxes need one,
        bool (N,).
    """
    overlap = intersection(boxes.boxes.double(), others.boxes.double())
    union = area(boxes.boxes.double())[:, None] + area(others.boxes.double()) - overlap
    same = overlap > SAME_BOX * union
    # boxes without area, clipped at the picture's edge, overlap nothing
    same |= (boxes.boxes[:, None] - others.boxes).abs().amax(dim=-1) <= SAME_CORNERS
    same &= boxes.labels[:, None] == others.labels
    apart = torch.where(same, (boxes.scores[:, None] - others.scores).abs(), torch.inf)
    least = apart.amin(dim=1) if len(others.scores) else torch.full((len(boxes.scores),), torch.inf)
    needed = torch.ones(len(boxes.scores), dtype=torch.bool)
    if len(boxes.scores) >= full:
        needed = boxes.scores > boxes.scores[-1] + near
    return least, needed


def _note(differences: Differences, task: str, expected: TaskResult, result: TaskResult, *, full: int) -> None:
    """Adds one task's differences on one picture."""
    if isinstance(expected, Detections) and isinstance(result, Detections):
        # both ways, so that a box too many is noticed
        for boxes, others in ((expected, result), (result, expected)):
            apart, needed = unmatched(boxes, others, full=full, near=1e-3)
            apart = apart[needed]
            alone = apart.isinf()
            differences.detections += len(apart)
            differences.note(f"{task}.score", float(apart[~alone].max()) if bool((~alone).any()) else 0.0)
            differences.note(f"{task}.unmatched", int(alone.sum()), add=True)
    elif isinstance(expected, Segmentation) and isinstance(result, Segmentation):
        differences.note(f"{task}.pixels", float((expected.mask != result.mask).float().mean()))
    elif isinstance(expected, Scores) and isinstance(result, Scores):
        differences.note(f"{task}.probability", float((expected.probabilities - result.probabilities).abs().max()))
    else:
        differences.note(f"{task}.kind", float("inf"))
