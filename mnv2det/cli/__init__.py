"""The command line: parses arguments, calls the packages that do the work, prints errors as one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mnv2det.cli import completion, data, paper, ship, train, weights
from mnv2det.cli.common import Parser
from mnv2det.errors import Mnv2detError
from mnv2det.version import __version__

EXAMPLES = """examples:
  mnv2det train configs/ssdlite_shapes.yaml
  mnv2det train configs/ssdlite_bccd.yaml data.root=/data train.steps=500 --out runs/cells
  mnv2det train --resume runs/cells
  mnv2det eval runs/cells --json metrics.json
  mnv2det predict runs/cells photo.jpg folder/

exit codes: 0 done, 1 failed, 2 your mistake (one line says which), 130 interrupted and saved"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        arguments: Without the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    _replace_closed_streams()
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    # argparse takes no positional arguments after an option: overrides may stand there
    if rest and not (hasattr(parsed, "overrides") and all("=" in item and item[0] != "-" for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides += rest
    _expand_home(parsed)
    try:
        return int(parsed.run(parsed))
    except Mnv2detError as error:
        print(f"mnv2det: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"mnv2det: {error.filename or ''}: {error.strerror or error}".replace(": :", ":"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mnv2det: interrupted", file=sys.stderr)
        return 130


def _expand_home(parsed: argparse.Namespace) -> None:
    """Replaces a ``~`` at the start of paths, which shells leave as it is within quotes and in ``--out=~/runs``."""
    for name, value in vars(parsed).items():
        if isinstance(value, str):
            setattr(parsed, name, os.path.expanduser(value))
        elif isinstance(value, list) and name != "overrides":
            setattr(parsed, name, [os.path.expanduser(item) if isinstance(item, str) else item for item in value])


def _replace_closed_streams() -> None:
    """Opens the null device in place of standard streams that are closed (``2>&-``) or missing (pythonw).

    Their descriptors are taken, too: otherwise the next file that is opened would get one, and with it whatever a
    library writes to descriptor 2.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is not None and not stream.closed:
            continue
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
        setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115 - until the end


def run() -> None:
    """Entry point of the installed command and of tools/."""
    try:
        try:
            code = main()
        finally:
            # what argparse printed before it left, too
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # piped into head
        code = 1
        # what is left in the buffers would raise the error once more when Python ends
        descriptor = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(descriptor, number)
    sys.exit(code)


def tool(verb: str) -> None:
    """Entry point of tools/VERB.py."""
    sys.argv.insert(1, verb)
    run()


def build_parser() -> argparse.ArgumentParser:
    """All verbs with their arguments."""
    parser = Parser(
        prog="mnv2det",
        description="MobileNetV2 detection, segmentation and classification: train, measure, ship.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mnv2det {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for module in (train, data, ship, weights, paper, completion):
        module.add(verbs)
    return parser
