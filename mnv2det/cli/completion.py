"""The verb that writes completions for a shell."""

from __future__ import annotations

import argparse
from typing import Any

from mnv2det.cli.common import new_verb
from mnv2det.io import import_optional

SHELLS = ("bash", "zsh", "tcsh")


def add(verbs: Any) -> None:
    """Adds it to the command line."""
    verb = new_verb(
        verbs,
        "completion",
        _completion,
        "print a script that lets a shell complete verbs and options",
        examples="""
            mnv2det completion bash > ~/.local/share/bash-completion/completions/mnv2det
            mnv2det completion zsh > ~/.zsh/completions/_mnv2det""",
    )
    verb.add_argument("shell", choices=SHELLS, help=", ".join(SHELLS))


def _completion(args: argparse.Namespace) -> int:
    from mnv2det.cli import build_parser

    print(import_optional("shtab", "completion").complete(build_parser(), shell=args.shell))
    return 0
