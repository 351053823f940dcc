"""Whether a data set's annotations hold anything to learn from, and anything to measure; said before training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnv2det.data.dataset import Dataset
from mnv2det.errors import DataError
from mnv2det.io import evenly_spread
from mnv2det.structures import IGNORE

MOST_NAMED = 8  # classes in a message
SAMPLE = 200  # images whose masks are read before training
LARGE = 0.001  # share of the pixels from which on ignored ones are more than a border

Unit = Literal["boxes", "mask pixels"]


class Gap(NamedTuple):
    """What a part of a data set lacks: a kind of `mnv2det.check.findings`, and the same in words."""

    kind: str
    what: str


def coverage_gap(role: str, unit: Unit, names: Sequence[str], counts: Sequence[int], ignored: int) -> Gap | None:
    """What makes a part useless as a whole.

    Args:
        role: ``val`` and ``test`` are measured, from any other part is learned.
        unit: What was counted.
        names: Class names.
        counts: Boxes or pixels of each class, without ignored ones.
        ignored: Ignored boxes or pixels.
    """
    measured = role in ("val", "test")
    binary = unit == "mask pixels" and len(names) == 2 and not counts[1]
    if binary and not measured and ignored > LARGE * (counts[0] + ignored):
        share = ignored / (counts[0] + ignored)
        what = f"no pixel has id 1 ('{names[1]}'), but {share:.0%} have 255 = ignore"
        return Gap("mask_binary", f"{what}; write 1 for '{names[1]}' where masks of 0 and 255 mean two classes")
    if any(counts):
        return None
    more = f" ({ignored} are ignored)" if ignored else ""
    return Gap("part_unannotated", f"no {unit} to {'measure' if measured else 'learn from'}{more}")


def check_coverage(train: Dataset, val: Dataset, keys: Collection[str]) -> list[str]:
    """Looks for what makes training worthless, in the boxes and in a sample of the masks.

    Args:
        train: What is learned from.
        val: What is measured.
        keys: Target keys that heads learn: ``labels`` (of boxes), ``mask``.

    Returns:
        A line for each warning.

    Raises:
        DataError: Two classes of masks are written as 0 and 255.
    """
    notes = []
    for role, dataset in (("train", train), ("val", val)):
        gaps: list[Gap | None] = []
        if "labels" in keys:
            boxes, ignored = _boxes(dataset)
            gaps.append(coverage_gap(role, "boxes", [], [boxes], ignored))
        if "mask" in keys:
            names = dataset.classes["mask"]
            pixels, masks = _pixels(role, dataset)
            gaps.append(coverage_gap(role, "mask pixels", names, _of_classes(pixels, names), int(pixels[IGNORE])))
            lacking = [f"'{name}'" for name, count in zip(names, pixels, strict=False) if not count]
            if role == "train" and lacking and gaps[-1] is None:
                more = f" and {len(lacking) - MOST_NAMED} others" if len(lacking) > MOST_NAMED else ""
                notes.append(f"data.train: no pixel of {', '.join(lacking[:MOST_NAMED])}{more} in {masks} masks")
        for gap in gaps:
            if gap and gap.kind == "mask_binary":
                raise DataError(f"data.{role}: {gap.what}")
            notes += [f"data.{role}: {gap.what}"] if gap else []
    return notes


def _boxes(dataset: Dataset) -> tuple[int, int]:
    """Number of boxes to learn from or to measure, up to the first image that has some, and of ignored ones."""
    boxes = ignored = 0
    for index in range(len(dataset)):
        ignore = dataset.target(index).get("ignore", np.zeros(0, np.bool_))
        boxes, ignored = boxes + int((~ignore).sum()), ignored + int(ignore.sum())
        if boxes:
            break
    return boxes, ignored


def _pixels(role: str, dataset: Dataset) -> tuple[NDArray[np.int64], int]:
    """Mask pixels of each id, int64 (256,), and the number of masks.

    A sample is looked at, and the other masks only as long as the sample would be refused.
    """
    names = dataset.classes["mask"]
    chosen = evenly_spread(range(len(dataset)), SAMPLE)
    others = sorted(set(range(len(dataset))) - set(chosen))
    pixels, masks = np.zeros(256, np.int64), 0
    for position, index in enumerate([*chosen, *others]):
        if position >= len(chosen):
            gap = coverage_gap(role, "mask pixels", names, _of_classes(pixels, names), int(pixels[IGNORE]))
            if not gap or gap.kind != "mask_binary":
                break
        try:
            mask = dataset.read(index).target.get("mask")
        except DataError:
            continue  # training names it
        if mask is not None:
            pixels += np.bincount(mask.ravel(), minlength=256)
            masks += 1
    return pixels, masks


def _of_classes(pixels: NDArray[np.int64], names: Sequence[str]) -> list[int]:
    return pixels[: len(names)].tolist()
