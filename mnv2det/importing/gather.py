"""What is kept of the labels that a format reads, and what is left out, with reasons."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnv2det.check.findings import KINDS, Finding
from mnv2det.check.run import Part, judge
from mnv2det.check.split import Split
from mnv2det.data.formats.records import Records
from mnv2det.errors import DataError
from mnv2det.labels.base import LabelledBox, LabelledPicture, Recognised

Kept = tuple[int, int, LabelledPicture]  # number of the part, of the picture in it, and what is kept of it


def read_labels(source: Path, recognised: Recognised, workers: int) -> tuple[list[Part], list[Finding]]:
    """Reads all pictures and labels of a folder, and judges them as `mnv2det.check.run.check_data` does.

    Raises:
        DataError: A class list is wrong.
    """
    splits = [Split(part.name, part.role, source, part.format.read(), part.format) for part in recognised.parts]
    parts, findings = judge(splits, workers)
    fatal = next((finding for finding in findings if finding.kind == "class_broken"), None)
    if fatal is not None:
        raise DataError(f"{source}: {fatal.file}: {fatal.value}; {KINDS['class_broken'].advice}")
    return parts, findings


def mask_classes(parts: Sequence[Part]) -> list[str]:
    """Classes of the masks; empty where no picture has a mask of its own."""
    masked = [part for part in parts if any(picture.mask for picture in part.split.records.pictures)]
    if not masked:
        return []
    names = list(masked[0].split.mask_names or ())
    if masked[0].split.mask_guessed:
        # as many as the largest id that occurs needs
        used = {name for part in masked for name, pixels in part.pixels.items() if pixels}
        count = 1 + max((number for number, name in enumerate(names) if name in used), default=0)
        names = ["background", *(f"class {number}" for number in range(1, count))]
    return names


def label_pictures(parts: Sequence[Part], findings: Sequence[Finding]) -> dict[str, list[Kept]]:
    """What is kept of every part, by its role."""
    labelled: dict[str, list[Kept]] = {}
    above = _common_folder(parts)
    for number, part in enumerate(parts):
        records, boxes = part.split.records, part.split.records.boxes
        errors = [f for f in findings if f.split == part.split.name and f.severity == "error" and f.index >= 0]
        # where an annotation states no size, the picture's own counts
        dropped = {
            f.index
            for f in errors
            if f.position < 0 and not (f.kind == "image_size" and records.pictures[f.index].size is None)
        }
        # a box may be good although its outline is not
        wrong = {(f.index, f.position) for f in errors if f.position >= 0 and f.kind != "segmentation_broken"}
        limits = np.tile(part.sizes[boxes.image][:, ::-1], 2)
        corners = np.clip(boxes.corners, 0, limits)
        areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
        of_picture: dict[int, list[LabelledBox]] = {}
        for row in np.flatnonzero(part.good).tolist():
            index = int(boxes.image[row])
            if (index, int(boxes.position[row])) not in wrong:
                x1, y1, x2, y2 = corners[row].tolist()
                area = float(areas[row] if np.isnan(boxes.area[row]) else boxes.area[row])
                name = boxes.names[boxes.label[row]]
                of_picture.setdefault(index, []).append(
                    LabelledBox(name, (x1, y1, x2, y2), bool(boxes.ignore[row]), area, boxes.runs[row])
                )
        labels = records.classes.get("label", [])
        for index, picture in enumerate(records.pictures):
            if index in dropped or not picture.file:
                continue
            path = records.path(picture.file)
            height, width = (int(side) for side in part.sizes[index])
            kept = LabelledPicture(
                path,
                path.relative_to(above).as_posix(),
                (height, width),
                of_picture.get(index, []),
                records.path(picture.mask) if picture.mask else None,
                labels[picture.label] if picture.label >= 0 else "",
            )
            labelled.setdefault(part.split.role, []).append((number, index, kept))
    return labelled


def _common_folder(parts: Sequence[Part]) -> str:
    """The deepest folder that holds all pictures, so that their names in the copy are short."""
    folders = {
        os.path.dirname(part.split.records.path(picture.file))
        for part in parts
        for picture in part.split.records.pictures
        if picture.file
    }
    return os.path.commonpath(folders) if folders else ""


def list_left_out(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Everything that an error names, and pictures that no label names."""
    return [
        {
            "kind": f.kind,
            "split": f.split,
            "file": f.file,
            "image": f.image,
            "annotation": f.annotation,
            "reason": f.value + (f"; expected {f.expected}" if f.expected else ""),
        }
        for f in findings
        if f.severity == "error" or f.kind == "image_unlisted"
    ]


def box_classes(parts: Sequence[Part], labelled: Mapping[str, Sequence[Kept]]) -> tuple[list[str], list[str]]:
    """The box classes that some picture has, in the order of the source's lists, and remarks on the others."""
    listed = dict.fromkeys(name for part in parts for name in part.split.records.classes.get("labels", []))
    used = {box.name for pictures in labelled.values() for *_, picture in pictures for box in picture.boxes}
    unused = [name for name in listed if name not in used]
    remarks = []
    if unused and used:
        names = ", ".join(f"'{name}'" for name in unused[:8]) + (" ..." if len(unused) > 8 else "")
        remarks.append(f"{len(unused)} classes without a box go: {names}")
    return [name for name in listed if name in used], remarks


def count_boxes(records: Records) -> int:
    """The number of boxes in the files, those that could not be read among them."""
    boxes = records.boxes
    read = set(zip(boxes.image.tolist(), boxes.position.tolist(), strict=True))
    unread = {(p.index, p.position) for p in records.problems if p.position >= 0} - read
    return len(read) + len(unread)
