"""Tables with a row for each box: TensorFlow's, Open Images', RetinaNet's, and any other with named columns.

A table with the columns ``filename, class, xmin, ymin, xmax, ymax``, mostly with ``width`` and ``height``, comes from
the many scripts that prepare TensorFlow records. They copy the numbers of VOC's xml, so these are read as VOC has them:
pixels count from 1 and the last is inside. The numbers of every other table are corners counted from 0 (or x, y, width
and height), and those of Open Images are shares of the picture's sides. Which columns there are is found out by
`mnv2det.labels.csv_columns`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from mnv2det.data.formats.base import Format
from mnv2det.data.formats.problems import shown
from mnv2det.data.formats.records import Box, Records
from mnv2det.errors import DataError
from mnv2det.labels.base import (
    ROLES,
    LabelFormat,
    LabelledPart,
    LabelledPicture,
    Part,
    Placer,
    Recognised,
    Remark,
    Role,
    Tree,
    role_of,
)
from mnv2det.labels.csv_columns import CORNERS, SIZES, TENSORFLOW, Table, read_rows, read_table
from mnv2det.labels.reading import (
    ROLE_ORDER,
    EntryError,
    PictureFinder,
    add_picture,
    is_text,
    parse_number,
    parse_shares,
    set_classes,
)
from mnv2det.registry import LABELS

MOST_TABLES = 64
NO_FLAGS = ("", "0", "-1", "false", "no")  # of Open Images, which has -1 for unknown


class CsvTables:
    """All tables of a folder.

    Args:
        tree: The folder.
        tables: Its tables.
        titles: Names of Open Images' class codes (``/m/...``).

    Attributes:
        finder: Finds their pictures.
    """

    def __init__(self, tree: Tree, tables: Sequence[Table], titles: Mapping[str, str]) -> None:
        self.tree, self.tables, self.titles = tree, tables, titles
        self.finder = PictureFinder(tree)

    def role_of_row(self, table: Table, cells: Sequence[str]) -> Role:
        """The split of a row: by its column, or else by the table's name."""
        if "split" not in table.columns:
            return role_of(table.file)
        column = table.columns["split"]
        return ROLES.get(cells[column].strip().lower(), "all") if column < len(cells) else "all"

    def roles(self) -> list[Role]:
        """The splits that there are."""
        roles = {role_of(table.file) for table in self.tables if "split" not in table.columns}
        for table in self.tables:
            if "split" in table.columns:
                roles |= {self.role_of_row(table, cells) for _, cells in read_rows(self.tree, table) if cells}
        return [role for role in ROLE_ORDER if role in roles]

    @cached_property
    def unlisted(self) -> list[str]:
        """Pictures that no table names."""
        listed = set()
        for table in self.tables:
            for _, cells in read_rows(self.tree, table):
                try:
                    listed.add(self.finder.find(table.cell(cells, "file"), stem=table.stems, folder=table.folder))
                except EntryError:
                    continue
        return [picture for picture in self.tree.pictures if picture not in listed]


class CsvBoxes(Format):
    """The rows of one split.

    Args:
        tables: All tables.
        role: Of the split.
        roles: All splits, in order; pictures that no table names and no folder gives to a split go to the last.

    Attributes:
        names: Class list to hold to; None takes the classes of the rows, sorted.
    """

    def __init__(self, tables: CsvTables, role: Role, *, roles: Sequence[Role]) -> None:
        self.tables, self.role, self.roles = tables, role, roles
        self.names: Sequence[str] | None = None
        self._resized: set[int] = set()  # pictures whose size was reported

    def read(self) -> Records:
        """See `Format.read`; ``stated`` are the four numbers of the row in the order of its columns' meaning."""
        tables, root = self.tables, self.tables.tree.root
        own = [table for table in tables.tables if "split" in table.columns or role_of(table.file) == self.role]
        where = f"{root} ({self.role})"
        about = f"rows of boxes, {', '.join(table.file for table in own)}"
        records = Records(root, where, about, [root / table.file for table in own])
        records.box_place = "line {id}: '{name}' {numbers}"
        indices: dict[str, int] = {}
        self._resized.clear()
        for table in own:
            for position, cells in read_rows(tables.tree, table):
                if tables.role_of_row(table, cells) == self.role:
                    self._read_row(records, indices, table, position, cells)
        for picture in tables.unlisted:
            role = role_of(picture)
            if role == self.role or (role not in self.roles and self.role == self.roles[-1]):
                index = add_picture(records, picture, "")
                records.pictures[index] = records.pictures[index]._replace(boxed=False)
                records.add_problem("annotation_missing", root / picture, "no row names it", index=index)
        records.picture_folders = sorted({(root / str(picture.id)).parent for picture in records.pictures})
        if not records.pictures:
            raise DataError(records.problems[0].message if records.problems else f"{where}: no pictures in it")
        set_classes(records, None, self.names, needed=self.role in ("train", "all"))
        return records

    def _read_row(
        self, records: Records, indices: dict[str, int], table: Table, position: int, cells: Sequence[str]
    ) -> None:
        """Adds the box of a row."""
        path, index = records.folder / table.file, -1
        try:
            if not cells:
                raise EntryError("annotation_broken", "quotes that do not end, or other than text")
            if len(cells) < table.width:
                raise EntryError("annotation_broken", f"{len(cells)} columns; expected {table.width}")
            if any(cell.strip() for cell in cells[table.width :]):
                raise EntryError("annotation_broken", f"{len(cells)} columns; expected {table.width}")
            picture = self.tables.finder.find(table.cell(cells, "file"), table.folder, stem=table.stems)
            index = indices.get(picture, -1)
            if index < 0:
                index = indices[picture] = add_picture(records, picture, table.file)
            size = records.pictures[index].size
            if size is None:
                return  # reported with the picture
            self._check_size(records, index, table, position, cells)
            numbers = [table.cell(cells, column) for column in table.numbers]
            name = table.cell(cells, "class")
            if not any((name, *numbers)):
                return  # a picture without a box
            if not is_text(name):
                raise EntryError("annotation_broken", f"class '{shown(name, 40)}': expected a name in UTF-8")
            stated, corners = _corners(table, numbers, size)
            ignore = table.cell(cells, "group").lower() not in NO_FLAGS
            name = self.tables.titles.get(name, name)
            records.add_box(Box(index, name, corners, stated, ignore, id=position + 1, position=position))
        except EntryError as error:
            where, number = f"{path}, line {position + 1}", position + 1
            records.add_problem(
                error.kind, path, str(error), where=where, index=index, annotation=number, position=position
            )

    def _check_size(self, records: Records, index: int, table: Table, position: int, cells: Sequence[str]) -> None:
        """Reports a picture that has another size than its row states, once."""
        stated = [table.cell(cells, column) for column in SIZES]
        size = records.pictures[index].size
        if size is None or not all(stated):
            return
        try:
            width, height = (parse_number(text) for text in stated)
        except EntryError:
            width, height = -1, -1
        if (height, width) != size and index not in self._resized:
            self._resized.add(index)
            path = records.folder / table.file
            what = f"width {shown(stated[0], 20)}, height {shown(stated[1], 20)}: the picture is {size[1]}x{size[0]}"
            where = f"{path}, line {position + 1}"
            records.add_problem("image_size", path, what, where=where, index=index, annotation=position + 1)


