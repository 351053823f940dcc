"""PASCAL VOC detection: one xml per image, 1-based inclusive pixels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring
from numpy.typing import NDArray
from tqdm import tqdm

from mnv2det.config import BadData
from mnv2det.data.classes import class_list
from mnv2det.data.dataset import Arrays, BoxTable, Dataset
from mnv2det.data.images import inside, read_sized
from mnv2det.errors import DataError, near
from mnv2det.registry import DATASETS
from mnv2det.structures import Sample

Row = tuple[list[float], str, bool]


@DATASETS.register("voc")
class VOC(Dataset):
    """Any folder laid out as VOCdevkit: ``JPEGImages``, ``Annotations``, ``ImageSets/Main``.

    Args:
        root: Data folder that no path leaves.
        bad_data: ``stop`` raises on a broken annotation, ``skip`` leaves that box (or, where the
            xml cannot be read, that image) out and lists it in ``problems``.
        sets: ``YEAR_OR_NAME/LIST`` below ``folder``, such as ``VOC2007/trainval``; several are joined.
        folder: The devkit, below ``root``.
        names: Class list to hold to; null collects the names found, sorted.
        suffix: Of the image files.

    Raises:
        DataError: A list, xml, tag or box is missing or wrong.
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
    ) -> None:
        self.problems: list[str] = []
        self._skip = bad_data is BadData.skip
        self.devkit = inside(root, folder, where="data set voc: folder")
        listed = [entry for item in sets for entry in _read_list(self.devkit, item)]
        if len(set(listed)) != len(listed):
            twice = next(stem for (_, stem), times in Counter(listed).items() if times > 1)
            raise DataError(f"{self.devkit} ({', '.join(sets)}): image '{twice}' is listed twice")
        homes: dict[str, Path] = {}
        for home, stem in listed:
            if homes.setdefault(stem, home) != home:
                raise DataError(f"{home}: image '{stem}' has the name of one in {homes[stem]}; rename one of them")
        stems, sizes, counts = [], [], []
        rows: list[Row] = []
        for home, stem in tqdm(listed, desc="reading VOC xml", unit="file", disable=len(listed) < 2000, leave=False):
            parsed = self._annotation(home / "Annotations" / f"{stem}.xml")
            if parsed is None:
                continue
            size, found = parsed
            stems.append(f"{home.name}/JPEGImages/{stem}{suffix}")
            sizes.append(size)
            counts.append(len(found))
            rows += found
        where = f"{self.devkit} ({', '.join(sets)})"
        if not stems:
            raise DataError(f"{where}: no images left in it")
        self.classes = {"labels": class_list(sorted({name for _, name, _ in rows}), names, where=where)}
        self._files, self._sizes = np.array(stems), np.array(sizes, np.int32)
        self._table = _table(counts, rows, self.classes["labels"])

    def __len__(self) -> int:
        return len(self._files)

    def image_id(self, index: int) -> str:
        """The file's stem, such as ``2007_000063``."""
        return Path(str(self._files[index])).stem

    def target(self, index: int) -> Arrays:
        """See `Dataset.target`."""
        return self._table.target(index)

    def read(self, index: int) -> Sample:
        """See `Dataset.read`."""
        height, width = (int(n) for n in self._sizes[index])
        image = read_sized(self.devkit / str(self._files[index]), (height, width))
        return Sample(image, self.target(index), self.image_id(index))

    def _annotation(self, path: Path) -> tuple[tuple[int, int], list[Row]] | None:
        try:
            tree = _parse(path)
            size = (_number(tree, "size/height", path), _number(tree, "size/width", path))
            if min(size) < 1 or max(size) > 1e6:
                raise DataError(f"{path}: size {size[1]:g}x{size[0]:g} is not an image's")
            rows = []
            for number, item in enumerate(tree.findall("object"), 1):
                try:
                    rows.append(_object(item, number, size, path))
                except DataError as error:
                    self._leave_out(error)
            return (int(size[0]), int(size[1])), rows
        except DataError as error:
            self._leave_out(error)
            return None

    def _leave_out(self, error: DataError) -> None:
        if not self._skip:
            raise error
        self.problems.append(str(error))


def _read_list(devkit: Path, item: str) -> list[tuple[Path, str]]:
    year, slash, name = item.partition("/")
    if not slash or year in ("", ".") or "/" in name:
        raise DataError(f"data set voc: set '{item}': expected FOLDER/LIST such as VOC2007/trainval")
    home = inside(devkit, year, where=f"data set voc: set '{item}'")
    path = inside(home, f"ImageSets/Main/{name}.txt", where=f"data set voc: set '{item}'")
    if not path.is_file():
        lists = [p.stem for p in path.parent.glob("*.txt")] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such image list{near(name, lists)}")
    # per-class lists carry a second column of 1, 0 and -1
    stems = [line.split()[0] for line in path.read_text("utf-8-sig", errors="replace").splitlines() if line.strip()]
    for stem in stems:
        inside(home, stem, where=str(path))
    return [(home, stem) for stem in stems]


def _parse(path: Path) -> Any:
    try:
        return fromstring(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotation ({error.strerror})") from None
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise DataError(f"{path}: not a safe, well-formed xml ({' '.join(str(error).split())[:120]})") from None


def _object(item: Any, number: int, size: tuple[float, float], path: Path) -> Row:
    name = (item.findtext("name") or "").strip()
    place = f"{path}: object {number} '{name}'"
    if not name:
        raise DataError(f"{path}: object {number} has no name")
    x1, y1, x2, y2 = (_number(item, f"bndbox/{key}", place) for key in ("xmin", "ymin", "xmax", "ymax"))
    for low, high, axis in ((x1, x2, "x"), (y1, y2, "y")):
        if low >= high:
            sign = ">" if low > high else "="
            raise DataError(f"{place}: {axis}min {low:g} {sign} {axis}max {high:g}")
    # VOC counts pixels from 1 and includes the last: here, and only here, that ends
    box = [max(x1 - 1, 0), max(y1 - 1, 0), min(x2, size[1]), min(y2, size[0])]
    if box[0] >= box[2] or box[1] >= box[3]:
        raise DataError(f"{place}: box {x1:g} {y1:g} {x2:g} {y2:g} lies outside the {size[1]:g}x{size[0]:g} image")
    return box, name, (item.findtext("difficult") or "0").strip() == "1"


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
