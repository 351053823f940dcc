"""Class lists: found in the data, or given and then held to."""

from __future__ import annotations

from collections.abc import Sequence

from mnv2det.errors import DataError, near


def class_list(found: Sequence[str], given: Sequence[str] | None, *, where: str) -> list[str]:
    """The class names in the order of their ids.

    Args:
        found: Names in the data, in the order they should have when nothing is given.
        given: Names that models were trained with, or that the config states; None takes ``found``.
        where: File or folder, for messages.

    Raises:
        DataError: A name is empty or twice, or the data has one that ``given`` lacks.
    """
    names = list(found if given is None else given)
    if not names:
        raise DataError(f"{where}: no classes in it")
    for listed in (names, list(found)):
        if len(set(listed)) != len(listed) or not all(listed):
            raise DataError(f"{where}: class names must be different and not empty, got {listed}")
    for name in found:
        if name not in names:
            raise DataError(f"{where}: class '{name}' is not among the {len(names)} expected{near(name, names)}")
    return names
