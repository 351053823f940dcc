"""The verb for the paper."""

from __future__ import annotations

import argparse
from typing import Any

from mnv2det.cli.common import add_json, new_verb, write_json_file


def add(verbs: Any) -> None:
    """Adds the verb to the command line."""
    verb = new_verb(
        verbs,
        "paper",
        _paper,
        "print the MobileNetV2 paper's tables beside what this code computes",
        examples="""
            mnv2det paper
            mnv2det paper 2 4 --json tables.json""",
    )
    verb.add_argument("tables", nargs="*", metavar="TABLE", help="2, 3, 4, 5, 5.1 (the section), 6, 7 (default: all)")
    verb.add_argument("--markdown", metavar="FILE", help="also write them between this file's <!-- tables --> markers")
    verb.add_argument("--plots", metavar="DIR", help="also draw figures 1 and 5 there (needs matplotlib)")
    add_json(verb)


def _paper(args: argparse.Namespace) -> int:
    from mnv2det.paper.document import draw_figures, write_document
    from mnv2det.paper.format import as_data, as_text
    from mnv2det.paper.tables import choose, compute

    tables = {}
    for key in choose(args.tables):
        tables[key] = compute(key)
        print("\n".join(map(as_text, tables[key])), flush=True)
    if args.markdown:
        write_document(args.markdown, tables)
        print(f"tables -> {args.markdown}")
    if args.plots:
        print(f"figures -> {', '.join(map(str, draw_figures(args.plots)))}")
    write_json_file(args, {table.key: as_data(table) for group in tables.values() for table in group})
    return 0