def _corners(table: Table, texts: Sequence[str], size: tuple[int, int]) -> tuple[list[float], list[float]]:
    """The numbers of a row, and its box in pixels as docs/conventions.md has it.

    Raises:
        EntryError: They are no numbers, or no shares where such are expected.
    """
    stated = [parse_number(text) for text in texts]
    if table.kind == "shares":
        sides = (size[1], size[0]) * 2
        return stated, [share * side for share, side in zip(parse_shares(stated), sides, strict=True)]
    first, second, third, fourth = stated
    if table.kind == "voc":
        return stated, [first - 1, second - 1, third, fourth]
    return stated, stated if table.numbers == CORNERS else [first, second, first + third, second + fourth]


@LABELS.register("csv")
class CsvLabels(LabelFormat):
    """``train.csv``, ``val.csv`` and so on, or a table with a column ``split``; pictures anywhere below."""

    expected = "a csv with a row for each box (filename, class, xmin, ymin, xmax, ymax; or Open Images' columns)"

    def recognise(self, tree: Tree) -> Recognised | str:
        """See `LabelFormat.recognise`."""
        tables: list[Table] = []
        titles: dict[str, str] = {}
        remarks, broken = [], []
        files = tree.with_suffix(".csv", ".tsv")
        for file in files[:MOST_TABLES]:
            table: Table | dict[str, str] | str
            try:
                table = read_table(tree, file)
            except EntryError as error:
                table = str(error)
                broken.append(f"{tree.path(file)}: {table}")
            if isinstance(table, Table):
                tables.append(table)
            elif isinstance(table, dict):
                titles |= table
            else:
                remarks.append(Remark("csv_skipped", file, table))
        remarks += [Remark("csv_skipped", file, f"more than {MOST_TABLES} tables") for file in files[MOST_TABLES:]]
        if not tables:
            return f"{remarks[0].file}: {remarks[0].what}" if remarks else "no csv with a row for each box"
        if broken:
            raise DataError(broken[0])
        if not tree.pictures:
            return f"{tables[0].file}: rows of boxes, but no picture"
        if not titles and any(table.stems for table in tables):
            remarks.append(
                Remark("class_broken", "", "no class-descriptions csv; the classes are called by their codes")
            )
        data = CsvTables(tree, tables, titles)
        roles = data.roles()
        parts = [Part(role, role, CsvBoxes(data, role, roles=roles)) for role in roles]
        return Recognised("csv", f"rows of boxes: {', '.join(table.file for table in tables)}", parts, remarks)

    def write(self, parts: Sequence[LabelledPart], target: Path, place: Placer) -> list[str]:
        """Writes ``images`` and a table for each split with TensorFlow's columns; ignored boxes are left out."""
        ignored = 0
        for part in parts:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(TENSORFLOW)
            for picture in part.pictures:
                file = f"images/{picture.name}"
                place(picture.source, target / file)
                writer.writerows(_table_rows(picture, file))
                ignored += sum(box.ignore for box in picture.boxes)
            (target / f"{part.role}.csv").write_text(text.getvalue(), "utf-8")
        return [f"{ignored} ignored boxes left out: the table cannot hold them"] if ignored else []


def _table_rows(picture: LabelledPicture, file: str) -> list[list[object]]:
    """A picture's rows; one with empty fields if it has no box."""
    height, width = picture.size
    rows: list[list[object]] = []
    for box in picture.boxes:
        if box.ignore:
            continue
        if not box.name.isprintable():
            raise DataError(f"class '{shown(box.name)}': a csv cannot hold line breaks in a name")
        x1, y1, x2, y2 = box.corners
        numbers = [f"{value:.4f}".rstrip("0").rstrip(".") for value in (x1 + 1, y1 + 1, x2, y2)]
        rows.append([file, width, height, box.name, *numbers])
    return rows or [[file, width, height, "", "", "", "", ""]]
