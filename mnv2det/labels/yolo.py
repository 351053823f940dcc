"""YOLO's text files: a line ``class cx cy w h`` for each box, or ``class x1 y1 x2 y2 x3 y3 ...`` for each polygon.

All numbers are shares of the picture's width and height. The formats are described at
docs.ultralytics.com/datasets/detect and /segment, github.com/AlexeyAB/darknet, and in the exports of CVAT, Roboflow,
Label Studio and labelImg. What lies where is found out by `mnv2det.labels.yolo_layout`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mnv2det.data.formats.base import Format
from mnv2det.data.formats.problems import shown
from mnv2det.data.formats.records import Box, Picture, Records
from mnv2det.data.masks import encode
from mnv2det.errors import DataError
from mnv2det.io import evenly_spread
from mnv2det.labels.base import LabelFormat, LabelledPart, LabelledPicture, Part, Placer, Recognised, Remark, Tree
from mnv2det.labels.reading import (
    TOLERANCE,
    EntryError,
    add_picture,
    free_name,
    parse_number,
    parse_shares,
    read_text,
    set_classes,
    text_lines,
)
from mnv2det.labels.yolo_layout import YoloSplit, has_class_list, label_path, pair_labels, read_layout
from mnv2det.registry import LABELS

LARGEST_LABELS = 16 * 2**20  # bytes of the label file of one picture
SAMPLE = 20  # label files that are looked into before a folder is taken for YOLO's
FORMS = "expected 'class cx cy w h', or a class and x y of 3 points or more"


class YoloFiles(Format):
    """Pictures with YOLO's label files; a picture without one has nothing on it.

    Args:
        folder: Folder that all paths are relative to.
        split: The pictures and their label files.
        classes: Class names by number; None calls the classes by their numbers.

    Attributes:
        names: Class list to hold to; None takes ``classes``.
    """

    def __init__(self, folder: Path, split: YoloSplit, classes: Mapping[int, str] | None) -> None:
        self.folder, self.split, self.classes = folder, split, classes
        self.names: Sequence[str] | None = None

    def read(self) -> Records:
        """See `Format.read`; ``stated`` of a box is its line's ``cx cy w h``."""
        split = self.split
        about = f"YOLO's text files, {sum(bool(text) for _, text in split.pairs)} for {len(split.pairs)} pictures"
        folders = sorted({(self.folder / picture).parent for picture, _ in split.pairs})
        where = f"{self.folder} ({split.role})"
        records = Records(self.folder, where, about, [], folders, box_place="line {id}: box {numbers}")
        for picture, text in split.pairs:
            index = add_picture(records, picture, text)
            size = records.pictures[index].size
            if text and size is not None:
                self._read_boxes(records, index, size, self.folder / text)
        for listing, line, stated in split.missing:
            path = self.folder / listing
            index = len(records.pictures)
            records.pictures.append(Picture(shown(stated), "", boxed=False))
            what = f"no picture '{shown(stated)}' in the folder"
            records.add_problem("image_missing", path, what, where=f"{path}, line {line}", index=index)
        for text in split.orphans:
            records.add_problem("annotation_orphan", self.folder / text, "no picture of its name")
        if not records.pictures:
            raise DataError(f"{where}: no pictures in it")
        listed = None if self.classes is None else [self.classes[number] for number in sorted(self.classes)]
        if listed is None:
            boxes = records.boxes
            # "10" comes behind "9"
            listed = sorted({boxes.names[label] for label in boxes.label.tolist()}, key=int)
        set_classes(records, listed, self.names, needed=self.classes is not None or split.role in ("train", "all"))
        return records

    def _read_boxes(self, records: Records, index: int, size: tuple[int, int], path: Path) -> None:
        """Adds the boxes of a label file."""
        try:
            lines = text_lines(read_text(path, LARGEST_LABELS))
        except DataError as error:
            what = str(error).removeprefix(f"{path}: ")
            records.add_problem("annotation_broken", path, what, index=index)
            return
        for position, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                name, row = self._name(line), _parse_row(line, size)
            except EntryError as error:
                where, what = f"{path}, line {position + 1}", str(error)
                records.add_problem(
                    error.kind, path, what, where=where, index=index, annotation=position + 1, position=position
                )
                continue
            area = float(row.pixels) if row.runs else math.nan
            corners, stated, runs, pixels = row
            records.add_box(Box(index, name, corners, stated, False, area, None, position, runs, pixels))

    def _name(self, line: str) -> str:
        """The class of a line."""
        text = line.split(maxsplit=1)[0]
        try:
            value = parse_number(text)
        except EntryError:
            raise EntryError("annotation_broken", f"class '{shown(text, 40)}': expected its number") from None
        if value < 0 or value != int(value):
            raise EntryError("class_unknown", f"class '{shown(text, 40)}': expected a whole number from 0")
        if self.classes is None:
            return str(int(value))
        if int(value) not in self.classes:
            what = f"class {int(value)} has no name; expected 0 ... {max(self.classes, default=0)}"
            raise EntryError("class_unknown", what)
        return self.classes[int(value)]


class _Row(NamedTuple):
    """The numbers of a line: corners in pixels, the four numbers of a box, and run lengths of a polygon."""

    corners: tuple[float, ...]
    stated: list[float] | None
    runs: bytes = b""
    pixels: int = 0


