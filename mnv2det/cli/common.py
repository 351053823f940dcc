"""What the verbs have in common."""

from __future__ import annotations

import argparse
import os
from typing import Any

from mnv2det.io import write_json


def new_verb(verbs: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    """A verb's own parser; ``about`` is its line in the list of verbs."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
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
    parser.add_argument("--json", metavar="FILE", help="also write the metrics to this file")


def speaks() -> bool:
    """Whether this is the one of torchrun's processes that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def print_metrics(metrics: dict[str, float]) -> None:
    """Main metrics one to a line, then those per class."""
    depth = max((name.count("/") for name in metrics), default=0)
    for name, value in sorted(metrics.items(), key=lambda item: item[0].count("/") == depth > 1):
        print(f"{name:<32} {'-' if value == -1 else f'{value:.4f}':>8}")


def write_json_file(given: argparse.Namespace, data: dict[str, Any]) -> None:
    """Writes ``--json``, if it was given."""
    if given.json:
        write_json(given.json, data)
