"""What the verbs of the command line have in common."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, NoReturn

from mnv2det.errors import near
from mnv2det.io import write_json

VERBS = ("VERB", "ACTION")  # what a missing name of a verb is called
CHOICE = re.compile(r"(.*invalid choice: '(.*)') \(choose from (.*)\)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """Shows its help where no verb is named, and the nearest one where it is misspelt."""

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong and exits with 2; without a verb, prints the help and exits with 0."""
        if message.startswith("the following arguments are required") and message.endswith(VERBS):
            self.print_help()
            self.exit(0)
        if match := CHOICE.fullmatch(message):
            message = match[1] + near(match[2], [name.strip("' ") for name in match[3].split(",")])
        super().error(message)


def new_verb(verbs: Any, name: str, run: Any, about: str, *, examples: str, codes: str = "") -> Parser:
    """Adds a verb to the command line.

    Args:
        verbs: What `argparse` returns for subparsers.
        name: Of the verb.
        run: Takes the parsed arguments and returns the exit code.
        about: The verb's line in the list of verbs, without a full stop.
        examples: Command lines, shown below the help.
        codes: What is said below them of exit codes.
    """
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    parser: Parser = verbs.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=f"examples:\n{lines}" + (f"\n\n{codes}" if codes else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """``key=value`` arguments."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the config")


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", metavar="FILE", help="also write the results as JSON to this file")


def is_main_process() -> bool:
    """Whether this is the process that prints and writes, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def print_metrics(metrics: dict[str, float]) -> None:
    """Prints the overall metrics, one to a line, then those per class."""
    depth = max((name.count("/") for name in metrics), default=0)
    for name, value in sorted(metrics.items(), key=lambda item: item[0].count("/") == depth > 1):
        print(f"{name:<32} {'-' if value == -1 else f'{value:.4f}':>8}")


def write_json_file(arguments: argparse.Namespace, data: dict[str, Any]) -> None:
    """Writes the file that ``--json`` names, if it was used."""
    if arguments.json:
        write_json(arguments.json, data)
