"""A table of published and computed values, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Value(NamedTuple):
    """A number of the paper beside the one that this code computes.

    Attributes:
        paper: As it is printed there; None where the paper (or release) has none.
        here: Computed, in units of one; None where this code cannot compute it.
    """

    paper: str | None = None
    here: float | None = None


class Column(NamedTuple):
    """What the values of a column mean.

    Attributes:
        name: With its unit.
        unit: What a printed 1 stands for.
        digits: Decimals of computed values.
        exact: Whether a computed value must be the paper's to the last digit.
    """

    name: str
    unit: float = 1.0
    digits: int = 0
    exact: bool = False

    def agrees(self, value: Value) -> bool:
        """Whether a computed value is the paper's.

        The paper rounds in places and truncates in others: less than one of its last digit, or 1 %, is agreement.
        """
        if value.paper is None or value.here is None:
            return True
        published, computed = float(value.paper), value.here / self.unit
        if self.exact:
            return published == computed
        last_digit = 10.0 ** -len(value.paper.partition(".")[2])
        return abs(computed - published) < max(last_digit, 0.01 * published)


@dataclass
class Table:
    """Rows of labels and values.

    Attributes:
        key: Number of the paper's table (2), or of one that belongs to it (2.1).
        title: One line.
        labels: Names of the columns before the values.
        columns: The columns of values.
        rows: Labels, and one value per column.
        notes: Why a value is not the paper's, by row name and column name.
    """

    key: str
    title: str
    labels: Sequence[str]
    columns: Sequence[Column]
    rows: list[tuple[Sequence[str], Sequence[Value]]] = field(default_factory=list)
    notes: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, *labels: str, paper: Sequence[str | None] = (), here: Sequence[float | None] = ()) -> None:
        """Adds a row.

        Args:
            labels: As many as the table has.
            paper: The paper's numbers, column by column; columns behind the last one have none.
            here: The computed numbers, as `paper`.
        """
        count = len(self.columns)
        both = ([*numbers, *[None] * (count - len(numbers))] for numbers in (paper, here))
        self.rows.append((labels, [Value(*pair) for pair in zip(*both, strict=True)]))

    def name(self, labels: Sequence[str]) -> str:
        """Name of the row with these labels."""
        return " / ".join(label for label in labels if label)

    def cells(self) -> Iterator[tuple[str, Column, Value]]:
        """Row name, column and value of all cells that have one."""
        for labels, values in self.rows:
            for column, value in zip(self.columns, values, strict=True):
                if value != Value():
                    yield self.name(labels), column, value

    def disagreements(self) -> set[tuple[str, str]]:
        """Row and column names of the computed values that are not the paper's."""
        return {(row, column.name) for row, column, value in self.cells() if not column.agrees(value)}


def as_text(table: Table) -> str:
    """A table for a terminal."""
    head, body, notes = _layout(table)
    # the second line of the head says where a value comes from
    lines = [[cell.partition(", ")[part] for cell in head] for part in (0, 2)] + body
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = len(table.labels)
    shown = (
        "  ".join(f"{cell:{'<' if n < left else '>'}{widths[n]}}" for n, cell in enumerate(line)).rstrip()
        for line in lines
    )
    numbered = [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([table.title, *filter(None, shown), *numbered]) + "\n"


def as_markdown(table: Table) -> str:
    """A table for a document."""
    head, body, notes = _layout(table)
    rule = ["---" if n < len(table.labels) else "---:" for n in range(len(head))]
    lines = [f"| {' | '.join(line)} |" for line in [head, rule, *body]]
    numbered = ["", *(f"- [{number}] {note}" for number, note in enumerate(notes, 1))] if notes else []
    return "\n".join([f"**{table.title}**", "", *lines, *numbered]) + "\n"


def as_data(table: Table) -> dict[str, Any]:
    """A table for other programs: by row and column the paper's number, the computed one and whether they agree."""
    rows: dict[str, dict[str, Any]] = {table.name(labels): {} for labels, _ in table.rows}
    for row, column, value in table.cells():
        here = None if value.here is None else value.here / column.unit
        rows[row][column.name] = {"paper": value.paper, "here": here, "agrees": column.agrees(value)}
        if note := table.notes.get((row, column.name)):
            rows[row][column.name]["note"] = note
    return {"title": table.title, "rows": rows}


def _layout(table: Table) -> tuple[list[str], list[list[str]], list[str]]:
    """Head, body and notes of a table; a column that has both published and computed values is printed as two."""
    columns = zip(*(values for _, values in table.rows), strict=True)
    sources = [tuple(any(value[kind] is not None for value in column) for kind in (0, 1)) for column in columns]
    head = list(table.labels)
    for column, (paper, here) in zip(table.columns, sources, strict=True):
        head += [f"{column.name}, paper"] * paper + [f"{column.name}, here" if paper else column.name] * here
    notes = list(dict.fromkeys(table.notes.values()))
    body = []
    for labels, values in table.rows:
        line = list(labels)
        for column, (paper, here), value in zip(table.columns, sources, values, strict=True):
            shown = "" if value.here is None else f"{value.here / column.unit:.{column.digits}f}"
            if note := table.notes.get((table.name(labels), column.name)):
                shown += f" [{notes.index(note) + 1}]"
            line += [value.paper or ""] * paper + [shown] * here
        body.append(line)
    return head, body, notes
