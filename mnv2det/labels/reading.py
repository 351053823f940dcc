"""What the readers of label files share: text with limits, numbers, pictures found by name, class lists."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from mnv2det.data.classes import class_list
from mnv2det.data.formats.problems import shown
from mnv2det.data.formats.records import Picture, Records
from mnv2det.errors import DataError
from mnv2det.labels.base import Role, Tree, picture_size, role_of

LARGEST_TEXT = 256 * 2**20  # bytes
LARGEST_NAMES = 2**20  # bytes of a list of classes
LARGEST_NUMBER = 1e9  # more than any coordinate or class number
TOLERANCE = 1e-3  # by how much rounding may put a share of a side outside 0 ... 1
ROLE_ORDER: tuple[Role, ...] = ("train", "val", "test", "all")  # of splits in reports
UTF16 = (b"\xff\xfe", b"\xfe\xff")


class EntryError(Exception):
    """What is wrong with one line or object of a label file.

    Args:
        kind: Key of `mnv2det.data.formats.problems.KINDS`.
        what: What is wrong and what was expected, without the place.
    """

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """A text file in UTF-8 or UTF-16, with or without a byte order mark.

    Bytes that are no UTF-8 become surrogates, so that only the line that holds them is wrong (`is_text`).

    Args:
        path: The file.
        most: Size in bytes up to which it is read.

    Raises:
        DataError: It is missing, larger than ``most``, or binary.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise DataError(f"{path}: a file of {size} bytes; expected at most {most}")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror})") from None
    text = data.decode("utf-16", "replace") if data[:2] in UTF16 else data.decode("utf-8-sig", "surrogateescape")
    if "\0" in text:
        raise DataError(f"{path}: binary data where text was expected")
    return text


def read_list(path: Path) -> list[str]:
    """The lines of a list of class names, without blank ones.

    Raises:
        DataError: As `read_text`, or a line is in another encoding.
    """
    lines = [line for line in text_lines(read_text(path, LARGEST_NAMES)) if line.strip()]
    if not all(map(is_text, lines)):
        raise DataError(f"{path}: expected class names in UTF-8, one to a line")
    return lines


def read_names(path: Path) -> list[str] | None:
    """Class names, one in each line; None where there are none."""
    return [line.strip() for line in read_list(path)] or None


def text_lines(text: str) -> list[str]:
    """The lines of a text with any line ends, without the empty one behind the last."""
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def is_text(text: str) -> bool:
    """Whether a name can be written again: it is not blank and has no bytes of another encoding in it."""
    return bool(text.strip()) and not any("\ud800" <= letter <= "\udfff" for letter in text)


def parse_number(text: str) -> float:
    """A finite number as text, as programs print it.

    Raises:
        EntryError: It is none, or larger than any coordinate.
    """
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST_NUMBER:
        raise EntryError("box_malformed", f"'{shown(text, 40)}': expected a number")
    return value


def parse_shares(values: Sequence[float]) -> list[float]:
    """Shares of a picture's sides, clipped to 0 ... 1 where only rounding put them outside.

    Raises:
        EntryError: One is further outside.
    """
    for value in values:
        if not -TOLERANCE <= value <= 1 + TOLERANCE:
            raise EntryError("box_outside", f"{value:g}: expected shares of the picture's width and height, 0 ... 1")
    return [min(max(value, 0.0), 1.0) for value in values]


def add_picture(records: Records, file: str, annotation: str) -> int:
    """Adds a picture with the size of its header, or reports that it cannot be read; gives its index.

    Args:
        records: Where it is added.
        file: Its path below the folder of the records.
        annotation: That of its label file; empty without one.
    """
    index = len(records.pictures)
    try:
        size = picture_size(records.path(file))
        records.pictures.append(Picture(file, file, size, annotation=annotation))
    except DataError as error:
        path = records.path(file)
        records.pictures.append(Picture(file, "", annotation=annotation, boxed=False))
        records.add_problem("image_broken", path, str(error).removeprefix(f"{path}: "), index=index)
    return index


