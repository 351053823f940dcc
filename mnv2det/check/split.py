"""What a check knows of one part of a data set, whatever format it was read from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnv2det.check.findings import Finding, printable, shown
from mnv2det.data.dataset import Arrays, Dataset

Array = NDArray[Any]
Role = Literal["train", "val", "test", "all"]


class CocoPart(NamedTuple):
    """A COCO-style json and the folder its file names are relative to.

    Attributes:
        json: The annotations.
        images: The folder.
        names: Class list to hold to; None takes the json's categories.
        masks: Whether segmentations are needed.
        mask_classes: Names of the categories whose they are; None: of all.
    """

    json: Path
    images: Path
    names: Sequence[str] | None = None
    masks: bool = False
    mask_classes: frozenset[str] | None = None


class VocList(NamedTuple):
    """A list of images in VOC's layout.

    Attributes:
        home: Folder with JPEGImages.
        file: The list; None lists every picture.
        boxes: Whether every image needs an xml, or may have one; None reads none.
        masks: Likewise of masks.
    """

    home: Path
    file: Path | None
    boxes: Literal["required", "optional"] | None
    masks: Literal["required", "optional"] | None


class VocPart(NamedTuple):
    """Lists in VOC's layout that make one part.

    Attributes:
        lists: In order.
        suffix: Of the pictures.
        mask_folder: Of the masks.
        names: Class list to hold boxes to; None takes the names found.
        mask_classes: Number of mask classes; None looks what ids there are.
    """

    lists: tuple[VocList, ...]
    suffix: str = ".jpg"
    mask_folder: str = "SegmentationClass"
    names: Sequence[str] | None = None
    mask_classes: int | None = None


class Picture(NamedTuple):
    """One image as its data set lists it.

    Attributes:
        name: Its path relative to the data folder, for reports.
        id: COCO's number, or the file's stem.
        file: Where it is; None where nothing may be read.
        size: (H, W) as stated; None where that is missing or no size.
        mask: Its mask.
        xml: Its annotation file.
        boxed: Whether it is annotated with boxes, if only with none.
        entry: Place in the json's ``images``.
    """

    name: str
    id: int | str
    file: Path | None
    size: tuple[int, int] | None = None
    mask: Path | None = None
    xml: Path | None = None
    boxed: bool = True
    entry: int = -1


class Row(NamedTuple):
    """One box as its file has it.

    Attributes:
        image: Index of its picture.
        name: Its class.
        stated: The file's four numbers.
        corners: xyxy in pixels, continuous, as in docs/conventions.md, but not clipped.
        empty: Whether the file states no area.
        ignore: Crowd or difficult.
        id: As `Finding.annotation`.
        position: As `Finding.position`.
    """

    image: int
    name: str
    stated: Sequence[float]
    corners: Sequence[float]
    empty: bool
    ignore: bool
    id: int | str
    position: int


class Boxes:
    """Rows of a whole part in flat arrays.

    Attributes:
        image: int64 (N,).
        label: int64 (N,), index into ``names``.
        names: Class names in the order of their first box.
        stated: float64 (N, 4).
        corners: float64 (N, 4).
        empty: bool (N,).
        ignore: bool (N,).
        position: int64 (N,).
        ids: N ids.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        known: dict[str, int] = {}
        self.image = np.array([row.image for row in rows], np.int64)
        self.label = np.array([known.setdefault(row.name, len(known)) for row in rows], np.int64)
        self.names = list(known)
        self.stated = np.array([row.stated for row in rows], np.float64).reshape(-1, 4)
        self.corners = np.array([row.corners for row in rows], np.float64).reshape(-1, 4)
        self.empty = np.array([row.empty for row in rows], np.bool_)
        self.ignore = np.array([row.ignore for row in rows], np.bool_)
        self.position = np.array([row.position for row in rows], np.int64)
        self.ids = [row.id for row in rows]

    def __len__(self) -> int:
        return len(self.image)


@dataclass
class Split:
    """One part of a data set.

    Attributes:
        name: As reports call it.
        role: What it is for.
        root: The data folder.
        part: Where it was read from; None for a data set that has no files the check knows.
        about: What was recognised, one line.
        pictures: All images.
        boxes: All boxes that are four numbers.
        findings: What reading the annotations found.
        names: Class list that the files declare or the config gives; None: what is found.
        mask_names: Of masks; ids beyond them are foreign. None: what is found.
        boxed: Whether there are boxes at all to look for.
        mask_guessed: Whether ``mask_names`` is only a guess from the ids.
        dataset: For a part without files the check knows.
    """

    name: str
    role: Role
    root: Path
    part: CocoPart | VocPart | None
    about: str
    pictures: list[Picture] = field(default_factory=list)
    boxes: Boxes = field(default_factory=lambda: Boxes([]))
    findings: list[Finding] = field(default_factory=list)
    names: list[str] | None = None
    mask_names: list[str] | None = None
    boxed: bool = True
    mask_guessed: bool = False
    dataset: Dataset | None = None

    def take_targets(self, targets: Sequence[Arrays | None]) -> None:
        """Sets the boxes of a data set that was read through itself."""
        rows: list[Row] = []
        names = self.names or []
        for index, target in enumerate(targets):
            if not target or "boxes" not in target:
                continue
            found = zip(target["boxes"].tolist(), target["labels"].tolist(), target["ignore"].tolist(), strict=True)
            for number, (box, label, ignore) in enumerate(found):
                empty = box[0] >= box[2] or box[1] >= box[3]
                rows.append(Row(index, names[label], box, box, empty, ignore, number + 1, number))
        self.boxes = Boxes(rows)

    def find(self, kind: str, file: str, value: str, expected: str = "", **place: Any) -> None:
        """Notes a finding of this part."""
        self.findings.append(Finding(kind, self.name, file, value, expected, **place))

    def of_picture(self, kind: str, index: int, value: str, expected: str = "") -> Finding:
        """A finding that concerns a whole picture."""
        picture = self.pictures[index]
        return Finding(kind, self.name, picture.name, value, expected, image=picture.id, index=index)

    def of_box(self, kind: str, row: int, value: str, expected: str = "") -> Finding:
        """A finding that concerns a box; the file is the annotation's own where each image has one."""
        index = int(self.boxes.image[row])
        picture = self.pictures[index]
        return Finding(
            kind,
            self.name,
            relative(picture.xml, self.root) if picture.xml else picture.name,
            value,
            expected,
            image=picture.id,
            annotation=self.boxes.ids[row],
            index=index,
            position=int(self.boxes.position[row]),
        )

    def box_text(self, row: int) -> str:
        """A box as its file has it: class and four numbers."""
        numbers = ", ".join(f"{value:g}" for value in self.boxes.stated[row])
        return f"{quoted(self.boxes.names[self.boxes.label[row]])} [{numbers}]"


def quoted(name: str) -> str:
    """A class name in quotes, printable and not too long."""
    return f"'{shown(name, 40)}'"


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
    for one in counts:
        for identifier, pixels in one.items():
            total[identifier] = total.get(identifier, 0) + pixels
    return dict(sorted(total.items()))
