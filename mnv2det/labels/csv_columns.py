"""What the columns of a table of boxes mean."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mnv2det.data.formats.problems import shown
from mnv2det.data.images import EXTENSIONS
from mnv2det.errors import DataError
from mnv2det.labels.base import Tree
from mnv2det.labels.reading import EntryError, read_text, text_lines

TENSORFLOW = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
CORNERS = ("x1", "y1", "x2", "y2")
SIDES = ("x", "y", "w", "h")
SIZES = ("width", "height")  # of the picture
SEPARATORS = (",", ";", "\t")
# what the columns are called, in small letters and without anything else; the first that is there counts
CALLED: dict[str, tuple[str, ...]] = {
    "file": ("filename", "imageid", "imagename", "imagepath", "filepath", "imagefile", "image", "file", "path", "img"),
    "class": ("class", "label", "labelname", "classname", "category", "categoryname", "name"),
    "x1": ("xmin", "x1", "left", "bboxxmin"),
    "y1": ("ymin", "y1", "top", "bboxymin"),
    "x2": ("xmax", "x2", "right", "bboxxmax"),
    "y2": ("ymax", "y2", "bottom", "bboxymax"),
    "x": ("x", "bboxx"),
    "y": ("y", "bboxy"),
    "w": ("w", "bboxwidth", "boxwidth", "bboxw"),
    "h": ("h", "bboxheight", "boxheight", "bboxh"),
    "width": ("imagewidth", "imgwidth", "width"),
    "height": ("imageheight", "imgheight", "height"),
    "split": ("split", "set", "subset"),
    "group": ("isgroupof",),
}


@dataclass(frozen=True)
class Table:
    """A file with a row for each box.

    Attributes:
        file: Its path below the tree's root.
        separator: Between the columns.
        columns: Position of each column by its meaning (`CALLED`).
        width: Number of columns.
        header: Whether its first row names them.
        kind: Whether boxes are stated in pixels from 0, in pixels as VOC counts them, or in shares of the sides.
        numbers: The columns of the box: `CORNERS` or `SIDES`.
        stems: Whether pictures are named without their suffix.
    """

    file: str
    separator: str
    columns: Mapping[str, int]
    width: int
    header: bool
    kind: Literal["pixels", "voc", "shares"]
    numbers: tuple[str, ...] = CORNERS
    stems: bool = False

    @property
    def folder(self) -> str:
        """The folder that it lies in."""
        return os.path.dirname(self.file)

    def cell(self, cells: Sequence[str], meaning: str) -> str:
        """What a row has in a column; empty where there is no such column."""
        column = self.columns.get(meaning, -1)
        return cells[column].strip() if 0 <= column < len(cells) else ""


def read_table(tree: Tree, file: str) -> Table | dict[str, str] | str:
    """What a csv is: a table of boxes, Open Images' names by code, or why it is neither.

    Raises:
        EntryError: All but one of the columns of a table of boxes are there.
    """
    try:
        lines = text_lines(read_text(tree.path(file)))
    except DataError as error:
        return str(error).removeprefix(f"{tree.path(file)}: ")
    first = next((line for line in lines if line.strip()), "")
    separator = max(SEPARATORS, key=first.count)
    cells = split_line(first, separator)
    if (titles := _titles(file, [split_line(line, separator) for line in lines[:100_000]])) is not None:
        return titles
    if len(cells) == 6 and os.path.splitext(cells[0].strip())[1].lower() in EXTENSIONS:
        columns = {meaning: position for position, meaning in enumerate(("file", *CORNERS, "class"))}
        return Table(file, separator, columns, 6, False, "pixels")
    names = [re.sub("[^a-z0-9]", "", cell.lower()) for cell in cells]
    columns = {
        meaning: next(names.index(name) for name in called if name in names)
        for meaning, called in CALLED.items()
        if any(name in names for name in called)
    }
    if set(SIDES[:2]) <= columns.keys() and "w" not in columns and {"width", "height"} <= set(names):
        # x, y, width, height: those of the box
        columns |= {"w": names.index("width"), "h": names.index("height")}
        for meaning, called in (("width", "imagewidth"), ("height", "imageheight")):
            columns.pop(meaning)
            columns |= {meaning: names.index(called)} if called in names else {}
    numbers = max(CORNERS, SIDES, key=lambda meanings: len(columns.keys() & set(meanings)))
    lacking = [meaning for meaning in ("file", "class", *numbers) if meaning not in columns]
    if len(lacking) == 1:
        expected = ", ".join(CALLED[lacking[0]][:3])
        raise EntryError("annotation_broken", f"no column {expected} in '{shown(first, 80)}'")
    if lacking:
        return f"its columns are not those of boxes: {shown(first, 80)}"
    if {"imageid", "labelname", "xmin"} <= set(names):
        return Table(file, separator, columns, len(cells), True, "shares", stems=True)
    kind: Literal["pixels", "voc"] = "voc" if set(TENSORFLOW) - set(SIZES) <= set(names) else "pixels"
    return Table(file, separator, columns, len(cells), True, kind, numbers)


def read_rows(tree: Tree, table: Table) -> Iterable[tuple[int, list[str]]]:
    """Position of each row's line, from 0, and its cells; none where it cannot be read.

    Every line is read for itself, so that a quote that does not end costs its own row only.
    """
    lines = text_lines(read_text(tree.path(table.file)))
    start = next((number for number, line in enumerate(lines) if line.strip()), 0) + table.header
    for position, line in enumerate(lines[start:], start):
        if line.strip():
            yield position, split_line(line, table.separator)


def split_line(line: str, separator: str) -> list[str]:
    """The cells of a line; empty where it is no csv."""
    try:
        return next(csv.reader([line], delimiter=separator, strict=True), [])
    except csv.Error:
        return []


def _titles(file: str, rows: Sequence[Sequence[str]]) -> dict[str, str] | None:
    """Names by code, where a file is Open Images' class-descriptions."""
    if "class-descriptions" not in os.path.basename(file).lower():
        return None
    return {
        row[0].strip(): row[1].strip() for row in rows if len(row) == 2 and row[0].startswith("/m/") and row[1].strip()
    }
