"""What a format reads: pictures, boxes, class names, and everything that is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnv2det.data.classes import ClassIssue
from mnv2det.data.formats.problems import Problem, quoted


class Picture(NamedTuple):
    """One image of a data set.

    Attributes:
        id: The data set's own identifier.
        file: Its path below `Records.folder`; empty where no file may be read.
        size: (H, W) in pixels as its annotation states it; None where it states none.
        mask: Path of its mask (a PNG of class ids) below `Records.folder`; empty without one.
        annotation: Path of its own annotation file below `Records.folder`; empty without one.
        boxed: Whether it is annotated with boxes, be it with none.
        label: Class of the whole picture, an index into ``classes["label"]``; -1 without one.
        entry: Position in the file that lists it, for a cleaned copy.
    """

    id: int | str
    file: str
    size: tuple[int, int] | None = None
    mask: str = ""
    annotation: str = ""
    boxed: bool = True
    label: int = -1
    entry: int = -1


class Box(NamedTuple):
    """One annotated box of four finite numbers; whether it has an area and lies in its picture is judged later.

    Attributes:
        image: Index of its picture.
        name: Its class.
        corners: xyxy in pixels as docs/conventions.md has them, but not clipped to the picture.
        stated: The four numbers of the file; None where they are ``corners``.
        ignore: Whether it is neither learned nor penalised (COCO's crowds, VOC's difficult objects).
        area: Square pixels of the object; nan takes the area of the clipped box.
        id: The annotation's id; None for its number in its file from 1.
        position: Its position in its file, from 0.
        runs: COCO's compressed run lengths of its segmentation; empty where no mask is painted.
        pixels: Number of pixels inside the segmentation.
        problems_before: How many problems were reported before it, which keeps the reading order.
    """

    image: int
    name: str
    corners: Sequence[float]
    stated: Sequence[float] | None = None
    ignore: bool = False
    area: float = math.nan
    id: int | str | None = None
    position: int = 0
    runs: bytes = b""
    pixels: int = 0
    problems_before: int = 0


@dataclass
class Boxes:
    """Boxes of a whole data set in flat arrays; see `Box`.

    Attributes:
        image: int64 (N,).
        label: int64 (N,), index into ``names``.
        names: Class names in the order of their first box.
        corners: float64 (N, 4).
        stated: float64 (N, 4).
        ignore: bool (N,).
        area: float64 (N,).
        ids: N ids.
        position: int64 (N,).
        runs: N strings of bytes.
        pixels: int64 (N,).
        problems_before: int64 (N,).
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    names: list[str]
    corners: NDArray[np.float64]
    stated: NDArray[np.float64]
    ignore: NDArray[np.bool_]
    area: NDArray[np.float64]
    ids: Sequence[int | str]
    position: NDArray[np.int64]
    runs: Sequence[bytes]
    pixels: NDArray[np.int64]
    problems_before: NDArray[np.int64]

    @staticmethod
    def collect(boxes: Sequence[Box]) -> Boxes:
        """Boxes that were read one by one."""
        numbers: dict[str, int] = {}
        return Boxes(
            image=np.array([box.image for box in boxes], np.int64),
            label=np.array([numbers.setdefault(box.name, len(numbers)) for box in boxes], np.int64),
            names=list(numbers),
            corners=np.array([box.corners for box in boxes], np.float64).reshape(-1, 4),
            stated=np.array([box.stated or box.corners for box in boxes], np.float64).reshape(-1, 4),
            ignore=np.array([box.ignore for box in boxes], np.bool_),
            area=np.array([box.area for box in boxes], np.float64),
            ids=[box.position + 1 if box.id is None else box.id for box in boxes],
            position=np.array([box.position for box in boxes], np.int64),
            runs=[box.runs for box in boxes],
            pixels=np.array([box.pixels for box in boxes], np.int64),
            problems_before=np.array([box.problems_before for box in boxes], np.int64),
        )

    def __len__(self) -> int:
        return len(self.image)

    def rows(self, chosen: NDArray[np.int64]) -> Boxes:
        """Some of the boxes: int64 (n,), their rows."""
        arrays: dict[str, Any] = {
            key: value[chosen] for key, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        ids, runs = [self.ids[row] for row in chosen], [self.runs[row] for row in chosen]
        return replace(self, ids=ids, runs=runs, **arrays)

    def labels_in(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Each box's index in a class list: int64 (N,), -1 where the list lacks its class."""
        numbers = {name: number for number, name in enumerate(names)}
        table = np.array([numbers.get(name, -1) for name in self.names], np.int64)
        return table[self.label]


class ClippedBoxes(NamedTuple):
    """Boxes as training gets them, and why some cannot be trained on.

    Attributes:
        corners: float32 (N, 4), xyxy, clipped to their pictures.
        no_area: bool (N,): they have no area, or lose it in float32.
        outside: bool (N,): they lie outside their picture.
    """

    corners: NDArray[np.float32]
    no_area: NDArray[np.bool_]
    outside: NDArray[np.bool_]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Bool (N,): which can be trained on."""
        return ~(self.no_area | self.outside)


def clip_boxes(corners: NDArray[np.float64], sizes: NDArray[np.int64]) -> ClippedBoxes:
    """Makes boxes valid or says why they are not; the only place where any format's boxes are judged.

    A box has to keep its area in float32 both in pixels and divided by the picture's size, since
    augmentations compute in either.

    Args:
        corners: float64 (N, 4), xyxy in pixels.
        sizes: int64 (N, 2), (H, W) of each box's picture; 0 where it is not known.
    """
    limit = np.where(sizes > 0, sizes, np.inf)[:, ::-1]
    empty = ~_has_area(corners)
    low, high = np.maximum(corners[:, :2], 0), np.minimum(corners[:, 2:], limit)
    inside = np.hstack([low, high])
    outside = ~empty & ~_has_area(inside)
    clipped = inside.astype(np.float32)
    sides = np.where(sizes > 0, sizes, 1)[:, [1, 0, 1, 0]].astype(np.float32)
    share: NDArray[np.float32] = clipped / sides
    keeps_area = _has_area(clipped) & _has_area(share)
    return ClippedBoxes(clipped, empty | (~outside & ~keeps_area), outside)


def _has_area(corners: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Bool (N,): which boxes xyxy have an area; none with nan has."""
    wide: NDArray[np.bool_] = corners[:, 0] < corners[:, 2]
    high: NDArray[np.bool_] = corners[:, 1] < corners[:, 3]
    return wide & high


@dataclass
class Records:
    """One part of a data set as its format reads it; whoever trains or checks goes on from here.

    Attributes:
        folder: Folder that the files of `Picture` are relative to.
        where: What was read, for messages.
        about: What was recognised, one line for reports.
        files: The files that list the images.
        picture_folders: Folders in which pictures without an entry are looked for.
        classes: Class names by target key: ``labels`` (of boxes), ``mask``, ``label`` (of whole pictures).
        pictures: All images.
        problems: All that is wrong, in reading order, apart from boxes that `box_problems` judges.
        ignored_as: What ignored boxes are called: ``crowd`` or ``difficult``.
        box_place: How messages name a box, with ``{id}``, ``{image}``, ``{name}``, ``{numbers}``, ``{box}``.
        mask_ids: For masks painted from the boxes' ``runs``: each box class's id in the mask.
        category_ids: COCO's id of each class in ``classes["labels"]``, -1 for a class without one.
    """

    folder: Path
    where: str
    about: str
    files: list[Path] = field(default_factory=list)
    picture_folders: list[Path] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored_as: str = "crowd"
    box_place: str = "annotation {id}: box {numbers}"
    mask_ids: list[int] | None = None
    category_ids: list[int | str] | None = None
    _added: list[Box] = field(default_factory=list)

    @cached_property
    def boxes(self) -> Boxes:
        """All boxes; none can be added afterwards."""
        return Boxes.collect(self._added)

    def add_box(self, box: Box) -> None:
        """Adds a box behind the problems that were reported so far."""
        self._added.append(box._replace(problems_before=len(self.problems)))

    def add_problem(
        self,
        kind: str,
        file: Path,
        what: str,
        *,
        where: str = "",
        place: str = "",
        value: str = "",
        expected: str = "",
        index: int = -1,
        image: int | str | None = None,
        annotation: int | str | None = None,
        position: int = -1,
        fatal: bool = False,
    ) -> None:
        """Reports a problem; its message is ``WHERE: PLACE: WHAT``.

        ``where`` is the file by default, ``value`` is ``what``, and ``image`` the id of the picture ``index``; see
        `Problem` for the other arguments.
        """
        message = ": ".join(text for text in (where or str(file), place, what) if text)
        if image is None and 0 <= index < len(self.pictures):
            image = self.pictures[index].id
        self.problems.append(
            Problem(kind, message, file, value or what, expected, image, annotation, index, position, fatal)
        )

    def add_class_issues(self, issues: Iterable[ClassIssue], file: Path) -> None:
        """Reports what is wrong with a class list; nothing can be trained with a wrong one."""
        for issue in issues:
            value = quoted(issue.name) if issue.name else issue.what
            self.problems.append(Problem(issue.kind, issue.message, file, value, issue.expected, fatal=True))

    def add_unknown_classes(self, issues: Iterable[ClassIssue], what: str) -> None:
        """Reports every box whose class one of the issues says is unknown.

        Args:
            issues: What is wrong with the class list; only unknown classes matter here.
            what: What messages call a box: ``object`` or ``box``.
        """
        unknown = {issue.name: issue for issue in issues if issue.kind == "class_unknown"}
        boxes = self.boxes
        for row, label in enumerate(boxes.label.tolist()) if unknown else ():
            if (issue := unknown.get(boxes.names[label])) is not None:
                self.add_problem(
                    "class_unknown",
                    self.box_file(row),
                    issue.what,
                    place=f"{what} {boxes.ids[row]}",
                    value=quoted(issue.name),
                    expected=issue.expected,
                    index=int(boxes.image[row]),
                    annotation=boxes.ids[row],
                    position=int(boxes.position[row]),
                    fatal=True,
                )

    def path(self, below: str) -> Path:
        """A file of a picture."""
        return self.folder / below

    def sizes(self) -> NDArray[np.int64]:
        """int64 (P, 2): (H, W) of every picture as stated; 0 where it is not."""
        return np.array([picture.size or (0, 0) for picture in self.pictures], np.int64).reshape(-1, 2)

    def clipped(self, sizes: NDArray[np.int64]) -> ClippedBoxes:
        """All boxes clipped to pictures of these sizes, int64 (P, 2)."""
        return clip_boxes(self.boxes.corners, sizes[self.boxes.image])

    def box_text(self, row: int) -> str:
        """A box as its file has it: class and four numbers."""
        numbers = ", ".join(f"{value:g}" for value in self.boxes.stated[row])
        return f"{quoted(self.boxes.names[self.boxes.label[row]])} [{numbers}]"

    def box_file(self, row: int) -> Path:
        """The file that a box is annotated in."""
        own = self.pictures[self.boxes.image[row]].annotation
        return self.path(own) if own or not self.files else self.files[0]

    def box_problems(self, sizes: NDArray[np.int64]) -> list[tuple[int, Problem]]:
        """Row and problem of every box that cannot be trained on, in pictures of these sizes, int64 (P, 2)."""
        clipped = self.clipped(sizes)
        problems = []
        for row in np.flatnonzero(~clipped.valid).tolist():
            index = int(self.boxes.image[row])
            stated = self.boxes.stated[row].tolist()
            place = self.box_place.format(
                id=self.boxes.ids[row],
                image=self.pictures[index].id,
                name=self.boxes.names[self.boxes.label[row]],
                numbers=" ".join(f"{value:g}" for value in stated),
                box=stated,
            )
            size = f"{sizes[index][1]}x{sizes[index][0]}"
            kind, what, expected = "box_no_area", "has no area", "a box with area"
            if clipped.outside[row]:
                kind, what, expected = "box_outside", f"lies outside the {size} image", f"a box inside {size}"
            file, image = self.box_file(row), self.pictures[index].id
            message, position = f"{file}: {place} {what}", int(self.boxes.position[row])
            value, annotation = self.box_text(row), self.boxes.ids[row]
            problem = Problem(kind, message, file, value, expected, image, annotation, index, position)
            problems.append((row, problem))
        return problems

    def all_problems(self) -> list[Problem]:
        """All problems in reading order, boxes judged by the stated sizes."""
        order = [(number, 1, problem) for number, problem in enumerate(self.problems)]
        order += [(int(self.boxes.problems_before[row]), 0, p) for row, p in self.box_problems(self.sizes())]
        return [problem for _, _, problem in sorted(order, key=lambda entry: entry[:2])]

    def kept(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which pictures, bool (P,), and boxes, bool (N,), no error names."""
        errors = [p for p in self.all_problems() if p.severity == "error" and p.index >= 0]
        pictures = np.ones(len(self.pictures), np.bool_)
        pictures[[p.index for p in errors if p.position < 0]] = False
        wrong = {(p.index, p.position) for p in errors if p.position >= 0}
        rows = pictures[self.boxes.image]
        if wrong:
            pairs = zip(self.boxes.image.tolist(), self.boxes.position.tolist(), strict=True)
            rows &= np.array([pair not in wrong for pair in pairs], np.bool_)
        return pictures, rows

    def select(self, chosen: NDArray[np.bool_]) -> None:
        """Leaves out pictures that are not wanted, with their boxes; the rest is numbered anew."""
        number = np.where(chosen, np.cumsum(chosen) - 1, -1)
        boxes = self.boxes.rows(np.flatnonzero(chosen[self.boxes.image]))
        boxes.image = number[boxes.image]
        self.pictures = [picture for picture, wanted in zip(self.pictures, chosen, strict=True) if wanted]
        self.boxes = boxes
        self.problems = [replace(p, index=int(number[p.index]) if p.index >= 0 else -1) for p in self.problems]
