"""How far two forms of the same model lie apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import Detections, Result, Scores, Segmentation

SAME_BOX = 0.99  # IoU
SAME_CORNERS = 0.01  # pixels


@dataclass
class Differences:
    """The largest ones over all pictures.

    Attributes:
        pictures: How many were looked at.
        largest: By ``task.figure``. Of a detector ``score`` and the number of ``unmatched`` boxes, of a
            segmenter the share of ``pixels`` of another class, of a classifier ``probability``.
        detections: How many boxes were looked for.
    """

    pictures: int = 0
    detections: int = 0
    largest: dict[str, float] = field(default_factory=dict)

    def above(self, tolerance: float) -> list[str]:
        """Names of the metrics that are larger; a box that has no partner is too much of a difference."""
        return [name for name, value in self.largest.items() if not value <= tolerance]

    def note(self, name: str, value: float, *, add: bool = False) -> None:
        """Keeps the larger value, or the sum."""
        old = self.largest.get(name, 0.0)
        # a NaN must not be the smaller one
        self.largest[name] = old + value if add else value if not value <= old else old


def compare(ours: Predictor, theirs: Predictor, pictures: Iterable[NDArray[np.uint8]]) -> Differences:
    """Runs both on each picture.

    A box counts as found if the other has one of its class with an IoU of 0.99 and about its score.
    Of the last boxes of a full list it depends on the last bits which ones are in it, so those
    within 0.001 of the least score are not looked for.

    Args:
        ours: The one that is right.
        theirs: The other.
        pictures: uint8 (H, W, 3), RGB.
    """
    differences = Differences()
    for picture in pictures:
        differences.pictures += 1
        mine, other = ours(picture), theirs(picture)
        for task, result in mine.items():
            _note(differences, task, result, other[task], full=_most(ours, task))
    return differences


def unmatched(ours: Detections, theirs: Detections, *, full: int, near: float) -> tuple[Tensor, Tensor]:
    """Of each of our boxes the difference in score to its partner, infinite where there is none.

    Returns:
        Differences float32 (N,), and which of the boxes need a partner, bool (N,).
    """
    same = box_iou(ours.boxes.double(), theirs.boxes.double()) >= SAME_BOX
    # boxes without area, clipped at the picture's edge, overlap nothing
    same |= (ours.boxes[:, None] - theirs.boxes).abs().amax(dim=-1) <= SAME_CORNERS
    same &= ours.labels[:, None] == theirs.labels
    apart = torch.where(same, (ours.scores[:, None] - theirs.scores).abs(), torch.inf)
    least = apart.amin(dim=1) if len(theirs.scores) else torch.full((len(ours.scores),), torch.inf)
    needed = torch.ones(len(ours.scores), dtype=torch.bool)
    if len(ours.scores) >= full:
        needed = ours.scores > ours.scores[-1] + near
    return least, needed


def _note(differences: Differences, task: str, ours: Result, theirs: Any, *, full: int) -> None:
    if isinstance(ours, Detections):
        # both ways, so that a box too many is noticed
        for one, other in ((ours, theirs), (theirs, ours)):
            apart, needed = unmatched(one, other, full=full, near=1e-3)
            apart = apart[needed]
            alone = apart.isinf()
            differences.detections += len(apart)
            differences.note(f"{task}.score", float(apart[~alone].max()) if bool((~alone).any()) else 0.0)
            differences.note(f"{task}.unmatched", int(alone.sum()), add=True)
    elif isinstance(ours, Segmentation):
        differences.note(f"{task}.pixels", float((ours.mask != theirs.mask).float().mean()))
    elif isinstance(ours, Scores):
        differences.note(f"{task}.probability", float((ours.probabilities - theirs.probabilities).abs().max()))


def _most(predictor: Predictor, task: str) -> int:
    settings = predictor.heads[task].detection_settings
    return settings.max_detections if settings else 1 << 62
