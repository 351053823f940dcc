"""Writing a cleaned copy: the same files without what can be put right by rule."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnv2det.check.findings import KINDS, Finding
from mnv2det.check.split import Split
from mnv2det.data.formats.cleaning import Cleaning
from mnv2det.errors import ConfigError

# kinds that leave a picture out, and those that leave an annotation out
PICTURE_KINDS = frozenset({"path_outside", "image_missing", "image_broken", "image_leak", "annotation_missing"})
ANNOTATION_KINDS = frozenset(
    {"box_malformed", "box_no_area", "box_outside", "box_duplicate", "annotation_orphan", "annotation_broken"}
)


def plan_cleaning(split: Split, findings: Sequence[Finding], sizes: NDArray[np.int64]) -> Cleaning:
    """What is done to one part.

    Args:
        split: The part.
        findings: Of all parts.
        sizes: int64 (P, 2), (H, W) of each picture.
    """
    cleaning = Cleaning(mask_classes=len(split.mask_names or ()))
    for finding in findings:
        if finding.split != split.name:
            continue
        kind, index, key = finding.kind, finding.index, (finding.index, finding.position)
        # an xml that cannot be read costs its picture, an entry of a json only itself
        whole_file = kind == "annotation_broken" and finding.position < 0
        if index >= 0 and (kind in PICTURE_KINDS or whole_file):
            cleaning.pictures.add(index)
        if kind in ANNOTATION_KINDS and finding.position >= 0:
            cleaning.annotations.add(key)
        if kind == "image_size":
            cleaning.sizes[index] = (int(sizes[index][0]), int(sizes[index][1]))
        if kind == "mask_foreign":
            cleaning.masks.add(index)
    boxes = split.records.boxes
    rows = {key: row for row, key in enumerate(zip(boxes.image.tolist(), boxes.position.tolist(), strict=True))}
    for finding in findings:
        if finding.split == split.name and finding.kind == "box_beyond":
            key = (finding.index, finding.position)
            limit = np.tile(sizes[finding.index][::-1], 2)
            cleaning.corners[key] = np.clip(boxes.corners[rows[key]], 0, limit).tolist()
    return cleaning


def check_target(target: Path, root: Path, splits: Sequence[Split]) -> None:
    """Refuses to write where something is, or into what is read.

    Raises:
        ConfigError: The folder is not empty, or it and the data lie in one another.
    """
    if not any(split.format for split in splits):
        raise ConfigError(f"--fix {target}: there are no files to copy ({splits[0].records.about})")
    for file, times in Counter(file for split in splits for file in split.records.files).items():
        # synsets and other lists of classes may be shared
        if times > 1 and any(file in split.records.files and split.boxed for split in splits):
            raise ConfigError(f"--fix {target}: two parts are read from {file}; give each its own file")
    real = target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--fix {target}: exists and is not empty")
    folders = {
        split.records.path(picture.file).parent
        for split in splits
        for picture in split.records.pictures
        if picture.file
    }
    for source in sorted({root.resolve(), *(folder.resolve() for folder in folders)}):
        if real == source or source in real.parents or real in source.parents:
            raise ConfigError(f"--fix {target}: lies in the data it would copy, or the other way round ({source})")


def write_fixed(
    splits: Sequence[Split], findings: Sequence[Finding], sizes: Sequence[NDArray[np.int64]], target: Path
) -> list[tuple[Finding, str]]:
    """Writes a cleaned copy of what was checked.

    It is written beside ``target`` and renamed at the end. Files are copied, never linked.

    Args:
        splits: What was read; those without files are not copied.
        findings: Of all of them.
        sizes: From `mnv2det.check.pictures.check_pictures`.
        target: A new or empty folder.

    Returns:
        Each error and warning, and what was done; empty where it takes a person.

    Raises:
        ConfigError: As `check_target`, or a format writes no copies.
        OSError: Something cannot be written.
    """
    root = splits[0].root
    check_target(target, root, splits)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name}.{os.getpid()}.part"
    draft.mkdir()
    plans = {split.name: plan_cleaning(split, findings, size) for split, size in zip(splits, sizes, strict=True)}
    try:
        for split in splits:
            if split.format is not None:
                split.format.write_clean(split.records, plans[split.name], root, draft)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return [(finding, _action(finding, plans)) for finding in findings if finding.severity != "note"]


def _action(finding: Finding, plans: dict[str, Cleaning]) -> str:
    """What is done about a finding; empty where that takes a person."""
    if finding.split not in plans:
        return ""
    if finding.index in plans[finding.split].pictures and finding.kind != "image_leak":
        return KINDS["image_broken"].fix
    return KINDS[finding.kind].fix
