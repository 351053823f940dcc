"""A config made for a data set: input size, anchors, augmentation and length of training, each with its reason."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mnv2det.data.masks import read_mask
from mnv2det.engine.estimate import TIMED
from mnv2det.errors import ConfigError, DataError
from mnv2det.importing.fit_anchors import DEFAULT, FINE, FINEST, coverage, fit_levels, smallest_side
from mnv2det.importing.start import Start, detector_args
from mnv2det.io import evenly_spread
from mnv2det.labels.base import LabelledPart

Speed = Literal["fast", "balanced", "accurate"]
Task = Literal["det", "seg", "cls"]
NEEDS = {"det": "a box", "seg": "a mask or outline", "cls": "a class of its own"}

# pixels of the input, square root of its area; published SSDLite has 320
SIDES: dict[Speed, int] = {"fast": 256, "balanced": 320, "accurate": 416}
LENGTHS: dict[Speed, float] = {"fast": 0.6, "balanced": 1.0, "accurate": 2.0}
GROWN = 1.5  # at most so many times more for small objects
PASSES = "passes over the training pictures"
MULTIPLE = 32  # of input sides: the backbone's coarsest stride
SMALLEST = 14.0  # pixels that the median object of the smallest class should have in the input
# what is named where no detector is at hand
BETTER_START = "--weights coco downloads one (51 MB)"
SEEN = 6000  # pictures seen in training, where there are 200; it grows with the root of their number
FROM_DETECTOR = 0.55  # of the steps: a head that finds objects already has less to learn
ENLARGED_DETECTOR = 1.25  # of the input's sides: what that saves is spent on pixels
SEEN_MASKS = 5200  # the same of masks
FEW = 2000  # pictures up to which the first blocks of trained weights stay as they are
ENLARGED_MASKS = 1.5  # at most so many times the pictures' own size, for masks
LONGEST: dict[Speed, int] = {"fast": 480, "balanced": 720, "accurate": 960}  # side of a segmenter's input, in pixels
BATCH = 8
# words of classes that a mirror turns into another class or into nonsense
MIRRORED = re.compile(r"(?i)(^|[^a-z])(left|right|text|letter|digit|number|plate|sign|arrow|logo|word)s?($|[^a-z])")


@dataclass
class Suggestion:
    """A config, and what is said about it on the terminal.

    Attributes:
        text: The YAML, with comments.
        lines: What was chosen, a line for each thing worth knowing.
    """

    text: str
    lines: list[str] = field(default_factory=list)

    def add_minutes(self, minutes: float) -> None:
        """States how long the training will take on this machine."""
        about = f"about {max(1, round(minutes))} minutes"
        self.text = self.text.replace(PASSES, f"{PASSES}; {about} on the machine that imported them", 1)
        self.lines.append(f"{about} of training on this machine, from {TIMED} timed steps")


def suggest_config(
    parts: Sequence[LabelledPart],
    folder: Path,
    *,
    tasks: Sequence[Task] = (),
    speed: Speed = "balanced",
    start: Start | None = None,
) -> Suggestion:
    """Makes the config of a data set that `mnv2det.importing.import_data.import_data` wrote.

    Args:
        parts: Its splits; the choices are made from the training pictures alone.
        folder: Where it lies.
        tasks: What to learn; empty takes boxes where there are any, else masks, else classes of pictures.
        speed: Towards a small and quickly trained model, or a better one.
        start: Weights to start from; None starts from random ones, and says so.

    Raises:
        ConfigError: The data lacks what a task needs.
        DataError: There is nothing to learn.
    """
    train = next(part for part in parts if part.role == "train")
    data = DataFacts(train, [part.role for part in parts], folder)
    has: dict[Task, bool] = {"det": data.boxed, "seg": data.masked, "cls": data.labelled}
    there = [task for task in has if has[task]]
    if not there:
        raise DataError(f"nothing to learn: none of {len(train.pictures)} training pictures has a box, mask or class")
    missing = next((task for task in tasks if task not in there), None)
    if missing:
        raise ConfigError(
            f"--tasks {missing}: the data has {NEEDS[missing]} on no picture; it can be {', '.join(there)}"
        )
    chosen, start = tuple(tasks) or tuple(there[:1]), start or Start()
    if chosen == ("cls",):
        return _classification(data, speed, start.weights)
    if chosen == ("seg",):
        return _segmentation(data, speed, start.weights)
    return _detection(data, speed, start, masks="seg" in chosen)


class DataFacts:
    """What a config is made from.

    Args:
        train: The training pictures.
        roles: The splits there are.
        folder: Where the data lies.
    """

    def __init__(self, train: LabelledPart, roles: Sequence[str], folder: Path) -> None:
        self.train, self.roles, self.folder = train, roles, folder
        self.pairs = [(picture, box) for picture in train.pictures for box in picture.boxes if not box.ignore]
        self.in_files = bool(train.mask_names)  # masks are PNGs, which VOC's layout holds, or outlines in COCO's json
        self.boxed, self.labelled = bool(self.pairs), any(picture.label for picture in train.pictures)
        self.masked = self.in_files or any(box.runs for _, box in self.pairs)
        self.val = "val" if "val" in roles else "train"

    @property
    def mask_names(self) -> list[str]:
        """Classes of the masks."""
        return self.train.mask_names if self.in_files else ["background", *self.train.names]

    def sets(self, *, boxes: bool, masks: bool) -> str:
        """``data.train`` and ``data.val`` as YAML."""
        if not self.in_files:
            outlines = ", masks: coco" if masks else ""
            return "\n".join(
                f"  {key}: {{name: coco, args: {{annotations: annotations/{role}.json, images: images{outlines}}}}}"
                for key, role in (("train", "train"), ("val", self.val))
            )
        names = ", ".join(_quoted(name) for name in self.mask_names)
        wanted = f"boxes: {'required' if boxes else 'null'}"
        if masks:
            need = "required" if all(picture.mask for picture in self.train.pictures) else "optional"
            wanted += f", masks: {need}, lists: {'Main' if boxes else 'Segmentation'},\n    mask_names: [{names}]"
        return (
            f"  train: {{name: voc, args: &data {{\n    sets: [data/train], {wanted}}}}}\n"
            f"  val: {{name: voc, args: {{<<: *data, sets: [data/{self.val}]}}}}"
        )

    def flip(self, names: Sequence[str]) -> str:
        """The end of the augmentation's line: how many pictures are mirrored, and why."""
        mirrored = next((name for name in names if MIRRORED.search(name)), None)
        if mirrored:
            return f"flip: 0.0}}}}   # a mirror would change '{mirrored}'"
        return "flip: 0.5}}   # mirrored half of the time; set 0 if left and right matter"


