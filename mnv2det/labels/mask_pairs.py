"""Pictures and masks as PNGs beside them or in another folder: class ids, colours of a table, or black and white."""

from __future__ import annotations

import csv
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnv2det.data.formats.base import Format
from mnv2det.data.formats.records import Picture, Records
from mnv2det.data.images import DAMAGED, MOST_PIXELS
from mnv2det.errors import DataError
from mnv2det.io import evenly_spread
from mnv2det.labels.base import (
    LabelFormat,
    LabelledPart,
    Part,
    Placer,
    Recognised,
    Remark,
    Tree,
    role_of,
)
from mnv2det.labels.reading import read_list, read_names
from mnv2det.registry import LABELS
from mnv2det.structures import IGNORE

# fmt: off
MASK_WORDS = frozenset((
    "mask", "masks", "label", "labels", "gt", "groundtruth", "annotation", "annotations", "annot", "segmentation",
    "segmentations", "seg", "segmentationclass", "segmentationmasks", "trainannot", "valannot", "testannot",
))
# fmt: on
MASK_ENDS = re.compile(r"(?i)(_masks?|_labels?|_labelids|_seg|_segmentation|_gt|_l|_annotation|\.mask)$")
SAMPLE = 24  # masks that are looked into to see of which kind they are
STRAY = 0.02  # share of a mask's pixels that may be of no class: blurred borders
TABLE_FILES = ("class_dict.csv", "labelmap.txt", "label_colors.txt", "_classes.csv")
NAME_FILES = ("classes.txt", "class_names.txt", "labels.txt", "names.txt")
Colour = tuple[int, int, int]


class MaskPairs(Format):
    """Pictures with a mask each.

    Masks that are not PNGs of class ids are converted into a folder that lives as long as this object.

    Args:
        folder: The data folder.
        pairs: A picture and its mask, or an empty string, by paths below the folder.
        mask_names: Classes in the order of their ids.
        colours: The class id of each colour; None where pixels are class ids themselves.
    """

    def __init__(
        self,
        folder: Path,
        pairs: Sequence[tuple[str, str]],
        mask_names: Sequence[str] | None,
        colours: dict[Colour, int] | None,
    ) -> None:
        self.folder, self.pairs, self.mask_names, self.colours = folder, pairs, mask_names, colours
        self.converted = tempfile.TemporaryDirectory(prefix="mnv2det_masks_") if colours else None

    def read(self) -> Records:
        """See `Format.read`."""
        about = f"masks of {len(self.pairs)} pictures"
        folders = sorted({(self.folder / picture).parent for picture, _ in self.pairs})
        records = Records(self.folder, str(self.folder), about, [], folders)
        if self.mask_names is not None:
            records.classes["mask"] = list(self.mask_names)
        for index, (picture, mask) in enumerate(self.pairs):
            records.pictures.append(Picture(picture, picture, annotation=mask, boxed=False))
            what = "" if mask else "no mask of its name"
            if mask and self.colours:
                try:
                    mask = self._convert(index, self.folder / mask)
                except DataError as error:
                    what = str(error)
            if what:
                records.add_problem("mask_missing", self.folder / picture, what, index=index)
            else:
                records.pictures[index] = records.pictures[index]._replace(mask=mask)
        return records

    def _convert(self, index: int, path: Path) -> str:
        """Writes a mask's class ids as PNG and gives its path."""
        assert self.colours is not None
        assert self.converted is not None
        codes, values = _codes(read_colours(path))
        ids = np.full(len(values), IGNORE, np.uint8)
        known = {(r << 16) | (g << 8) | b: number for (r, g, b), number in self.colours.items()}
        for position, value in enumerate(values.tolist()):
            ids[position] = known.get(value, IGNORE)
        strange = np.array([value not in known for value in values.tolist()])
        share = float(strange[codes].mean()) if strange.any() else 0.0
        if share > STRAY:
            value = int(values[strange][np.bincount(codes[strange[codes]], minlength=len(values))[strange].argmax()])
            colour = (value >> 16, value >> 8 & 255, value & 255)
            raise DataError(f"{path}: {share:.0%} of its pixels are of colours of no class, such as {colour}")
        target = Path(self.converted.name) / f"{index}.png"
        Image.fromarray(ids[codes]).save(target)
        return str(target)


@LABELS.register("masks")
class MaskLabels(LabelFormat):
    """``images/a.jpg`` with ``masks/a.png``, or ``a.jpg`` with ``a_mask.png``."""

    expected = "pictures with masks as PNG (images/a.jpg with masks/a.png, or a.jpg with a_mask.png)"
    boxes, masks = False, True

    def recognise(self, tree: Tree) -> Recognised | str:
        """See `LabelFormat.recognise`."""
        masks = [file for file in tree.pictures if file.lower().endswith(".png") and _is_mask(file)]
        pictures = [file for file in tree.pictures if not _is_mask(file)]
        by_stem: dict[str, list[str]] = {}
        for mask in masks:
            by_stem.setdefault(_stem(mask), []).append(mask)
        groups: dict[str, list[tuple[str, str]]] = {}
        for picture in pictures:
            role = role_of(picture)
            candidates = by_stem.get(_stem(picture), [])
            same = [mask for mask in candidates if role_of(mask) == role] or candidates
            groups.setdefault(role, []).append((picture, same[0] if len(same) == 1 else ""))
        used = [mask for pairs in groups.values() for _, mask in pairs if mask]
        if not used:
            return f"no PNG of a picture's name in a folder of masks, or with _mask behind it ({len(masks)} masks)"
        remarks = [
            Remark("image_unlisted", mask, "a mask without a picture") for mask in sorted(set(masks) - set(used))
        ]
        names, colours, how = mask_classes(tree, [tree.path(mask) for mask in evenly_spread(used, SAMPLE)])
        if colours is None and not any(tree.path(file).name in (*TABLE_FILES, *NAME_FILES) for file in tree.files):
            remarks.append(Remark("class_unused", "", "no list of the masks' classes: called by their ids"))
        parts = [
            Part(role, role, MaskPairs(tree.root, groups[role], names, colours))
            for role in ("train", "val", "test", "all")
            if role in groups
        ]
        return Recognised("masks", f"{len(used)} masks of {how}", parts, remarks)

    def write(self, parts: Sequence[LabelledPart], target: Path, place: Placer) -> list[str]:
        """Writes ``ROLE/images`` and ``ROLE/masks`` with ``classes.txt``."""
        for part in parts:
            for picture in part.pictures:
                place(picture.source, target / part.role / "images" / picture.name)
                if picture.mask is not None:
                    mask = target / part.role / "masks" / f"{os.path.splitext(picture.name)[0]}.png"
                    mask.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(picture.mask, mask)
        names = next((part.mask_names for part in parts if part.mask_names), [])
        (target / "classes.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")
        return []


