"""What can be wrong with the files of a data set, in the words of training and of ``data check``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """One kind of problem.

    Attributes:
        severity: ``error``: training with ``bad_data: stop`` refuses it. ``warning``: training may go wrong.
            ``note``: good to know.
        title: Heading of the report.
        advice: What to do about it.
        fix: What the cleaned copy does about it; empty where that takes a person.
    """

    severity: Severity
    title: str
    advice: str
    fix: str = ""


IMAGE_LEFT_OUT = "image left out with its annotations"
ANNOTATION_LEFT_OUT = "annotation left out"

# kinds that a format may report while it reads; `mnv2det.check.findings` adds those that only a check looks for
KINDS: dict[str, Kind] = {
    "path_outside": Kind(
        "error", "paths that leave the data folder", "name files relative to their folder", IMAGE_LEFT_OUT
    ),
    "image_size": Kind(
        "error",
        "images of another size than stated",
        "look whether boxes fit the picture as it is: it may have been resized after it was annotated",
        "stated size corrected",
    ),
    "image_twice": Kind("error", "images listed twice", "keep one entry for each image", "second entry left out"),
    "image_ambiguous": Kind(
        "warning", "images of one name and several suffixes", "keep one of them, or state the data set's suffix"
    ),
    "images_none": Kind("error", "no image left to train on", "lower least_pixels, or collect other images"),
    "annotation_missing": Kind(
        "error", "images without an annotation file", "annotate them, or unlist them", IMAGE_LEFT_OUT
    ),
    "annotation_broken": Kind("error", "unreadable annotations", "correct or export them again", "left out"),
    "annotation_orphan": Kind(
        "error", "annotations of an unknown image", "correct image_id, or delete them", ANNOTATION_LEFT_OUT
    ),
    "box_malformed": Kind("error", "boxes that are not four numbers", "correct or delete them", ANNOTATION_LEFT_OUT),
    "box_no_area": Kind("error", "boxes without area", "draw them again, or delete them", ANNOTATION_LEFT_OUT),
    "box_outside": Kind("error", "boxes outside their image", "draw them again, or delete them", ANNOTATION_LEFT_OUT),
    "crowds_only": Kind("error", "nothing but crowds", "if they are objects, set data.train.args.crowds=objects"),
    "segmentation_broken": Kind("error", "segmentations that cannot be painted", "draw them again, or delete them"),
    "class_broken": Kind("error", "class lists that are wrong", "give each class one id and one name"),
    "class_unknown": Kind("error", "classes that are not expected", "correct the name, or add it to the class list"),
    "mask_missing": Kind("error", "images without a mask", "draw them, or unlist the images"),
    "folder_hidden": Kind("note", "hidden folders that were left out", "delete them, or give a class another name"),
    "folder_empty": Kind("warning", "class folders without pictures", "collect some, or delete the folder"),
    "image_missing": Kind("error", "images that are not there", "fetch them, or correct their names", IMAGE_LEFT_OUT),
    "image_broken": Kind("error", "undecodable or truncated images", "fetch or export them again", IMAGE_LEFT_OUT),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with the files of a data set.

    Attributes:
        kind: Key of `KINDS`.
        message: The line that training prints: file, annotation, what is wrong and what was expected.
        file: The file it is in.
        value: What is wrong, without its place.
        expected: What should be there; may be empty.
        image: The image's id.
        annotation: The annotation's id or number.
        index: Position of the picture in `Records.pictures`; -1 where none is meant.
        position: Position of the annotation in its file, from 0; -1 where the whole picture or file is meant.
        fatal: Whether ``bad_data: skip`` cannot leave it out either.
    """

    kind: str
    message: str
    file: Path
    value: str
    expected: str = ""
    image: int | str | None = None
    annotation: int | str | None = None
    index: int = -1
    position: int = -1
    fatal: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message))

    @property
    def severity(self) -> Severity:
        """How bad its kind is."""
        return KINDS[self.kind].severity


def printable(text: str) -> str:
    """The same text without what would break a line, steer a terminal or not encode."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: object, most: int = 60) -> str:
    """A value from a data file as one short printable line."""
    text = value if isinstance(value, str) else repr(value)
    return printable(text[:most]) + ("..." if len(text) > most else "")


def quoted(name: str) -> str:
    """A class name in quotes, printable and not too long."""
    return f"'{shown(name, 40)}'"
