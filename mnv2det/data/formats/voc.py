"""PASCAL VOC: an xml of boxes in 1-based inclusive pixels, a PNG of class ids, or both per image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring
from numpy.typing import NDArray
from tqdm import tqdm

from mnv2det.config import BadData
from mnv2det.data.classes import class_list
from mnv2det.data.dataset import Arrays, BoxTable, Dataset
from mnv2det.data.images import inside, read_image, read_sized
from mnv2det.data.masks import mask_list, read_mask
from mnv2det.errors import ConfigError, DataError, near
from mnv2det.registry import DATASETS
from mnv2det.structures import VOC_MASK_CLASSES, Sample

Row = tuple[list[float], str, bool]
Need = Literal["required", "optional"]
UNKNOWN = (0, 0)


@DATASETS.register("voc")
class VOC(Dataset):
    """Any folder laid out as VOCdevkit: ``JPEGImages``, ``ImageSets``, and ``Annotations`` or masks.

    Args:
        root: Data folder that no path leaves.
        bad_data: ``stop`` raises on a broken annotation, ``skip`` leaves that box (or, where the
            xml cannot be read or the mask is missing, that image) out and lists it in ``problems``.
        sets: ``YEAR_OR_NAME/LIST`` below ``folder``, such as ``VOC2007/trainval``; several are joined.
        folder: The devkit, below ``root``.
        names: Class list to hold boxes to; null collects the names found, sorted.
        suffix: Of the image files.
        boxes: ``required`` reads an xml for every image, ``optional`` where there is one (the
            others are not annotated with boxes), null none.
        masks: ``required`` reads a mask for every image, ``optional`` where there is one, null none.
        mask_folder: Where the masks are: PNGs of class ids, named as the images.
        lists: Folder of the lists below ``ImageSets``; null is ``Main`` where boxes are required,
            else ``Segmentation``.
        mask_names: Classes of the masks in the order of their ids; null is VOC's 21.

    Raises:
        ConfigError: Neither boxes nor masks are wanted.
        DataError: A list, xml, tag or box is missing or wrong, or a mask is missing.
    """

    def __init__(
        self,
        *,
        root: Path,
        bad_data: BadData,
        sets: tuple[str, ...],
        folder: str = "VOCdevkit",
        names: tuple[str, ...] | None = None,
        suffix: str = ".jpg",
        boxes: Need | None = "required",
        masks: Need | None = None,
        mask_folder: str = "SegmentationClass",
        lists: str | None = None,
        mask_names: tuple[str, ...] | None = None,
    ) -> None:
        if boxes is None and masks is None:
            raise ConfigError("data set voc: boxes and masks are both null: nothing would be read")
        self.problems: list[str] = []
        self._skip = bad_data is BadData.skip
        self.devkit = inside(root, folder, where="data set voc: folder")
        inside(self.devkit, mask_folder, where="data set voc: mask_folder")
        where = f"{self.devkit} ({', '.join(sets)})"
        listed = _read_lists(self.devkit, sets, lists or ("Main" if boxes == "required" else "Segmentation"), where)
        files, mask_files, sizes, counts = [], [], [], []
        rows: list[Row] = []
        for home, stem in tqdm(listed, desc="reading VOC", unit="image", disable=len(listed) < 2000, leave=False):
            xml = home / "Annotations" / f"{stem}.xml"
            try:
                mask = _find_mask(home, f"{mask_folder}/{stem}.png", masks)
                boxed = boxes == "required" or (boxes == "optional" and xml.is_file())
                size, found = self._annotation(xml) if boxed else (UNKNOWN, [])
            except DataError as error:
                self._leave_out(error)
                continue
            files.append(f"{home.name}/JPEGImages/{stem}{suffix}")
            mask_files.append(mask)
            sizes.append(size)
            counts.append(len(found))
            rows += found
        if not files:
            raise DataError(f"{where}: no images left in it")
        if boxes == "optional" and set(sizes) == {UNKNOWN}:
            raise DataError(f"{where}: none of {len(files)} images has an xml in Annotations")
        if masks == "optional" and not any(mask_files):
            raise DataError(f"{where}: none of {len(files)} images has a mask in {mask_folder}")
        self.classes = {}
        if boxes:
            self.classes["labels"] = class_list(sorted({name for _, name, _ in rows}), names, where=where)
        if masks:
            given = VOC_MASK_CLASSES if mask_names is None else mask_names
            self.classes["mask"] = mask_list(given, None, where=f"{where}: masks")
        self._files, self._mask_files = np.array(files), np.array(mask_files)
        self._sizes = np.array(sizes, np.int32)
        self._table = _table(counts, rows, self.classes.get("labels", []))

    def __len__(self) -> int:
        return len(self._files)

    def image_id(self, index: int) -> str:
        """The file's stem, such as ``2007_000063``."""
        return Path(str(self._files[index])).stem

    def target(self, index: int) -> Arrays:
        """See `Dataset.target`."""
        return self._table.target(index) if self._sizes[index].any() else {}

    def read(self, index: int) -> Sample:
        """See `Dataset.read`.

        Raises:
            DataError: The image or its mask is damaged, they differ in size, or as `read_mask`.
        """
        path, target = self.devkit / str(self._files[index]), self.target(index)
        height, width = (int(n) for n in self._sizes[index])
        image = read_sized(path, (height, width)) if height else read_image(path)
        if self._mask_files[index]:
            mask_path = self.devkit / str(self._mask_files[index])
            mask = target["mask"] = read_mask(mask_path, len(self.classes["mask"]))
            if not height and image.shape[:2] != mask.shape == image.shape[1::-1]:
                image = read_sized(path, (mask.shape[0], mask.shape[1]))  # drawn on the stored pixels, maybe
            if mask.shape != image.shape[:2]:
                sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, image.shape)]
                raise DataError(f"{mask_path}: the mask is {sizes[0]}, its image {path.name} is {sizes[1]}")
        return Sample(image, target, self.image_id(index))

    def _annotation(self, path: Path) -> tuple[tuple[int, int], list[Row]]:
        tree = parse_xml(path)
        size = stated_size(tree, path)
        rows = []
        for number, item in enumerate(tree.findall("object"), 1):
            try:
                rows.append(_object(item, number, size, path))
            except DataError as error:
                self._leave_out(error)
        return size, rows

    def _leave_out(self, error: DataError) -> None:
        if not self._skip:
            raise error
        self.problems.append(str(error))


