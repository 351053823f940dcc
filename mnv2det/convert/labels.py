"""Class names from a text file, for networks whose own files hold none."""

from __future__ import annotations

import os
from pathlib import Path

from mnv2det.errors import WeightsError

BACKGROUND = "background"  # class 0 of the releases with 1001 classes


def read_labels(path: str | os.PathLike[str], count: int) -> list[str]:
    """Class names, one per line; blank lines at the end do not count.

    Args:
        path: A text file in UTF-8.
        count: How many classes there are. A missing background class is put first, a superfluous
            one dropped.

    Raises:
        WeightsError: The file cannot be read, has a blank line between names, or other than
            ``count`` names.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise WeightsError(f"{path}: cannot read the label file ({reason})") from None
    if "" in names:
        raise WeightsError(f"{path}: line {names.index('') + 1} is blank, expected a class name")
    found, first_is_background = len(names), names[:1] == [BACKGROUND]
    if found == count - 1 and not first_is_background:
        names = [BACKGROUND, *names]
    elif found == count + 1 and first_is_background:
        names = names[1:]
    if len(names) != count:
        raise WeightsError(f"{path}: {found} class names, but the network has {count} outputs")
    return names
