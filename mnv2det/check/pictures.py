"""Pictures and masks: what could not be read, sizes, ids, and the same picture twice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mnv2det.check.files import PictureFacts
from mnv2det.check.findings import Finding
from mnv2det.check.split import Split, mask_counts
from mnv2det.data.duplicates import NEAR, Fingerprints, matches
from mnv2det.data.formats.records import Picture
from mnv2det.structures import IGNORE, VOC_MASK_CLASSES

SAME_SHAPE = 0.01  # relative difference of two aspect ratios


def check_pictures(split: Split, facts: Sequence[PictureFacts]) -> tuple[list[Finding], NDArray[np.int64]]:
    """What is wrong with pictures.

    Returns:
        Findings, and int64 (P, 2): the (H, W) that boxes are judged by, 0 where it is not known. That
        is the picture's own where another is stated, so that one wrong size is one finding.
    """
    findings = []
    sizes = np.zeros((len(facts), 2), np.int64)
    for index, (picture, fact) in enumerate(zip(split.records.pictures, facts, strict=True)):
        stated = picture.size
        if fact.problem is not None:
            findings.append(split.of_picture(fact.problem[0], index, fact.problem[1]))
            sizes[index] = stated or fact.stored or (0, 0)
            continue
        if fact.complaint:
            findings.append(split.of_picture("image_damaged", index, fact.complaint))
        # some annotations were drawn on the stored pixels, not on the upright picture; loaders know
        fits = stated is None or fact.size is None or stated in (fact.size, fact.stored)
        sizes[index] = (stated if fits else None) or fact.size or (0, 0)
        if not fits and stated is not None and fact.size is not None:
            findings.append(_other_size(split, index, stated, fact.size))
    return findings, sizes


def _other_size(split: Split, index: int, stated: tuple[int, int], real: tuple[int, int]) -> Finding:
    hint = ""
    if stated == real[::-1]:
        hint = "; sides swapped?"
    elif abs(stated[0] * real[1] / (stated[1] * real[0]) - 1) < SAME_SHAPE:
        hint = "; resized after it was annotated? Then its boxes must be, too"
    expected = f"{real[1]}x{real[0]}, as the picture is{hint}"
    return split.of_picture("image_size", index, f"stated {stated[1]}x{stated[0]}", expected)


def mask_classes(splits: Sequence[Split], facts: Sequence[Sequence[PictureFacts]]) -> int:
    """Number of mask classes where no list says it: VOC's 21, or up to the first id that no mask has."""
    ids = mask_counts([fact.mask.counts for part in facts for fact in part if fact.mask])
    count = len(VOC_MASK_CLASSES)
    while count in ids and count < IGNORE:
        count += 1
    return count


def check_masks(split: Split, facts: Sequence[PictureFacts], sizes: NDArray[np.int64], classes: int) -> list[Finding]:
    """What is wrong with masks.

    Args:
        split: What was read.
        facts: What its files hold.
        sizes: From `check_pictures`.
        classes: Number of mask classes; ids are below it, or 255.
    """
    findings = []
    for index, (picture, fact) in enumerate(zip(split.records.pictures, facts, strict=True)):
        if fact.mask is None:
            continue
        if fact.mask.problem:
            findings.append(split.of_picture("mask_broken", index, fact.mask.problem))
            continue
        wrong = {key: pixels for key, pixels in fact.mask.counts.items() if key != IGNORE and not 0 <= key < classes}
        if wrong:
            value = ", ".join(f"id {key} in {pixels} pixels" for key, pixels in list(wrong.items())[:4])
            more = f" and {len(wrong) - 4} other ids" if len(wrong) > 4 else ""
            findings.append(
                split.of_picture("mask_foreign", index, value + more, f"0 ... {classes - 1}, or 255 = ignore")
            )
        if not _size_fits(picture, fact, sizes[index], fact.mask.size):
            height, width = sizes[index]
            value = f"mask of {fact.mask.size[1]}x{fact.mask.size[0]}"
            findings.append(split.of_picture("mask_size", index, value, f"{width}x{height}, as its image"))
    return findings


def _size_fits(picture: Picture, fact: PictureFacts, size: NDArray[np.int64], mask: tuple[int, int]) -> bool:
    if fact.problem is not None or not size.all():
        return True
    return mask == tuple(size) or (picture.size is None and mask == fact.stored)


def check_duplicates(splits: Sequence[Split], facts: Sequence[Sequence[PictureFacts]]) -> list[Finding]:
    """The same picture twice: within a part, and in two parts of different roles.

    A leak is reported at the part that can best do without: train before val before test. It is the one error
    that training does not refuse, since it cannot see it, and an error because metrics come out wrong.
    """
    fingerprints = [Fingerprints([fact.fingerprint for fact in part]) for part in facts]
    findings = []
    for split, own in zip(splits, fingerprints, strict=True):
        for index, other in _pairs(matches(own)):
            findings.append(split.of_picture("image_duplicate", index, f"is {split.picture_name(other)}"))
    rank = {"train": 0, "val": 1, "test": 2}
    ordered = sorted(
        (number for number, split in enumerate(splits) if split.role in rank),
        key=lambda number: rank[splits[number].role],
    )
    for a, b in itertools.combinations(ordered, 2):
        if splits[a].role == splits[b].role:
            continue
        same = matches(fingerprints[a], fingerprints[b])
        near = np.where(same < 0, matches(fingerprints[a], fingerprints[b], NEAR), -1)
        for kind, other_of, verb in (("image_leak", same, "is"), ("image_near_leak", near, "is nearly")):
            for index, other in _pairs(other_of):
                value = f"{verb} {splits[b].name}: {splits[b].picture_name(other)}"
                findings.append(splits[a].of_picture(kind, index, value))
    return findings


def _pairs(other: NDArray[np.int64]) -> list[tuple[int, int]]:
    return [(int(index), int(other[index])) for index in np.flatnonzero(other >= 0)]
