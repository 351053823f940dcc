"""What a cleaned copy of a data set changes, and the steps that formats share in writing one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from mnv2det.data.formats.records import Records
from mnv2det.data.masks import foreign, read_ids
from mnv2det.io import is_watched
from mnv2det.structures import IGNORE

AnnotationKey = tuple[int, int]  # index of the picture (-1: of none that is known), position in the file


@dataclass
class Cleaning:
    """What is done to one part of a data set.

    Attributes:
        pictures: Indices of pictures left out.
        annotations: Annotations left out.
        corners: New corners, xyxy in pixels, of boxes that are clipped.
        sizes: (H, W) of pictures whose stated size is corrected.
        masks: Pictures whose mask gets 255 for ids of no class.
        mask_classes: Number of mask classes.
    """

    pictures: set[int] = field(default_factory=set)
    annotations: set[AnnotationKey] = field(default_factory=set)
    corners: dict[AnnotationKey, list[float]] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    masks: set[int] = field(default_factory=set)
    mask_classes: int = 0


def copy_place(path: Path, root: Path, target: Path) -> Path:
    """Where the copy of a file belongs; makes its folder."""
    place = target / path.relative_to(root)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def copy_file(path: Path, root: Path, target: Path) -> None:
    """Copies a file, and what a link leads to, unless the copy is there already."""
    place = copy_place(path, root, target)
    if not place.exists():
        shutil.copyfile(path, place)


def copy_pictures(records: Records, cleaning: Cleaning, root: Path, target: Path) -> Iterable[int]:
    """Copies pictures and their masks, cleaned, and yields the index of each that is kept."""
    kept = [index for index in range(len(records.pictures)) if index not in cleaning.pictures]
    for index in tqdm(kept, desc=f"copying {records.where}", unit="image", leave=False, disable=not is_watched()):
        picture = records.pictures[index]
        copy_file(records.path(picture.file), root, target)
        if picture.mask:
            mask = records.path(picture.mask)
            if index not in cleaning.masks:
                copy_file(mask, root, target)
            elif not copy_place(mask, root, target).exists():
                _copy_mask(mask, copy_place(mask, root, target), cleaning.mask_classes)
        yield index


def _copy_mask(source: Path, place: Path, classes: int) -> None:
    """Copies a mask with 255 where its id is no class's, palette and all."""
    ids = read_ids(source, classes)
    clean = np.where(foreign(ids, classes), IGNORE, ids).astype(np.uint8)
    picture = Image.fromarray(clean)
    with Image.open(source) as old:
        palette = old.getpalette() if old.mode == "P" else None
    if palette:
        picture = picture.convert("L")
        picture.putpalette(palette)
    picture.save(place, "PNG")
