"""Whether a detector's anchors fit the boxes it is to learn: those that none fits are learned badly, if at all."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnv2det.check.findings import Finding
from mnv2det.config import Component, Config, ModelConfig, TaskConfig
from mnv2det.data.formats.problems import quoted
from mnv2det.errors import WeightsError
from mnv2det.models.build import from_config, weights_of
from mnv2det.models.model import Model
from mnv2det.ops.boxes import area, intersection
from mnv2det.ops.geometry import place
from mnv2det.registry import HEADS
from mnv2det.schema import is_download
from mnv2det.structures import Preprocess

BLOCK = 2**23  # pairs of box and anchor compared at once
GAP = 0.25  # share of boxes without an anchor from which on it is a finding
CLASS_GAP, CLASS_LEAST = 0.5, 10  # the same of one class, if it has so many boxes
SMALL, LARGE = 32.0, 96.0  # COCO's sizes: square roots of areas


@dataclass(frozen=True)
class Detector:
    """What matching needs.

    Attributes:
        name: For the report.
        anchors: float32 (A, 4), xyxy in pixels of the input.
        threshold: Least IoU of a match.
        preprocess: How pictures come to the input.
    """

    name: str
    anchors: Tensor
    threshold: float
    preprocess: Preprocess


@dataclass
class AnchorFit:
    """How anchors fit.

    Attributes:
        detector: Whose.
        input_size: (H, W).
        fit: How pictures come to it.
        anchors: Their number.
        threshold: Least IoU of a match.
        boxes: Number of boxes compared.
        without: Share of them that no anchor reaches.
        classes: The same by class: ``{name: {boxes, without}}``.
        sizes: The same by size in the input: ``small`` (below 32x32), ``medium``, ``large`` (from 96x96).
        side_percentiles: Square root of the area, in the input's pixels, at 5, 25, 50, 75 and 95 %.
        side_without: The same of the boxes that no anchor reaches; None where there are none.
        anchor_sides: Least and largest square root of an anchor's area.
    """

    detector: str
    input_size: tuple[int, int]
    fit: str
    anchors: int
    threshold: float
    boxes: int
    without: float
    classes: dict[str, dict[str, float]]
    sizes: dict[str, dict[str, float]]
    side_percentiles: list[float]
    side_without: list[float] | None
    anchor_sides: tuple[float, float]

    def findings(self, split: str) -> list[Finding]:
        """Warnings, where the share is large."""
        height, width = self.input_size
        findings = []
        if self.without > GAP:
            value = f"{self.without:.0%} of {self.boxes} boxes have no anchor of IoU {self.threshold:g} or more"
            assert self.side_without is not None
            low, _, half, _, high = (side / min(height, width) for side in self.side_without)
            expected = (
                f"at most {GAP:.0%}; theirs would be anchors of scale {low:.2f} to {high:.2f}, half below {half:.2f}"
            )
            findings.append(Finding("anchor_gap", split, "", value, expected))
        for name, row in self.classes.items():
            if row["without"] > CLASS_GAP and row["boxes"] >= CLASS_LEAST:
                value = f"{quoted(name)}: {row['without']:.0%} of {row['boxes']:g} boxes"
                findings.append(Finding("anchor_gap", split, "", value, f"at most {CLASS_GAP:.0%}"))
        return findings


@functools.lru_cache(maxsize=4)
def default_detector(size: tuple[int, int]) -> Detector:
    """SSDLite as `mnv2det.models.ssdlite.SSDLite` is without arguments."""
    task = TaskConfig(head=Component("ssdlite"), evaluator=Component("coco"))
    model, _ = from_config(ModelConfig(input_size=list(size)), {"det": task}, {"det": ["object"]})
    detector = _of_model(model, "ssdlite, default anchors")
    assert detector is not None
    return detector


def config_detector(
    config: Config, size: tuple[int, int] | None, names: Sequence[str], remarks: list[str]
) -> Detector | None:
    """The detector of a config; None where it has none with anchors.

    Args:
        config: The experiment.
        size: (H, W) instead of the config's.
        names: Box classes.
        remarks: Gets a line where the initial weights are not there to be asked.

    Raises:
        ConfigError: The model cannot be built.
    """
    # a file says how pictures come to the input, and may say which anchors there are; others do not
    stated = config.model.weights
    weights = stated if stated and _is_there(stated) else None
    if config.model.weights and weights is None and not is_download(config.model.weights):
        remarks.append(f"{config.model.weights}: not there; anchors are those of the config alone")
    shape = list(size) if size else config.model.input_size
    detectors = {name: part for name, part in config.tasks.items() if HEADS.get(part.head.name).target_key == "labels"}
    if not detectors:
        return None
    classes = {name: list(names) or ["object"] for name in detectors}
    plain = dataclasses.replace(config.model, input_size=shape, weights=None, freeze=None)
    try:
        model, _ = from_config(dataclasses.replace(plain, weights=weights), detectors, classes)
    except WeightsError as error:
        remarks.append(f"{error}; anchors are those of the config alone")
        model, _ = from_config(plain, detectors, classes)
    return _of_model(model, ", ".join(detectors))


def _is_there(weights: str) -> bool:
    """Whether weights can be read without a download."""
    try:
        return not is_download(weights) and weights_of(weights).exists()
    except WeightsError:
        return False


def _of_model(model: Model, name: str) -> Detector | None:
    for task, head in model.heads.items():
        coding = head.anchor_coding()  # type: ignore[operator]
        if coding is not None:
            anchors = head.constants(model.preprocess.input_size)[coding.anchors]  # type: ignore[operator]
            return Detector(name if len(model.heads) == 1 else task, anchors, coding.match_iou, model.preprocess)
    return None


def to_input(corners: NDArray[np.float64], sizes: NDArray[np.int64], preprocess: Preprocess) -> NDArray[np.float64]:
    """Boxes in pixels of the network's input (`mnv2det.data.fit.fit`).

    Args:
        corners: float64 (N, 4), xyxy in pixels of their pictures.
        sizes: int64 (N, 2), (H, W) of the pictures.
        preprocess: Of the model.
    """
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    scaled, corner, _ = place(height, width, preprocess, np)
    factor = np.stack([scaled[1] / width, scaled[0] / height], axis=1)
    shift = np.stack(np.broadcast_arrays(corner[1], corner[0], height)[:2], axis=1)
    return corners * np.tile(factor, 2) - np.tile(shift, 2)


@torch.no_grad()
def best_iou(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Each box's IoU with its best anchor: float32 (N,)."""
    sizes = area(anchors)
    best = []
    for block in boxes.split(max(1, BLOCK // max(1, len(anchors)))):
        shared = intersection(block, anchors)
        best.append((shared / (area(block)[:, None] + sizes - shared).clamp(min=1e-9)).amax(dim=1))
    return torch.cat(best) if best else torch.zeros(0)


def fit_anchors(
    detector: Detector,
    corners: NDArray[np.float64],
    sizes: NDArray[np.int64],
    labels: NDArray[np.int64],
    names: Sequence[str],
) -> AnchorFit | None:
    """Compares all boxes with all anchors.

    Args:
        detector: Whose anchors.
        corners: float64 (N, 4), clipped to their pictures.
        sizes: int64 (N, 2), (H, W) of their pictures.
        labels: int64 (N,), into ``names``.
        names: Classes.
    """
    boxes = torch.from_numpy(to_input(corners, sizes, detector.preprocess)).float()
    if detector.preprocess.fit == "pad":
        # of a larger picture the input shows a part
        height, width = detector.preprocess.input_size
        visible = ((boxes[:, 0] + boxes[:, 2] < 2 * width) & (boxes[:, 1] + boxes[:, 3] < 2 * height)).numpy()
        boxes, labels = boxes[torch.from_numpy(visible)], labels[visible]
    if not len(boxes):
        return None
    without = (best_iou(detector.anchors, boxes) < detector.threshold).numpy()
    side = area(boxes).sqrt().numpy()
    groups = {"small": side < SMALL, "medium": (side >= SMALL) & (side < LARGE), "large": side >= LARGE}
    points = (5, 25, 50, 75, 95)
    anchor_sides = area(detector.anchors).sqrt()
    return AnchorFit(
        detector.name,
        detector.preprocess.input_size,
        detector.preprocess.fit,
        len(detector.anchors),
        detector.threshold,
        len(boxes),
        float(without.mean()),
        {name: _share(without[labels == label]) for label, name in enumerate(names) if (labels == label).any()},
        {name: _share(without[chosen]) for name, chosen in groups.items()},
        np.percentile(side, points).round(1).tolist(),
        np.percentile(side[without], points).round(1).tolist() if without.any() else None,
        (round(float(anchor_sides.min()), 1), round(float(anchor_sides.max()), 1)),
    )


def _share(without: NDArray[np.bool_]) -> dict[str, float]:
    return {"boxes": len(without), "without": float(without.mean()) if len(without) else 0.0}
