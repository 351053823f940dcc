"""The paper's tables in a markdown document, and its figures 1 and 5."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mnv2det.errors import ConfigError, near
from mnv2det.paper import values as paper
from mnv2det.paper.format import Table, as_markdown
from mnv2det.paper.tables import TABLES, V1, V2, classifier_costs

REGION = re.compile(r"(<!-- tables ([\d. ]+) -->\n).*?(<!-- /tables -->)", re.DOTALL)
TITLE = "# The paper's tables, computed by `mnv2det paper`\n\n"


def update_regions(document: str, tables: Mapping[str, Sequence[Table]], *, where: str) -> str:
    """Writes the tables of a markdown document anew, and changes nothing else.

    Args:
        document: Its text. The tables stand between ``<!-- tables 4 5 -->`` and ``<!-- /tables -->``; an empty document
            is given all of them.
        tables: By key; a region that names others is left as it is.
        where: Name of the file, for messages.

    Raises:
        ConfigError: The document has no such region, or one names a table that does not exist.
    """
    if not document.strip():
        document = TITLE + "".join(f"<!-- tables {key} -->\n<!-- /tables -->\n\n" for key in tables)
    regions = [match[2].split() for match in REGION.finditer(document)]
    if not regions:
        raise ConfigError(f"{where}: nowhere to write to; mark it by '<!-- tables 4 -->' and '<!-- /tables -->'")
    for key in (key for keys in regions for key in keys):
        if key not in TABLES:
            raise ConfigError(f"{where}: <!-- tables {key} -->: no such table{near(key, TABLES)}")

    def write(match: re.Match[str]) -> str:
        keys = match[2].split()
        if not set(keys) <= tables.keys():
            return match[0]
        body = "\n".join(as_markdown(table) for key in keys for table in tables[key])
        return f"{match[1]}\n{body}\n{match[3]}"

    return REGION.sub(write, document)


def write_document(path: str | os.PathLike[str], tables: Mapping[str, Sequence[Table]]) -> None:
    """Applies `update_regions` to a file, which need not exist.

    Raises:
        ConfigError: As there.
        OSError: The file cannot be written.
    """
    file = Path(path)
    document = file.read_text(encoding="utf-8") if file.exists() else ""
    file.write_text(update_regions(document, tables, where=str(path)), encoding="utf-8")


def trade_off() -> dict[str, list[tuple[float, float]]]:
    """The points of figure 5: by network and input size, (multiply-adds in millions, top-1 %), wide networks last.

    Accuracies are those of the released checkpoints, multiply-adds are counted here; both are Table 4's for ShuffleNet
    and NasNet.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    v2 = {width: {size: top_1 for size, (_, top_1) in rows.items()} for width, (_, rows) in paper.CHECKPOINTS.items()}
    for name, backbone, checkpoints in (("V2", V2, v2), ("V1", V1, paper.CHECKPOINTS_V1)):
        for width, accuracies in sorted(checkpoints.items()):
            _, _, costs = classifier_costs(backbone, width, list(accuracies))
            for (size, top_1), cost in zip(accuracies.items(), costs, strict=True):
                series.setdefault(f"{name} {size}x{size}", []).append((cost / 1e6, float(top_1)))
    for name in ("ShuffleNet", "NasNet"):
        rows = [row for network, row in paper.TABLE_4.items() if network.startswith(name)]
        series[f"{name} (Table 4)"] = [(float(cost), float(top_1)) for top_1, _, cost, _ in rows]
    return series


def draw_figures(folder: str | os.PathLike[str]) -> list[Path]:
    """Draws figures 1 and 5.

    Args:
        folder: Made if it does not exist.

    Returns:
        The files that were written.

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
