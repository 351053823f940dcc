"""A table of published and computed figures, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """One figure, twice.

    Attributes:
        paper: As it is printed there; None where the paper (or release) has none.
        here: Computed, in units of one; None where this code cannot.
    """

    paper: str | None = None
    here: float | None = None


class Column(NamedTuple):
    """What figures of a column mean.

    Attributes:
        name: With its unit.
        unit: What a printed 1 stands for.
        digits: Decimals of computed figures.
        exact: Whether they must be the paper's to the last digit.
    """

    name: str
    unit: float = 1.0
    digits: int = 0
    exact: bool = False

    def agrees(self, figure: Figure) -> bool:
        """Whether a computed figure is the paper's.

        The paper rounds in places and cuts off in others: less than one of its last digit, or 1 %, is agreement.
        """
        if figure.paper is None or figure.here is None:
            return True
        wanted, found = float(figure.paper), figure.here / self.unit
        if self.exact:
            return wanted == found
        step = 10.0 ** -len(figure.paper.partition(".")[2])
        return abs(found - wanted) < max(step, 0.01 * wanted)


@dataclass
class Table:
    """Rows of labels and figures.

    Attributes:
        key: Number of the paper's table (2), or of one that belongs to it (2.1).
        title: One line.
        labels: Names of the columns before the figures.
        columns: Of the figures.
        rows: Labels and one figure per column.
        notes: Why a figure is not the paper's, by row name and column name.
    """

    key: str
    title: str
    labels: Sequence[str]
    columns: Sequence[Column]
    rows: list[tuple[Sequence[str], Sequence[Figure]]] = field(default_factory=list)
    notes: dict[tuple[str, str], str] = field(default_factory=dict)

    def name(self, labels: Sequence[str]) -> str:
        """Of a row."""
        return " / ".join(label for label in labels if label)

    def cells(self) -> Iterator[tuple[str, Column, Figure]]:
        """Row name, column and figure of all that has one."""
        for labels, figures in self.rows:
            for column, figure in zip(self.columns, figures, strict=True):
                if figure != Figure():
                    yield self.name(labels), column, figure

    def disagreements(self) -> set[tuple[str, str]]:
        """Row and column names of the computed figures that are not the paper's."""
        return {(row, column.name) for row, column, figure in self.cells() if not column.agrees(figure)}


def text(table: Table) -> str:
    """For a terminal."""
    head, body, notes = _layout(table)
    upper, lower = zip(*((name, kind) for name, _, kind in (cell.partition(", ") for cell in head)), strict=True)
    lines = [list(upper), list(lower), *body]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    first = len(table.labels)
    shown = [
        "  ".join(cell.ljust(width) if n < first else cell.rjust(width) for n, (cell, width) in enumerate(row)).rstrip()
        for row in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    marked = [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([table.title, *(line for line in shown if line), *marked]) + "\n"


def markdown(table: Table) -> str:
    """For a document."""
    head, body, notes = _layout(table)
    rule = ["---" if n < len(table.labels) else "---:" for n in range(len(head))]
    lines = [f"| {' | '.join(line)} |" for line in [head, rule, *body]]
    marked = ["", *(f"- [{number}] {note}" for number, note in enumerate(notes, 1))] if notes else []
    return "\n".join([f"**{table.title}**", "", *lines, *marked]) + "\n"


def plain(table: Table) -> dict[str, Any]:
    """For other programs."""
    rows: dict[str, dict[str, Any]] = {table.name(labels): {} for labels, _ in table.rows}
    for row, column, figure in table.cells():
        here = None if figure.here is None else figure.here / column.unit
        rows[row][column.name] = {"paper": figure.paper, "here": here, "agrees": column.agrees(figure)}
        if note := table.notes.get((row, column.name)):
            rows[row][column.name]["note"] = note
    return {"title": table.title, "rows": rows}


def _layout(table: Table) -> tuple[list[str], list[list[str]], list[str]]:
    """Head, body and numbered notes; a column that has both kinds of figures takes two."""
    kinds = []
    for number, column in enumerate(table.columns):
        held = [figures[number] for _, figures in table.rows]
        paper, here = (any(figure[kind] is not None for figure in held) for kind in (0, 1))
        kinds.append((column, paper, here))
    head = list(table.labels)
    for column, paper, here in kinds:
        head += [f"{column.name}, paper"] * paper + [f"{column.name}, here" if paper else column.name] * here
    notes = list(dict.fromkeys(table.notes.values()))
    body = []
    for labels, figures in table.rows:
        line = list(labels)
        for (column, paper, here), figure in zip(kinds, figures, strict=True):
            shown = "" if figure.here is None else f"{figure.here / column.unit:.{column.digits}f}"
            if note := table.notes.get((table.name(labels), column.name)):
                shown += f" [{notes.index(note) + 1}]"
            line += [figure.paper or ""] * paper + [shown] * here
        body.append(line)
    return head, body, notes
