"""What a check knows of one part of a data set, whatever format it was read from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from mnv2det.check.findings import Finding
from mnv2det.data.dataset import Arrays, Dataset
from mnv2det.data.formats.base import Format
from mnv2det.data.formats.problems import Problem, printable
from mnv2det.data.formats.records import Box, Records

Array = NDArray[Any]
Role = Literal["train", "val", "test", "all"]


@dataclass
class Split:
    """One part of a data set.

    Attributes:
        name: As reports call it.
        role: What it is for.
        root: The data folder.
        records: What was read.
        format: What read it; None for a registered data set, whose files the check does not know.
        dataset: That data set.
        mask_names: Classes of the masks; None until they are guessed from the ids.
        mask_guessed: Whether ``mask_names`` is only such a guess.
    """

    name: str
    role: Role
    root: Path
    records: Records
    format: Format | None = None
    dataset: Dataset | None = None
    mask_names: list[str] | None = None
    mask_guessed: bool = False

    def __post_init__(self) -> None:
        self.mask_names = self.records.classes.get("mask")
        self.mask_guessed = self.mask_names is None and self.format is not None

    @property
    def boxed(self) -> bool:
        """Whether there are boxes to look for."""
        return "labels" in self.records.classes

    @property
    def about(self) -> str:
        """What was read, one line with paths relative to the data folder."""
        return printable(self.records.about.replace(f"{self.root}{os.sep}", ""))

    @property
    def listing(self) -> str:
        """The file that lists the images, relative to the data folder; empty where there is none."""
        return relative(self.records.files[0], self.root) if self.records.files else ""

    def picture_name(self, index: int) -> str:
        """A picture's file relative to the data folder."""
        picture = self.records.pictures[index]
        return relative(self.records.path(picture.file), self.root) if picture.file else self.listing

    def of_picture(self, kind: str, index: int, value: str, expected: str = "") -> Finding:
        """A finding that concerns a whole picture."""
        picture = self.records.pictures[index]
        return Finding(kind, self.name, self.picture_name(index), value, expected, image=picture.id, index=index)

    def of_box(self, kind: str, row: int, value: str, expected: str = "") -> Finding:
        """A finding that concerns a box."""
        boxes = self.records.boxes
        index = int(boxes.image[row])
        own = self.records.pictures[index].annotation
        return Finding(
            kind,
            self.name,
            relative(self.records.path(own), self.root) if own else self.picture_name(index),
            value,
            expected,
            image=self.records.pictures[index].id,
            annotation=boxes.ids[row],
            index=index,
            position=int(boxes.position[row]),
        )

    def of_problem(self, problem: Problem) -> Finding:
        """A problem that the format reported; its picture stands for a file that lists all images."""
        index, file = problem.index, relative(problem.file, self.root)
        if index >= 0 and problem.file in self.records.files:
            file = self.picture_name(index)
        return Finding(
            problem.kind,
            self.name,
            file,
            problem.value,
            problem.expected,
            image=problem.image,
            annotation=problem.annotation,
            index=index,
            position=problem.position,
        )

    def take_targets(self, targets: Sequence[Arrays | None]) -> None:
        """Sets the boxes of a data set that was read through itself."""
        names = self.records.classes.get("labels", [])
        for index, target in enumerate(targets):
            if not target or "boxes" not in target:
                continue
            rows = zip(target["boxes"].tolist(), target["labels"].tolist(), target["ignore"].tolist(), strict=True)
            for position, (box, label, ignore) in enumerate(rows):
                self.records.add_box(Box(index, names[label], box, ignore=ignore, position=position))


def relative(path: Path, root: Path) -> str:
    """A path below the data folder as reports state it: with slashes, and printable."""
    below = path.relative_to(root) if path.is_relative_to(root) else path
    return printable(below.as_posix())


def leaves(path: Path, folder: str) -> bool:
    """Whether a link leads out of a folder.

    Args:
        path: A file in it.
        folder: Resolved, so that the folder itself may be a link.
    """
    try:
        return os.path.commonpath([os.path.realpath(path), folder]) != folder
    except ValueError:  # a name no file can have
        return False


def mask_counts(counts: Sequence[dict[int, int]]) -> dict[int, int]:
    """Pixels of each id over many masks, in the order of the ids."""
    total: dict[int, int] = {}
    for mask in counts:
        for identifier, pixels in mask.items():
            total[identifier] = total.get(identifier, 0) + pixels
    return dict(sorted(total.items()))