def _detection(data: DataFacts, speed: Speed, start: Start, *, masks: bool) -> Suggestion:
    train = data.train
    names = [box.name for _, box in data.pairs]
    sizes = np.array([picture.size for picture, _ in data.pairs], np.float64)
    corners = np.array([box.corners for _, box in data.pairs], np.float64)
    shares = (corners[:, 2:] - corners[:, :2]) / sizes[:, ::-1]
    root = np.sqrt(shares.prod(axis=1))
    medians = {name: float(np.median(root[[other == name for other in names]])) for name in set(names)}
    smallest = min(sorted(medians), key=medians.__getitem__)
    pictures = [picture.size for picture in train.pictures]
    weights, detector, refused = start.weights, start.detector, []
    if detector is not None:
        size = input_size(pictures, speed, medians[smallest], ENLARGED_DETECTOR)
        finest = min(int(tap.rpartition("/")[2]) for tap in (detector_args(detector) or {})["taps"])
        side = smallest_side(shares * np.array(size[::-1]), names)
        if side < FINE and finest > FINEST:
            refused = [
                f"not started from the detector {detector}: objects of {side:.0f} pixels, such as '{smallest}', need a"
                f" level of stride {FINEST}, and its finest is {finest}"
            ]
            detector = None
    if detector is None:
        size = input_size(pictures, speed, medians[smallest])
    pixels = medians[smallest] * math.prod(size) ** 0.5
    boxes = shares * np.array(size[::-1])
    lines = [f"input {size[0]}x{size[1]}: the median '{smallest}', the smallest class, has {pixels:.0f} pixels in it"]
    if detector is not None:
        weights, rate = detector, 0.01
        head = ["# levels and anchors are those of the detector that training starts from"]
    else:
        rate = 0.025
        levels = fit_levels(boxes, names, size)
        before, after = coverage(DEFAULT, boxes, size), coverage(levels, boxes, size)
        head = [
            "# levels and anchors [scale, width / height] fitted to the boxes of train (k-means on IoU):",
            f"# {after:.1%} of the boxes have an anchor of IoU 0.5, {before:.1%} with the published ones",
            f"taps: [{', '.join(levels.taps)}]",
            f"extras: {levels.extras}",
            "anchors:",
            *(f"  - {[list(shape) for shape in level]}" for level in levels.anchors),
        ]
        lines.append(f"anchors: {after:.1%} of the boxes have one of IoU 0.5; {before:.1%} with the published ones")
    steps, epochs = _length(len(train.pictures), speed, SEEN * (FROM_DETECTOR if detector else 1))
    if detector is None and not refused:
        refused = [f"photographs of everyday things are learned better from a detector: {BETTER_START}"]
    lines += [_start_line(weights, detector), *refused, _training_line(steps, epochs, len(train.pictures))]
    optimizer = f"sgd, args: {{lr: {rate}, momentum: 0.9, weight_decay: 4.0e-5}}"
    if masks:
        # the detector's gradients are many times the segmenter's, which SGD would hardly train
        optimizer = "adamw, args: {lr: 0.002, weight_decay: 0.05}"
    indent = "\n        "
    backbone = "\n  backbone: {name: mobilenet_v2, args: {output_stride: 16}}   # for the masks" if masks else ""
    segmenter = "\n  seg: {head: {name: mobile_deeplab}, evaluator: {name: miou}}" if masks else ""
    text = f"""\
{_heading("detector and segmenter" if masks else "detector", data)}
model:{backbone}
{_weights(weights, len(train.pictures))}
  # the pictures' median shape; the median '{smallest}', the smallest class, has {pixels:.0f} pixels in it
  input_size: [{size[0]}, {size[1]}]
tasks:
  det:
    head:
      name: ssdlite
      args:
        {indent.join([*head, "box_weight: 2.0"])}
    evaluator: {{name: coco}}{segmenter}
data:
  root: {_quoted(data.folder)}
{data.sets(boxes=True, masks=masks)}
  augment: {{name: ssd, args: {{crop: 0.5, area: [0.3, 1.0], {data.flip(train.names)}
{_training(steps, epochs, optimizer, "cosine")}"""
    return Suggestion(text, lines)


