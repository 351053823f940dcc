"""Errors of this project: one line that names the place, what was wrong and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Mnv2detError(Exception):
    """Base of every error a user can cause; the command line prints it without a traceback.

    Attributes:
        exit_code: What the command line exits with: 2 for the user's mistake.
        silent: Whether another process prints the same line.
    """

    exit_code = 2
    silent = False


class ConfigError(Mnv2detError):
    """A configuration file, key, value or command-line argument is wrong."""


class DataError(Mnv2detError):
    """An image or annotation file is missing, broken or contradicts itself."""


class WeightsError(Mnv2detError):
    """A weight or checkpoint file is missing, broken or does not fit the model."""


class TrainingError(Mnv2detError):
    """A run failed for a reason found while training (a non-finite loss, a full disk, a dead worker)."""

    exit_code = 1


def near(name: str, options: Iterable[str]) -> str:
    """Says which option a wrong name probably meant.

    Args:
        name: What was given.
        options: What would have been accepted.

    Returns:
        ``"; did you mean 'x'?"`` when one is close, else ``"; expected one of a, b, c"``.
    """
    known = sorted(options)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if match:
        return f"; did you mean '{match[0]}'?"
    return f"; expected one of {', '.join(known)}" if known else ""