def _read_lists(devkit: Path, sets: Sequence[str], lists: str, where: str) -> list[tuple[Path, str]]:
    listed: list[tuple[Path, str]] = []
    for item in sets:
        home, path = list_file(devkit, item, lists)
        stems = read_stems(path)
        for stem in stems:
            inside(home, stem, where=str(path))
        listed += [(home, stem) for stem in stems]
    if len(set(listed)) != len(listed):
        twice = next(stem for (_, stem), times in Counter(listed).items() if times > 1)
        raise DataError(f"{where}: image '{twice}' is listed twice")
    homes: dict[str, Path] = {}
    for home, stem in listed:
        if homes.setdefault(stem, home) != home:
            raise DataError(f"{home}: image '{stem}' has the name of one in {homes[stem]}; rename one of them")
    return listed


def list_file(devkit: Path, item: str, folder: str) -> tuple[Path, Path]:
    """The folder of images and the list file that one of ``sets`` names.

    Raises:
        DataError: It is no FOLDER/LIST, leaves the devkit, or there is no such list.
    """
    year, slash, name = item.partition("/")
    if not slash or year in ("", ".") or "/" in name:
        raise DataError(f"data set voc: set '{item}': expected FOLDER/LIST such as VOC2007/trainval")
    home = inside(devkit, year, where=f"data set voc: set '{item}'")
    path = inside(home, f"ImageSets/{folder}/{name}.txt", where=f"data set voc: set '{item}'")
    if not path.is_file():
        lists = [p.stem for p in path.parent.glob("*.txt")] if path.parent.is_dir() else []
        others = sorted(p.parent.name for p in home.glob("ImageSets/*/*.txt") if p.stem == name)
        hint = f"; ImageSets/{others[0]} has one (argument lists)" if others else near(name, lists)
        raise DataError(f"{path}: no such image list{hint}")
    return home, path