def _segmentation(data: DataFacts, speed: Speed, weights: str | None) -> Suggestion:
    train = data.train
    height, width = np.median(np.array([picture.size for picture in train.pictures], np.float64), axis=0)
    # thin things need many pixels: pictures are enlarged, but not without end
    factor = min(ENLARGED_MASKS, LONGEST[speed] / max(height, width))
    size = [max(1, round(side * factor / 4)) * 4 for side in (height, width)]
    crop = [min(max(4, round(side * 0.59 / 16)) * 16, 512) for side in size]
    frequency = mask_shares(data)
    # the fourth root of how rare a class is, 1 on average
    wanted = np.where(frequency > 0, np.maximum(frequency, 1e-4), 1.0) ** -0.25
    present = wanted[frequency > 0].mean() if (frequency > 0).any() else 1.0
    rare = np.where(frequency > 0, wanted / present, 1.0).round(1).tolist()
    steps, epochs = _length(len(train.pictures), speed, SEEN_MASKS)
    absent = [name for name, share in zip(data.mask_names, frequency, strict=True) if share == 0]
    lines = [f"input {size[0]}x{size[1]}: the pictures' median size times {factor:.2g}"]
    lines += [f"no pixel of train is of '{name}'" for name in absent]
    lines += [_start_line(weights), _training_line(steps, epochs, len(train.pictures))]
    text = f"""\
{_heading("segmenter", data)}
model:
  backbone: {{name: mobilenet_v2, args: {{output_stride: 16}}}}
{_weights(weights, len(train.pictures))}
  input_size: {size}            # the pictures' median size times {factor:.2g}
tasks:
  seg:
    head:
      name: mobile_deeplab
      args:
        detail_tap: block6                        # class scores of stride 8 beside those of 16: thin things
        # rare classes count more, by about the fourth root of how rare they are
        class_weights: {rare}
        loss_stride: 3
    evaluator: {{name: miou}}
data:
  root: {_quoted(data.folder)}
{data.sets(boxes=False, masks=True)}
  augment: {{name: deeplab, args: {{base: {max(size)}, scale: [0.6, 1.6], crop: {crop}, photometric: 0.5,
    {data.flip(data.mask_names)}
{_training(steps, epochs, "sgd, args: {lr: 0.01, momentum: 0.9, weight_decay: 4.0e-5}", "poly", head_lr_factor=10)}"""
    return Suggestion(text, lines)


def _classification(data: DataFacts, speed: Speed, weights: str | None) -> Suggestion:
    count = len(data.train.pictures)
    side = {"fast": 160, "balanced": 224, "accurate": 256}[speed]
    steps, epochs = _length(count, speed)
    names = sorted({picture.label for picture in data.train.pictures})
    text = f"""\
{_heading("classifier", data)}
model:
{_weights(weights, count)}
  input_size: [{side}, {side}]
tasks:
  cls:
    head: {{name: classifier}}
    evaluator: {{name: topk}}
data:
  root: {_quoted(data.folder)}
  train: {{name: imagefolder, args: {{images: train}}}}
  val: {{name: imagefolder, args: {{images: {data.val}}}}}
  augment: {{name: inception, args: {{area: [0.3, 1.0], {data.flip(names)}
{_training(steps, epochs, "sgd, args: {lr: 0.02, momentum: 0.9, weight_decay: 4.0e-5}", "cosine")}"""
    return Suggestion(text, [f"input {side}x{side}", _start_line(weights), _training_line(steps, epochs, count)])


