"""The contract of a label format: how files of labelling tools are recognised, read and written."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from PIL import Image

from mnv2det.data.formats.base import Format
from mnv2det.data.images import DAMAGED, EXTENSIONS, is_hidden
from mnv2det.errors import DataError

Role = Literal["train", "val", "test", "all"]
# what a split is called, by the words of its file or folder
ROLES: dict[str, Role] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
ORIENTATION = 0x0112  # EXIF's number for it


class Part(NamedTuple):
    """One split of a data set: its name in reports, what it is for, and how it is read."""

    name: str
    role: Role
    format: Format


class Remark(NamedTuple):
    """What was left aside: its kind (see `mnv2det.check.findings.KINDS`), the file, what, and what is expected."""

    kind: str
    file: str
    what: str
    expected: str = ""


@dataclass
class Recognised:
    """What a label format found in a folder.

    Attributes:
        format: Name of the label format.
        about: What was seen, one line.
        parts: The splits; a single one with role ``all`` where the folder has no splits.
        remarks: What was left aside.
    """

    format: str
    about: str
    parts: list[Part]
    remarks: list[Remark] = field(default_factory=list)


class Tree:
    """All files below a folder, listed once, without hidden and system files.

    Args:
        root: The folder.

    Attributes:
        root: The folder.
        files: Paths below it with forward slashes, sorted.
        pictures: Those of them that are pictures, by suffix.

    Raises:
        DataError: There is no such folder.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder")
        files = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            below = os.path.relpath(folder, self.root).replace(os.sep, "/")
            prefix = "" if below == "." else f"{below}/"
            files += [prefix + name for name in names if not is_hidden(name)]
        self.files = sorted(files)
        self.pictures = [file for file in self.files if os.path.splitext(file)[1].lower() in EXTENSIONS]

    def with_suffix(self, *suffixes: str) -> list[str]:
        """The files with one of these suffixes, in lower case with their dots."""
        return [file for file in self.files if os.path.splitext(file)[1].lower() in suffixes]

    def path(self, below: str) -> Path:
        """A file as a path that can be opened."""
        return self.root / below


class LabelledBox(NamedTuple):
    """A box to be written.

    Attributes:
        name: Its class.
        corners: xyxy in pixels as docs/conventions.md has them, inside the picture.
        ignore: Whether it is neither learned nor penalised (COCO's crowds, VOC's difficult objects).
        area: Square pixels of the object.
        runs: COCO's compressed run lengths of its segmentation; empty without one.
    """

    name: str
    corners: tuple[float, float, float, float]
    ignore: bool = False
    area: float = 0.0
    runs: bytes = b""


class LabelledPicture(NamedTuple):
    """A picture to be written with its labels.

    Attributes:
        source: The file as it is.
        name: Its path in the written data set, with forward slashes; it keeps its suffix.
        size: (H, W) in pixels, upright.
        boxes: Its boxes.
        mask: A PNG of class ids, None without one.
        label: Class of the whole picture; empty without one.
    """

    source: Path
    name: str
    size: tuple[int, int]
    boxes: Sequence[LabelledBox] = ()
    mask: Path | None = None
    label: str = ""


@dataclass
class LabelledPart:
    """A split to be written.

    Attributes:
        role: ``train``, ``val`` or ``test``.
        pictures: Its pictures.
        names: Box classes in the order of their ids, the same in every split.
        mask_names: Classes of the masks in the order of their ids; empty without masks.
    """

    role: Role
    pictures: list[LabelledPicture]
    names: list[str]
    mask_names: list[str] = field(default_factory=list)


class Placer:
    """Brings files to where they belong, by copying or linking.

    Args:
        link: Make hard links where the file system can, else copy.
    """

    def __init__(self, *, link: bool = False) -> None:
        self.link = link

    def __call__(self, source: Path, target: Path) -> None:
        """Places one file; folders are made as needed."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.link and hasattr(os, "link"):
            # impossible between file systems, and on those without links
            with contextlib.suppress(OSError):
                os.link(os.path.realpath(source), target)
                return
        shutil.copyfile(source, target)


class LabelFormat(ABC):
    """A way to keep labels that labelling tools write; registered in `mnv2det.registry.LABELS`.

    Attributes:
        expected: What a folder must hold to be recognised, for messages: "YOLO's txt files (...)".
        boxes, masks, labels: Whether it can hold boxes, masks of class ids, and classes of whole pictures.
        outlines: Whether it writes the outlines of boxes that have one.
    """

    expected: ClassVar[str]
    boxes: ClassVar[bool] = True
    masks: ClassVar[bool] = False
    labels: ClassVar[bool] = False
    outlines: ClassVar[bool] = False

    @abstractmethod
    def recognise(self, tree: Tree) -> Recognised | str:
        """What it finds in a folder, or what the folder lacks: "no .txt beside a picture".

        It opens as few files as it can; reading happens in `Part.format.read`.

        Raises:
            DataError: It is this format beyond doubt, and something in it cannot be understood.
        """

    def write(self, parts: Sequence[LabelledPart], target: Path, place: Placer) -> list[str]:
        """Writes a data set in this format.

        Args:
            parts: Its splits.
            target: An empty folder.
            place: Brings a picture to where it belongs: ``place(source, target)``.

        Returns:
            What could not be written, a line for each thing.

        Raises:
            DataError: The format cannot be written.
        """
        raise DataError("this format is only read")


def role_of(path: str) -> Role:
    """What a file is for by a word of its name, or else of the nearest of its folders.

    ``instances_train2017.json`` and ``train_images/a/b.jpg`` are for ``train``; ``all`` where no word says it.
    """
    for name in reversed(os.path.splitext(path)[0].lower().split("/")):
        role = next((ROLES[word] for word in re.findall("[a-z]+", name) if word in ROLES), None)
        if role is not None:
            return role
    return "all"


def picture_size(path: Path) -> tuple[int, int]:
    """(H, W) of a picture from its header, upright as `mnv2det.data.images.read_image` gives it.

    Raises:
        DataError: It is missing or no picture.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            rotated = picture.getexif().get(ORIENTATION) in ROTATED
    except DAMAGED as error:
        raise DataError(f"{path}: cannot read the image's size ({' '.join(str(error).split())[:120]})") from None
    return (width, height) if rotated else (height, width)


def pair_by_stem(pictures: Iterable[str]) -> dict[str, list[str]]:
    """Pictures by their base name without suffix, in lower case."""
    pairs: dict[str, list[str]] = {}
    for file in pictures:
        pairs.setdefault(os.path.splitext(os.path.basename(file))[0].lower(), []).append(file)
    return pairs