def set_classes(records: Records, listed: Sequence[str] | None, names: Sequence[str] | None, *, needed: bool) -> None:
    """Sets the class list of the boxes; a box of a class that it lacks is a problem of that box.

    Args:
        records: All boxes are added.
        listed: The classes that the files list, in the order of their ids; None takes those of the boxes, sorted.
        names: Class list to hold to; None takes the one of the files.
        needed: Whether it is an error that there is no class.
    """
    boxes, kept = records.boxes, records.kept()[1]
    if listed is None:
        labels = boxes.label[kept] if kept.any() else boxes.label
        listed = sorted({boxes.names[label] for label in labels.tolist()})
    file = records.files[0] if records.files else records.folder
    records.classes["labels"], issues = class_list(listed, names, where=records.where)
    if listed or names or needed:
        records.add_class_issues([issue for issue in issues if issue.kind != "class_unknown"], file)
    records.add_unknown_classes(issues, "box")


def free_name(name: str, taken: set[str]) -> str:
    """A picture's name that differs from all others in more than its suffix, so that its label file is its own.

    Args:
        name: As it is, with its suffix.
        taken: Names in small letters, without suffixes, of the pictures before; the new one is added.
    """
    stem, suffix = os.path.splitext(name)
    while stem.lower() in taken:
        stem += suffix.replace(".", "_") or "_"
    taken.add(stem.lower())
    return stem + suffix


class PictureFinder:
    """Finds the pictures of a folder by the paths that label files state, which may be those of another machine.

    Args:
        tree: The folder.
    """

    def __init__(self, tree: Tree) -> None:
        self._files = set(tree.pictures)
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for file in tree.pictures:
            name = os.path.basename(file).lower()
            self._by_name.setdefault(name, []).append(file)
            self._by_stem.setdefault(os.path.splitext(name)[0], []).append(file)

    def beside(self, stated: str, folder: str = "") -> str:
        """The picture at a path relative to a folder of the tree; empty where there is none."""
        path = os.path.normpath(f"{folder}/{_slashed(stated)}".lstrip("/"))
        return path if path in self._files else ""

    def of_stem(self, path: str) -> str:
        """The only picture at a path without suffix; empty where there is none, or more than one."""
        files = self._by_stem.get(os.path.basename(path).lower(), [])
        beside = [file for file in files if os.path.splitext(file)[0].lower() == path.lower()]
        return beside[0] if len(beside) == 1 else ""

    def find(self, stated: str, folder: str = "", *, stem: bool = False) -> str:
        """The picture that is meant by a path: at that path, or else the one whose path shares most of its end.

        Args:
            stated: A path with slashes of either kind.
            folder: Where the file that states it lies, below the tree's root.
            stem: Whether it is stated without its suffix.

        Raises:
            EntryError: There is none, or more than one fits.
        """
        if not stem and (path := self.beside(stated, folder) or self.beside(stated)):
            return path
        names = [name for name in _slashed(stated).split("/") if name not in ("", ".", "..")]
        known = self._by_stem if stem else self._by_name
        candidates = known.get(names[-1].lower(), []) if names else []
        for start in range(len(names)):
            end = "/" + "/".join(names[start:]).lower()
            fitting = [file for file in candidates if _ends(f"/{file}".lower(), end, stem)]
            if fitting:
                return _only(stated, fitting)
        raise EntryError("annotation_orphan", f"no picture '{shown(stated)}' in the folder")


def _ends(file: str, end: str, stem: bool) -> bool:
    return (os.path.splitext(file)[0] if stem else file).endswith(end)


def _only(stated: str, fitting: Sequence[str]) -> str:
    exact = [file for file in fitting if f"/{file}".endswith(f"/{os.path.basename(_slashed(stated))}")]
    fitting = exact if len(exact) == 1 else fitting
    if len(fitting) > 1:
        what = f"{len(fitting)} pictures are called '{shown(stated)}', such as {fitting[0]} and {fitting[1]}"
        raise EntryError("annotation_orphan", what)
    roles: set[Role] = {role_of(_slashed(stated)), role_of(fitting[0])} - {"all"}
    # val/0001.jpg is not train/0001.jpg
    if len(roles) > 1:
        raise EntryError("annotation_orphan", f"no picture '{shown(stated)}' in the folder, but {fitting[0]}")
    return fitting[0]


def _slashed(path: str) -> str:
    return path.replace("\\", "/")
