"""Class lists: unknown, unused, rare, and names that may mean the same."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mnv2det.check.findings import Finding
from mnv2det.check.split import CocoPart, Split, VocPart, quoted, relative
from mnv2det.errors import near

FEW = 10  # boxes of a class that can hardly be learned from
UNEVEN = 100.0  # times as many boxes as of another class

Counts = Mapping[str, int]


def box_counts(split: Split, good: NDArray[np.bool_]) -> dict[str, int]:
    """Boxes to learn from by class, in the order of the class list."""
    boxes = split.boxes
    counts = np.bincount(boxes.label[good & ~boxes.ignore], minlength=len(boxes.names))
    found = dict(zip(boxes.names, counts.tolist(), strict=True))
    listed = split.names if split.names is not None else sorted(found)
    return {name: found.get(name, 0) for name in listed}


def check_names(split: Split) -> tuple[list[Finding], NDArray[np.bool_]]:
    """Boxes of classes that the given list lacks; these are none to learn from.

    Returns:
        Findings, and bool (N,): whose class is known.
    """
    boxes = split.boxes
    if split.names is None:
        return [], np.ones(len(boxes), np.bool_)
    listed = set(split.names)
    known = np.array([name in listed for name in boxes.names], np.bool_)
    known = known[boxes.label] if len(boxes) else np.zeros(0, np.bool_)
    # a COCO category that is not expected was named when the json was read
    rows: list[int] = [] if isinstance(split.part, CocoPart) else np.flatnonzero(~known).tolist()
    hints = {name: near(name, split.names).removeprefix("; ") for name in boxes.names if name not in listed}
    findings = []
    for row in rows:
        name = boxes.names[boxes.label[row]]
        findings.append(split.of_box("class_unknown", row, quoted(name), hints[name][:200]))
    return findings, known


def check_classes(splits: Sequence[Split], counts: Sequence[Counts], *, unit: str = "boxes") -> list[Finding]:
    """What the numbers of boxes, or of pixels, by class say.

    Args:
        splits: Those with such annotations.
        counts: Of each, by name.
        unit: What is counted; rare classes are looked for among boxes alone.
    """
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    trained = [place for place, split in enumerate(splits) if split.role == "train"]
    first = trained[0] if trained else 0
    found = [("class_unused", first, f"{quoted(name)}: no {unit}") for name in total if not total[name]]
    for place, split in enumerate(splits):
        for name in total if trained and split.role == "val" else ():
            here, there = counts[place].get(name, 0), counts[first].get(name, 0)
            if here and not there:
                found.append(("class_untrained", place, f"{quoted(name)}: {here} {unit}, none in train"))
            if there and not here:
                found.append(("class_unmeasured", place, f"{quoted(name)}: {there} {unit} in train"))
    if unit == "boxes":
        found += [(kind, first, value) for kind, value in _frequencies(counts[first])]
    for group in _alike(total):
        found.append(("class_similar", first, ", ".join(f"{quoted(name)} ({total[name]} {unit})" for name in group)))
    return [Finding(kind, splits[place].name, place_of(splits[place]), value) for kind, place, value in found]


def _frequencies(counts: Counts) -> list[tuple[str, str]]:
    some = sorted((number, name) for name, number in counts.items() if number)
    found = [("class_rare", f"{quoted(name)}: {number} boxes") for number, name in some if number < FEW]
    if some and some[-1][0] > UNEVEN * some[0][0]:
        (least, rare), (most, frequent) = some[0], some[-1]
        found.append(("class_imbalance", f"{most} boxes of {quoted(frequent)}, {least} of {quoted(rare)}"))
    return found


def _alike(names: Mapping[str, int]) -> list[list[str]]:
    """Names that differ by case, spaces, hyphens or a plural s alone."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(r"[\s_-]", "", name.casefold()).rstrip("s")].append(name)
    return [group for group in groups.values() if len(group) > 1]


def place_of(split: Split) -> str:
    """The file that names a part's images."""
    if isinstance(split.part, CocoPart):
        return relative(split.part.json, split.root)
    if isinstance(split.part, VocPart):
        return relative(split.part.lists[0].file or split.part.lists[0].home, split.root)
    return ""
