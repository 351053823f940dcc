"""The paper's tables beside this code's, as text, in a document, and its figures 1 and 5."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnv2det.errors import ConfigError, near
from mnv2det.paper import values as paper
from mnv2det.paper.format import Table, markdown, plain, text
from mnv2det.paper.tables import TABLES, V1, V2, classifier_costs, compute

REGION = re.compile(r"(<!-- tables ([\d. ]+) -->\n).*?(<!-- /tables -->)", re.DOTALL)
TITLE = "# The paper's tables, computed by `mnv2det paper`\n\n"


def choose(keys: Sequence[str]) -> list[str]:
    """The tables asked for, in the paper's order; all of them if none is.

    Raises:
        ConfigError: There is no such table.
    """
    for key in keys:
        if key not in TABLES:
            raise ConfigError(f"table '{key}'{near(key, TABLES)}")
    return [key for key in TABLES if key in keys or not keys]


def tables(keys: Sequence[str]) -> Iterator[tuple[str, list[Table]]]:
    """Computes tables one after the other.

    Args:
        keys: From `choose`.

    Yields:
        Each one's key, and the table with what belongs to it.
    """
    for key in keys:
        yield key, compute(key)


def as_text(found: Sequence[Table]) -> str:
    """For a terminal."""
    return "\n".join(text(table) for table in found)


def as_json(found: Mapping[str, Sequence[Table]]) -> dict[str, Any]:
    """For other programs: by table, row and column the paper's figure, this code's, and whether they agree."""
    return {table.key: plain(table) for group in found.values() for table in group}


def into_document(old: str, found: Mapping[str, Sequence[Table]], *, where: str) -> str:
    """A markdown document with its tables written anew, and nothing else touched.

    Args:
        old: The document. Between ``<!-- tables 4 5 -->`` and ``<!-- /tables -->`` it holds those tables; an empty one
            gets them all.
        found: Tables by key; a region that asks for others is left as it is.
        where: Name of the file, for messages.

    Raises:
        ConfigError: It has no such region, or one asks for a table that does not exist.
    """
    if not old.strip():
        old = TITLE + "".join(f"<!-- tables {key} -->\n<!-- /tables -->\n\n" for key in found)
    regions = [match[2].split() for match in REGION.finditer(old)]
    if not regions:
        raise ConfigError(f"{where}: nowhere to write to; mark it by '<!-- tables 4 -->' and '<!-- /tables -->'")
    for key in (key for keys in regions for key in keys):
        if key not in TABLES:
            raise ConfigError(f"{where}: <!-- tables {key} -->: no such table{near(key, TABLES)}")

    def write(match: re.Match[str]) -> str:
        keys = match[2].split()
        if not set(keys) <= found.keys():
            return match[0]
        body = "\n".join(markdown(table) for key in keys for table in found[key])
        return f"{match[1]}\n{body}\n{match[3]}"

    return REGION.sub(write, old)


def write_document(path: str | Path, found: Mapping[str, Sequence[Table]]) -> None:
    """`into_document` on a file, which need not exist.

    Raises:
        ConfigError: As there.
        OSError: The file cannot be written.
    """
    file = Path(path)
    old = file.read_text(encoding="utf-8") if file.exists() else ""
    file.write_text(into_document(old, found, where=str(path)), encoding="utf-8")


def trade_off() -> dict[str, list[tuple[float, float]]]:
    """Figure 5: by network and input size, (multiply-adds in millions, top-1 %), wide networks last.

    Accuracies are the released checkpoints', multiply-adds are counted here; ShuffleNet's and NasNet's are Table 4's.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for name, backbone, accuracy in (
        ("V2", V2, {key: row[2] for key, row in paper.CHECKPOINTS.items()}),
        ("V1", V1, paper.CHECKPOINTS_V1),
    ):
        for width in sorted({width for width, _ in accuracy}):
            sizes = [size for known, size in accuracy if known == width]
            _, _, works = classifier_costs(backbone, width, sizes)
            for size, work in zip(sizes, works, strict=True):
                series.setdefault(f"{name} {size}x{size}", []).append((work / 1e6, float(accuracy[width, size])))
    for name in ("ShuffleNet", "NasNet"):
        rows = [row for network, row in paper.TABLE_4.items() if network.startswith(name)]
        series[f"{name} (Table 4)"] = [(float(work), float(top_1)) for top_1, _, work, _ in rows]
    return series


def draw(folder: str | Path) -> list[Path]:
    """Figures 1 and 5 as pictures.

    Args:
        folder: Made if it does not exist.

    Returns:
        The files written.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: A file cannot be written.
    """
    from mnv2det.report.plots import draw_spirals, draw_trade_off

    Path(folder).mkdir(parents=True, exist_ok=True)
    files = [Path(folder) / "figure1.png", Path(folder) / "figure5.png"]
    draw_spirals(files[0])
    draw_trade_off(files[1], trade_off())
    return files