def _heading(what: str, data: DataFacts) -> str:
    lines = [f"# A {what} of the data in this folder, made for its {len(data.train.pictures)} training pictures by"]
    lines.append(f"# mnv2det data import. Train it with: mnv2det train {shlex.quote(str(data.folder))}")
    if "val" not in data.roles:
        lines.append("# There is no validation split: it is measured on what it learns from, so the metrics flatter.")
    if "test" in data.roles:
        lines.append("# The test split is not used here; it is for the last line of a report (docs/data.md).")
    return "\n".join(lines)


def _weights(weights: str | None, count: int) -> str:
    if weights is None:
        return (
            "  # Random weights: on a few hundred pictures little is learned from them. Take coco (a detector, 51 MB)\n"
            "  # for photographs of everyday things, else imagenet (14 MB); nothing else gains as much.\n"
            "  weights: null"
        )
    frozen = "\n  freeze: block3                         # hardly changes on so few pictures; saves half of the time"
    return f"  weights: {_quoted(weights)}" + (frozen if count <= FEW else "")


def _training(steps: int, epochs: float, optimizer: str, schedule: str, head_lr_factor: int = 1) -> str:
    factor = f"  head_lr_factor: {head_lr_factor}\n" if head_lr_factor != 1 else ""
    return f"""\
  batch_size: {BATCH}
  workers: 2
  bad_data: stop                                  # the import left out what cannot be learned
optim:
  optimizer: {{name: {optimizer}}}
  schedule: {{name: {schedule}}}
{factor}  warmup_steps: {max(1, min(steps // 10, 100))}
  clip_norm: 10
train:
  # {epochs:.0f} {PASSES}
  steps: {steps}
  amp: bf16
  channels_last: true
  ema_decay: {1 - 1 / max(10.0, 0.45 * steps):.4f}                      # averages about the last half of the steps
  eval_every: {max(1, round(epochs / 5))}
"""


def _length(count: int, speed: Speed, seen: float = SEEN) -> tuple[int, float]:
    """Steps, and passes over so many pictures."""
    steps = max(40, round(seen * LENGTHS[speed] * math.sqrt(count / 200) / BATCH / 10) * 10)
    return steps, steps * BATCH / count


def _start_line(weights: str | None, detector: str | None = None) -> str:
    if detector is not None:
        return f"starts from the detector {detector}: with few pictures nothing else gains as much"
    if weights is not None:
        return f"starts from {weights}"
    return (
        "starts from random weights, from which few pictures teach little: --weights imagenet downloads trained ones"
        " (14 MB)"
    )


def _training_line(steps: int, epochs: float, count: int) -> str:
    return f"training: {steps} steps of {BATCH} pictures, {epochs:.0f} passes over {count} pictures"


def _quoted(text: object) -> str:
    """A text as a YAML string."""
    return json.dumps(str(text), ensure_ascii=False)


def mask_shares(data: DataFacts) -> NDArray[np.float64]:
    """Each mask class's share of the labelled pixels, in up to 200 masks: float64 (K,)."""
    counts = np.zeros(256)
    names = data.mask_names
    if data.in_files:
        for mask in evenly_spread([picture.mask for picture in data.train.pictures if picture.mask], 200):
            counts += np.bincount(read_mask(mask, len(names)).ravel(), minlength=256)
    else:
        for _, box in data.pairs:
            counts[names.index(box.name)] += box.area
        counts[0] = max(sum(math.prod(picture.size) for picture in data.train.pictures) - counts.sum(), 0)
    labelled = counts[: len(names)]
    shares: NDArray[np.float64] = labelled / max(labelled.sum(), 1.0)
    return shares


def input_size(
    pictures: Sequence[tuple[int, int]], speed: Speed, smallest: float, factor: float = 1.0
) -> tuple[int, int]:
    """(H, W) of the input: the median shape of the pictures, and enough pixels for the smallest class.

    Args:
        pictures: (H, W) of each.
        speed: See `suggest_config`.
        smallest: Side of the smallest class's median object, as a share of its picture's.
        factor: Times which the sides are enlarged, before the smallest class is asked.
    """
    height, width = np.median(np.array(pictures, np.float64), axis=0)
    side = SIDES[speed] * factor
    side = min(max(side, SMALLEST / max(smallest, 1e-6)), side * GROWN)
    aspect = min(max(width / height, 0.5), 2.0)
    sides = [max(2, round(length / MULTIPLE)) * MULTIPLE for length in (side / aspect**0.5, side * aspect**0.5)]
    return sides[0], sides[1]
