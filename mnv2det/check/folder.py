"""A plain folder of data: what it holds, and the pictures in it that no label names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mnv2det.check.findings import Finding
from mnv2det.check.split import Split, leaves, relative
from mnv2det.data.formats.coco import CocoJson
from mnv2det.data.formats.voc import VocLists
from mnv2det.data.images import image_names
from mnv2det.labels.base import Part
from mnv2det.labels.mask_pairs import MaskPairs
from mnv2det.labels.recognise import recognise as recognise_labels


def recognise(folder: Path, mask_classes: int | None = None) -> tuple[list[Part], list[Finding]]:
    """The splits of a data set that a folder holds, in any label format.

    Args:
        folder: With pictures and labels.
        mask_classes: Number of classes of the masks, where it is known.

    Returns:
        The splits, and findings on what was left aside.

    Raises:
        DataError: It holds no labels, or labels in two formats.
    """
    recognised = recognise_labels(folder)
    for part in recognised.parts:
        if mask_classes is not None and isinstance(part.format, VocLists | MaskPairs):
            part.format.mask_names = [f"id {number}" for number in range(mask_classes)]
        if isinstance(part.format, CocoJson):
            part.format.masks = None  # whether outlines are wanted is for a config to say
    findings = [Finding(r.kind, "all", r.file, r.what, r.expected) for r in recognised.remarks]
    return recognised.parts, findings


def unlisted(splits: Sequence[Split]) -> list[Finding]:
    """Pictures beside those of a data set that no entry names."""
    folders: dict[Path, tuple[Split, set[Path]]] = {}
    for split in splits:
        records = split.records
        listed = {
            records.path(file)
            for picture in records.pictures
            for file in (picture.file, picture.mask, picture.annotation)
            if file
        }
        for folder in records.picture_folders:
            folders.setdefault(folder, (split, set()))[1].update(listed)
    findings = []
    for folder, (split, listed) in folders.items():
        # images below a folder of another part belong to that
        inner = [other for other in folders if other != folder and folder in other.parents]
        for path in (folder / name for name in image_names(folder)):
            if path in listed or any(other in path.parents for other in inner):
                continue
            if "SegmentationClass" not in path.parts and path.is_file():
                findings.append(Finding("image_unlisted", split.name, relative(path, split.root), "no entry"))
    return findings


def outside_links(split: Split) -> list[Finding]:
    """Files that are links out of the folder of images."""
    records, folder = split.records, os.path.realpath(split.records.folder)
    findings = []
    for index, picture in enumerate(records.pictures):
        files = [records.path(file) for file in (picture.file, picture.annotation, picture.mask) if file]
        findings += [
            split.of_picture("link_outside", index, relative(file, split.root))
            for file in files
            if leaves(file, folder)
        ]
    return findings
