"""Class names from a text file, for networks whose own files hold none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mnv2det.errors import WeightsError

BACKGROUND = "background"  # class 0 of the releases with 1001 classes


def default_names(count: int, known: Sequence[str] = ()) -> list[str]:
    """The names of a known data set if it has as many classes, else numbers."""
    return list(known) if count == len(known) else [str(number) for number in range(count)]


def read_labels(path: str | os.PathLike[str], count: int, *, private_background: bool = False) -> list[str]:
    """Reads class names, one per line; blank lines at the end do not count.

    A first name ``background`` is added or dropped so that as many names are left as the network has outputs.

    Args:
        path: A text file in UTF-8.
        count: The number of classes.
        private_background: Whether the network has one more output, a background that is none of its classes.

    Returns:
        As many names as there are classes.

    Raises:
        WeightsError: The file cannot be read, has a blank line between names, or another number of names.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise WeightsError(f"{path}: cannot read the label file ({reason})") from None
    if "" in names:
        raise WeightsError(f"{path}: line {names.index('') + 1} is blank, expected a class name")
    stated, outputs = len(names), count + private_background
    if stated == outputs - 1 and names[:1] != [BACKGROUND]:
        names = [BACKGROUND, *names]
    elif stated == outputs + 1 and names[:1] == [BACKGROUND]:
        names = names[1:]
    if len(names) != outputs:
        raise WeightsError(f"{path}: {stated} class names, but the network has {outputs} outputs")
    if not private_background:
        return names
    if names[0] != BACKGROUND:
        raise WeightsError(f"{path}: {len(names)} class names, but the network has {count} classes")
    return names[1:]
