"""The verb for the paper."""

from __future__ import annotations

import argparse
from typing import Any

from mnv2det.cli.common import add_json, new_verb, write_json_file


def add(verbs: Any) -> None:
    """Adds it to the command line."""
    verb = new_verb(verbs, "paper", _paper, "print the MobileNetV2 paper's tables beside what this code computes")
    verb.add_argument("tables", nargs="*", metavar="TABLE", help="2, 3, 4, 5, 5.1 (the section), 6, 7 (default: all)")
    verb.add_argument("--markdown", metavar="FILE", help="also write them between this file's <!-- tables --> markers")
    verb.add_argument("--plots", metavar="DIR", help="also draw figures 1 and 5 there (needs matplotlib)")
    add_json(verb)


def _paper(given: argparse.Namespace) -> int:
    from mnv2det.paper import document as paper

    found = {}
    for key, group in paper.tables(paper.choose(given.tables)):
        found[key] = group
        print(paper.as_text(group), flush=True)
    if given.markdown:
        paper.write_document(given.markdown, found)
        print(f"tables -> {given.markdown}")
    if given.plots:
        print(f"figures -> {', '.join(str(file) for file in paper.draw(given.plots))}")
    write_json_file(given, paper.as_json(found))
    return 0
