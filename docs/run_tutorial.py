#!/usr/bin/env python3
"""Runs the commands of docs/tutorial.md as they are printed there; `make tutorial` calls it.

Each block of ``sh`` runs in one folder, in the order of the page. With ``--update``, the block of ``text`` behind it
becomes what the commands printed, and each picture of the page is made again from the file that the comment behind it
names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

PAGE = Path(__file__).with_name("tutorial.md")
BLOCK = re.compile(r"```sh\n(?P<commands>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]*\]\((?P<figure>figures/[\w.-]+)\) *<!-- (?P<source>\S+) -->")
LONGEST = 24  # lines of output that are shown
WIDTH = 1200  # pixels of a picture


def run(commands: str, folder: Path) -> str:
    """Runs a block of commands.

    Returns:
        What they printed, without the name of the folder.

    Raises:
        SystemExit: One of them failed.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=folder, env={**os.environ, "PATH": path}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"{PAGE.name}: exit code {done.returncode} of\n{commands}{done.stdout}")
    return done.stdout.replace(f"{folder.resolve()}/", "").replace(str(folder.resolve()), ".")


def shown(output: str) -> str:
    """Output as the page shows it: not all of it, where it is long."""
    lines = output.rstrip().splitlines()
    if len(lines) > LONGEST:
        lines = [*lines[: LONGEST - 1], f"... ({len(lines) - LONGEST + 1} more lines)"]
    return "".join(f"{line[:118].rstrip()}\n" for line in lines)


def main() -> None:
    """Runs the page, and updates it on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder to run in: holds the pictures and weights that the page names")
    parser.add_argument("--update", action="store_true", help="write output and pictures into the page")
    given = parser.parse_args()
    work = given.work.resolve()
    for name in ("cells", "street", "weights"):
        if not (work / name).is_dir():
            sys.exit(f"{given.work}: no folder {name} in it; {PAGE.name} says what it holds")
    # an interrupted run goes on behind the last block that was completed
    record = work / "done.json"
    done: list[list[str]] = json.loads(record.read_text()) if record.is_file() else []
    number = 0

    def again(block: re.Match[str]) -> str:
        nonlocal number
        commands = block["commands"]
        print(commands, end="", flush=True)
        if [known for known, _ in done[number : number + 1]] != [commands]:
            done[number:] = [[commands, run(commands, work)]]
            record.write_text(json.dumps(done))
        output = done[number][1]
        number += 1
        print(output, end="", flush=True)
        end = f"```sh\n{commands}```\n"
        return end if block["output"] is None else f"{end}\n```text\n{shown(output)}```\n"

    new = BLOCK.sub(again, PAGE.read_text())
    record.unlink()
    if not given.update:
        return
    PAGE.write_text(new)
    for picture in PICTURE.finditer(new):
        image = Image.open(work / picture["source"]).convert("RGB")
        image.thumbnail((WIDTH, 4 * WIDTH))
        image.save(PAGE.parent / picture["figure"], quality=85)


if __name__ == "__main__":
    main()
