"""Class lists: unknown, unused, rare, and names that may mean the same."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mnv2det.check.findings import Finding
from mnv2det.check.split import Split
from mnv2det.data.formats.problems import quoted

FEW = 10  # boxes of a class that can hardly be learned from
UNEVEN = 100.0  # times as many boxes as of another class

Counts = Mapping[str, int]


def box_counts(split: Split, good: NDArray[np.bool_]) -> dict[str, int]:
    """Boxes to learn from by class, in the order of the class list."""
    boxes, names = split.records.boxes, split.records.classes.get("labels", [])
    labels = boxes.labels_in(names)[good & ~boxes.ignore]
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))


def check_classes(splits: Sequence[Split], counts: Sequence[Counts], *, unit: str = "boxes") -> list[Finding]:
    """What the numbers of boxes, or of pixels, by class say.

    Args:
        splits: Those with such annotations.
        counts: Of each, by name.
        unit: What is counted; rare classes are looked for among boxes alone.
    """
    total: Counter[str] = Counter()
    for numbers in counts:
        total.update(numbers)
    trained = [number for number, split in enumerate(splits) if split.role == "train"]
    first = trained[0] if trained else 0

    def finding(kind: str, split: Split, value: str) -> Finding:
        return Finding(kind, split.name, split.listing, value)

    findings = [
        finding("class_unused", splits[first], f"{quoted(name)}: no {unit}") for name in total if not total[name]
    ]
    for split, numbers in zip(splits, counts, strict=True):
        # a part without any is one finding of its own
        for name in total if trained and split.role == "val" and any(numbers.values()) else ():
            here, in_train = numbers.get(name, 0), counts[first].get(name, 0)
            if here and not in_train:
                findings.append(finding("class_untrained", split, f"{quoted(name)}: {here} {unit}, none in train"))
            if in_train and not here:
                findings.append(finding("class_unmeasured", split, f"{quoted(name)}: {in_train} {unit} in train"))
    if unit == "boxes":
        findings += [finding(kind, splits[first], value) for kind, value in _frequencies(counts[first])]
    for group in _alike(total):
        names = ", ".join(f"{quoted(name)} ({total[name]} {unit})" for name in group)
        findings.append(finding("class_similar", splits[first], names))
    return findings


def _frequencies(counts: Counts) -> list[tuple[str, str]]:
    some = sorted((number, name) for name, number in counts.items() if number)
    findings = [("class_rare", f"{quoted(name)}: {number} boxes") for number, name in some if number < FEW]
    if some and some[-1][0] > UNEVEN * some[0][0]:
        (least, rare), (most, frequent) = some[0], some[-1]
        findings.append(("class_imbalance", f"{most} boxes of {quoted(frequent)}, {least} of {quoted(rare)}"))
    return findings


def _alike(names: Mapping[str, int]) -> list[list[str]]:
    """Names that differ by case, spaces, hyphens or a plural s alone."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(r"[\s_-]", "", name.casefold()).rstrip("s")].append(name)
    return [group for group in groups.values() if len(group) > 1]
