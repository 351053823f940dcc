"""Finding out what a folder of pictures and labels holds."""

from __future__ import annotations

import os

from mnv2det.errors import ConfigError, DataError, near
from mnv2det.labels.base import LabelFormat, Recognised, Tree
from mnv2det.registry import LABELS

# whatever holds boxes also has pictures in folders: these are looked for only where nothing else is
LAST = ("masks", "folders")


def recognise(folder: str | os.PathLike[str], name: str | None = None) -> Recognised:
    """What a folder holds.

    Args:
        folder: The folder.
        name: The label format that it is; None looks for all of them.

    Raises:
        ConfigError: There is no label format of that name.
        DataError: It holds none of them, or more than one.
    """
    if name is not None and name not in LABELS.names():
        raise ConfigError(
            f"label format '{name}': expected one of {', '.join(LABELS.names())}{near(name, LABELS.names())}"
        )
    tree = Tree(folder)
    if name is not None:
        answer = _format(name).recognise(tree)
        if isinstance(answer, str):
            raise DataError(f"{folder}: not in the format {name}: {answer}; expected {_format(name).expected}")
        return answer
    lacking: dict[str, str] = {}
    for names in ([name for name in LABELS.names() if name not in LAST], *([name] for name in LAST)):
        answers = {name: _format(name).recognise(tree) for name in names if name in LABELS.names()}
        found = [answer for answer in answers.values() if isinstance(answer, Recognised)]
        lacking |= {name: answer for name, answer in answers.items() if isinstance(answer, str)}
        if len(found) > 1:
            seen = "; ".join(f"{answer.format} ({answer.about})" for answer in found)
            raise DataError(f"{folder}: labels in more than one format: {seen}; choose one with --format")
        if found:
            return found[0]
    seen = f"{len(tree.pictures)} pictures among {len(tree.files)} files"
    reasons = "; ".join(f"{name}: {reason}" for name, reason in lacking.items())
    raise DataError(f"{folder}: no labels recognised in {seen}; expected one of these formats: {reasons}")


def _format(name: str) -> LabelFormat:
    label_format: LabelFormat = LABELS.get(name)()
    return label_format
