"""Class lists: found in the data, or given and then held to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mnv2det.errors import near
from mnv2det.structures import IGNORE


class ClassIssue(NamedTuple):
    """What is wrong with a class list.

    Attributes:
        kind: ``class_broken`` or ``class_unknown``.
        message: One line with the file or folder.
        what: The same without the file.
        name: The class that is not expected; empty for ``class_broken``.
        expected: Which class may be meant, from `meant`.
    """

    kind: str
    message: str
    what: str
    name: str = ""
    expected: str = ""


def class_list(found: Sequence[str], given: Sequence[str] | None, *, where: str) -> tuple[list[str], list[ClassIssue]]:
    """The class names in the order of their ids, and what is wrong with them.

    Args:
        found: Names in the data, in the order they should have when nothing is given.
        given: Names that models were trained with, or that the config states; None takes ``found``.
        where: File or folder, for messages.
    """
    names = list(found if given is None else given)

    def broken(what: str) -> ClassIssue:
        return ClassIssue("class_broken", f"{where}: {what}", what)

    if not names:
        return names, [broken("no classes in it")]
    issues = [
        broken(f"class names must be different and not empty, got {listed}")
        for listed in ([names] if given is None else [names, list(found)])
        if len(set(listed)) != len(listed) or not all(listed)
    ]
    for name in found:
        if name not in names:
            what = f"class '{name}' is not among the {len(names)} expected{near(name, names)}"
            issues.append(ClassIssue("class_unknown", f"{where}: {what}", what, name, meant(name, names)))
    return names, issues


def meant(name: str, names: Iterable[str]) -> str:
    """The class that a wrong name probably means, or all of them; reads on after "expected"."""
    return near(name, names).removeprefix("; expected ").removeprefix("; did you mean ").removesuffix("?")[:200]


def mask_list(found: Sequence[str], given: Sequence[str] | None, *, where: str) -> tuple[list[str], list[ClassIssue]]:
    """`class_list` of masks, whose ids must fit beside 255."""
    names, issues = class_list(found, given, where=where)
    if len(names) > IGNORE:
        what = f"{len(names)} mask classes; at most {IGNORE} fit beside 255 = ignore"
        issues.append(ClassIssue("class_broken", f"{where}: {what}", what))
    return names, issues