def mask_classes(tree: Tree, masks: Sequence[Path]) -> tuple[list[str] | None, dict[Colour, int] | None, str]:
    """Names of the classes, the class id of each colour, and a description of the masks.

    Args:
        tree: All files.
        masks: Some masks to look into.

    Raises:
        DataError: Masks are of colours, and no table says which class a colour is.
    """
    table = _table(tree)
    names = [name for name, _ in table] if table else _names(tree)
    grey = True
    values: set[int] = set()
    for mask in masks:
        try:
            colours = read_colours(mask)
        except DataError:
            continue
        grey = grey and bool((colours == colours[..., :1]).all())
        values.update(np.unique(colours[..., 0]).tolist())
    if table and any(colour is not None for _, colour in table):
        colours_of = {colour: number for number, (_, colour) in enumerate(table) if colour is not None}
        if not grey or all(len(set(colour)) == 1 for colour in colours_of):
            return names, colours_of, f"{len(table)} colours"
    if not grey:
        raise DataError(f"{tree.root}: masks of colours, but no table of them; expected {' or '.join(TABLE_FILES[:2])}")
    if values <= {0, 255} and 255 in values:
        return names or ["background", "object"], {(0, 0, 0): 0, (255, 255, 255): 1}, "0 and 255: background and object"
    return names, None, "class ids"


def read_colours(path: Path) -> NDArray[np.uint8]:
    """A mask as uint8 (H, W, 3): colours, or three times the class id of palette and grey PNGs.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise DataError(f"{path}: claims {picture.width}x{picture.height} pixels")
            if picture.mode in ("L", "P", "1"):
                ids = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
                return np.repeat(ids[..., None], 3, axis=2).astype(np.uint8)
            return np.asarray(picture.convert("RGB"))
    except DAMAGED as error:
        raise DataError(f"{path}: cannot read the mask ({' '.join(str(error).split())[:120]})") from None


def _codes(colours: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64 (H, W) positions in the second array, which holds each colour that occurs as one number."""
    packed = colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    values, inverse = np.unique(packed, return_inverse=True)
    return inverse.reshape(packed.shape), values


def _is_mask(file: str) -> bool:
    *folders, name = file.lower().split("/")
    if MASK_ENDS.search(os.path.splitext(name)[0]):
        return True
    return any(word in MASK_WORDS for folder in folders[-2:] for word in re.findall("[a-z]+", folder))


def _stem(file: str) -> str:
    stem = os.path.splitext(os.path.basename(file))[0]
    return (MASK_ENDS.sub("", stem) if _is_mask(file) else stem).lower()


def _table(tree: Tree) -> list[tuple[str, Colour | None]]:
    """Class names with their colours, in the order of a table of the folder; empty where there is none."""
    file = next((file for file in tree.files if os.path.basename(file) in TABLE_FILES), None)
    if file is None:
        return []
    rows = []
    for line in read_list(tree.path(file)):
        row = _row(os.path.basename(file), line)
        if row is not None:
            rows.append(row)
    return rows


def _row(file: str, line: str) -> tuple[str, Colour | None] | None:
    if not line.strip() or line.startswith("#"):
        return None
    if file == "labelmap.txt":  # CVAT: name:r,g,b:parts:actions
        name, numbers = line.split(":")[0], re.findall(r"\d+", ":".join(line.split(":")[1:2]))
    elif file == "label_colors.txt":  # CamVid: r g b <tab> name
        found = re.match(r"\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)", line)
        name, numbers = (found[4].strip(), list(found.groups()[:3])) if found else ("", [])
    elif file == "_classes.csv":  # Roboflow: pixel value, class
        number, _, name = line.partition(",")
        numbers = [number.strip()] * 3 if number.strip().isdigit() else []
        name = name.strip()
    else:  # name,r,g,b
        cells = next(csv.reader([line]), [])
        name, numbers = (cells[0].strip(), [cell.strip() for cell in cells[1:4]]) if cells else ("", [])
    if not name or len(numbers) != 3 or not all(n.isdigit() and int(n) < 256 for n in numbers):
        return None  # a heading, for example
    r, g, b = (int(number) for number in numbers)
    return name, (r, g, b)


def _names(tree: Tree) -> list[str] | None:
    file = next((file for file in tree.files if os.path.basename(file).lower() in NAME_FILES), None)
    return read_names(tree.path(file)) if file else None
