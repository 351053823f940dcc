"""Counts files and lines of code by room, which is a folder: python benchmarks/code_size.py [FOLDER].

A line of code is one that holds a token which is neither a comment nor part of a docstring; blank lines do not count.
Names a second folder, such as another checkout's mnv2det/, to see both side by side.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections import defaultdict
from pathlib import Path

SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Lines of code of one file."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def measure(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """By room, the lines of code and the name of each of its files."""
    rooms: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for path in sorted(folder.rglob("*.py")):
        below = path.relative_to(folder)
        room = f"{below.parent.as_posix()}/" if len(below.parts) > 1 else "(top level)"
        rooms[room].append((code_lines(path.read_text("utf-8")), below.as_posix()))
    return rooms


def main() -> None:
    """Prints a Markdown table for each folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", default=["mnv2det"], metavar="FOLDER", help="default: mnv2det")
    for name in parser.parse_args().folders:
        rooms = measure(Path(name))
        print(f"| {name} | files | code lines | longest file (code lines) |\n|---|---|---|---|")
        for room, files in sorted(rooms.items(), key=lambda item: -sum(count for count, _ in item[1])):
            longest = max(files)
            total = sum(count for count, _ in files)
            print(f"| `{room}` | {len(files)} | {total} | `{longest[1].split('/', 1)[-1]}` {longest[0]} |")
        every = [entry for files in rooms.values() for entry in files]
        longest = max(every)
        print(f"| all | {len(every)} | {sum(count for count, _ in every)} | `{longest[1]}` {longest[0]} |\n")


if __name__ == "__main__":
    main()