def read_stems(path: Path) -> list[str]:
    """The images that a list names."""
    # per-class lists carry a second column of 1, 0 and -1
    return [line.split()[0] for line in path.read_text("utf-8-sig", errors="replace").splitlines() if line.strip()]


def _find_mask(home: Path, relative: str, need: Need | None) -> str:
    """The mask's path below the devkit; empty where there is none, or none is wanted."""
    path = home / relative
    if need and path.is_file():
        return str(path.relative_to(home.parent))
    if need != "required":
        return ""
    folder, others = relative.split("/")[0], [p.name for p in home.iterdir()]
    raise DataError(f"{path}: no such mask{'' if folder in others else near(folder, others)}")


def parse_xml(path: Path) -> Any:
    """The root element of an annotation.

    Raises:
        DataError: The file is missing, no xml, or one that harms its reader.
    """
    try:
        return fromstring(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotation ({error.strerror})") from None
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise DataError(f"{path}: not a safe, well-formed xml ({' '.join(str(error).split())[:120]})") from None


def stated_size(tree: Any, path: Path) -> tuple[int, int]:
    """(H, W) of the image as its annotation states it.

    Raises:
        DataError: It states none, or what no image can have.
    """
    height, width = _number(tree, "size/height", path), _number(tree, "size/width", path)
    if min(height, width) < 1 or max(height, width) > 1e6:
        raise DataError(f"{path}: size {width:g}x{height:g} is not an image's")
    return int(height), int(width)


def stated_object(item: Any, number: int, path: Path) -> tuple[str, list[float], bool]:
    """Name, box and ``difficult`` of an annotation's object, the box as the file has it.

    Args:
        item: The element.
        number: Its place among the objects, from 1, for messages.
        path: Of the file, likewise.

    Raises:
        DataError: It has no name, or a corner is no number.
    """
    name = (item.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{path}: object {number} has no name")
    place = f"{path}: object {number} '{name}'"
    box = [_number(item, f"bndbox/{key}", place) for key in ("xmin", "ymin", "xmax", "ymax")]
    return name, box, (item.findtext("difficult") or "0").strip() == "1"


def _object(item: Any, number: int, size: tuple[int, int], path: Path) -> Row:
    name, (x1, y1, x2, y2), difficult = stated_object(item, number, path)
    place = f"{path}: object {number} '{name}'"
    for low, high, axis in ((x1, x2, "x"), (y1, y2, "y")):
        if low >= high:
            sign = ">" if low > high else "="
            raise DataError(f"{place}: {axis}min {low:g} {sign} {axis}max {high:g}")
    # VOC counts pixels from 1 and includes the last: here, and only here, that ends
    box = [max(x1 - 1, 0), max(y1 - 1, 0), min(x2, size[1]), min(y2, size[0])]
    if box[0] >= box[2] or box[1] >= box[3]:
        raise DataError(f"{place}: box {x1:g} {y1:g} {x2:g} {y2:g} lies outside the {size[1]:g}x{size[0]:g} image")
    return box, name, difficult


def _number(tree: Any, tag: str, place: object) -> float:
    text = (tree.findtext(tag) or "").strip()
    if not re.fullmatch(r"[-+]?\d{1,9}(\.\d+)?([eE][-+]?\d)?", text):
        raise DataError(f"{place}: {tag}: expected a number, got '{text[:40]}'")
    return float(text)


def _table(counts: Sequence[int], rows: Sequence[Row], names: Sequence[str]) -> BoxTable:
    ids = {name: index for index, name in enumerate(names)}
    boxes: NDArray[np.float32] = np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4)
    return BoxTable(
        np.array(counts, np.int64),
        boxes,
        np.array([ids[name] for _, name, _ in rows], np.int64),
        np.array([difficult for _, _, difficult in rows], np.bool_),
        (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    )