def _parse_row(line: str, size: tuple[int, int]) -> _Row:
    """The box or polygon of a line.

    Raises:
        EntryError: It is neither.
    """
    height, width = size
    cells = line.split()[1:]
    if len(cells) == 5:
        raise EntryError("box_malformed", f"6 numbers; {FORMS} (with a confidence it is a prediction)")
    if len(cells) != 4 and (len(cells) < 6 or len(cells) % 2):
        raise EntryError("box_malformed", f"{len(cells) + 1} numbers; {FORMS}")
    stated = [parse_number(cell) for cell in cells]
    shares = parse_shares(stated)
    if len(cells) == 4:
        x, y, w, h = shares
        sides = [_snap(x - w / 2), _snap(y - h / 2), _snap(x + w / 2), _snap(y + h / 2)]
        corners = tuple(share * side for share, side in zip(sides, (width, height) * 2, strict=True))
        return _Row(corners, stated)
    outline = [share * side for share, side in zip(shares, (width, height) * (len(shares) // 2), strict=True)]
    try:
        runs, pixels = encode([outline], size)
    except DataError as error:
        raise EntryError("segmentation_broken", str(error)) from None
    across, down = outline[::2], outline[1::2]
    return _Row((min(across), min(down), max(across), max(down)), None, runs, pixels)


def _snap(share: float) -> float:
    """An edge that only rounding put outside its picture, on the picture's edge."""
    return min(max(share, 0.0), 1.0) if -TOLERANCE <= share <= 1 + TOLERANCE else share


@LABELS.register("yolo")
class YoloLabels(LabelFormat):
    """Text files in ``labels/`` for the pictures in ``images/``, or beside them; ``data.yaml`` or ``classes.txt``."""

    expected = (
        "YOLO's txt files (in labels/ for pictures in images/, or beside them; names in data.yaml or classes.txt)"
    )

    def recognise(self, tree: Tree) -> Recognised | str:
        """See `LabelFormat.recognise`."""
        if not tree.pictures:
            return "no pictures"
        labels = pair_labels(tree)
        texts = [text for text in labels.values() if text]
        if not texts:
            return f"no labels: no .txt beside or for any of {len(tree.pictures)} pictures"
        if (reason := _foreign(tree, texts)) is not None:
            return reason
        layout = read_layout(tree, labels)
        if not layout.splits:
            return "no pictures with labels in the splits that it declares"
        remarks = list(layout.remarks)
        if layout.classes is None:
            what = "no list of class names (data.yaml or classes.txt); the classes are called by their numbers"
            remarks.append(Remark("class_broken", "", what))
        parts = [Part(split.role, split.role, YoloFiles(tree.root, split, layout.classes)) for split in layout.splits]
        source = f", classes from {layout.names_file}" if layout.names_file else ""
        about = (
            f"YOLO's text files: {len(texts)} for {sum(len(split.pairs) for split in layout.splits)} pictures{source}"
        )
        return Recognised("yolo", about, parts, remarks)

    def write(self, parts: Sequence[LabelledPart], target: Path, place: Placer) -> list[str]:
        """Writes ``images/ROLE``, ``labels/ROLE`` and ``data.yaml``; ignored boxes and outlines are left out."""
        ignored = 0
        data: dict[str, Any] = {}
        for part in parts:
            taken: set[str] = set()
            data[part.role] = f"images/{part.role}"
            (target / "images" / part.role).mkdir(parents=True, exist_ok=True)
            for picture in part.pictures:
                file = f"images/{part.role}/{free_name(_below_images(picture.name), taken)}"
                place(picture.source, target / file)
                labels = target / label_path(file)
                labels.parent.mkdir(parents=True, exist_ok=True)
                labels.write_text(_label_text(picture, part.names), "utf-8")
                ignored += sum(box.ignore for box in picture.boxes)
        names = dict(enumerate(parts[0].names if parts else []))
        text = yaml.safe_dump(data | {"names": names}, sort_keys=False, allow_unicode=True, width=2**20)
        (target / "data.yaml").write_text(text, "utf-8")
        lines = [f"{ignored} ignored boxes left out: YOLO's files cannot hold them"] if ignored else []
        lines += [f"data.yaml has no {role}; ultralytics needs one" for role in ("train", "val") if role not in data]
        return lines


def _foreign(tree: Tree, texts: Sequence[str]) -> str | None:
    """Why text files of pictures' names are no labels of YOLO's; None where they are."""
    example = ""
    for text in evenly_spread(texts, SAMPLE):
        try:
            lines = [line for line in text_lines(read_text(tree.path(text), LARGEST_LABELS)) if line.strip()]
        except DataError:
            continue
        for line in lines[:5]:
            try:
                _parse_row(line, (1000, 1000))
                parse_number(line.split()[0])
                return None
            except EntryError:
                example = example or f"{text}: '{shown(line, 40)}' is no line of YOLO's; {FORMS}"
    if has_class_list(tree) and any("labels" in text.lower().split("/")[:-1] for text in texts):
        return None  # whatever is wrong is reported line by line
    return example or f"{texts[0]}: empty, as are all {len(texts)} files, and no data.yaml"


def _below_images(name: str) -> str:
    """A picture's name without folders called ``images``, which would move its label file."""
    *folders, file = name.split("/")
    return "/".join([folder for folder in folders if folder.lower() != "images"] + [file])


def _label_text(picture: LabelledPicture, names: Sequence[str]) -> str:
    """A line for each box, with digits enough for a millionth of a pixel."""
    height, width = picture.size
    lines = []
    for box in picture.boxes:
        if not box.ignore:
            x1, y1, x2, y2 = box.corners
            shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{names.index(box.name)} {' '.join(f'{share:.10f}' for share in shares)}\n")
    return "".join(lines)
