"""What a check of data can find, how bad each is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Kind(NamedTuple):
    """One kind of finding.

    Attributes:
        severity: ``error``: training would stop or go wrong. ``warning``: it may. ``note``: good to know.
        title: Heading of the report.
        advice: What to do about it.
        fix: What the cleaned copy does about it; empty where that takes a person.
    """

    severity: Severity
    title: str
    advice: str
    fix: str = ""


_OUT = "image left out with its annotations"
_DROP = "annotation left out"

KINDS: dict[str, Kind] = {
    # images
    "path_outside": Kind("error", "paths that leave the data folder", "name files relative to their folder", _OUT),
    "image_missing": Kind("error", "images that are not there", "fetch them, or correct their names", _OUT),
    "image_broken": Kind("error", "undecodable or truncated images", "fetch or export them again", _OUT),
    "image_size": Kind(
        "error",
        "images of another size than stated",
        "look whether boxes fit the picture as it is: it may have been resized after it was annotated",
        "stated size corrected",
    ),
    "image_twice": Kind("error", "images listed twice", "keep one entry for each image", "second entry left out"),
    "image_leak": Kind(
        "error", "the same picture in two splits", "keep it in one of them: metrics come out too good", "left out here"
    ),
    "image_near_leak": Kind(
        "warning",
        "nearly the same picture in two splits",
        "neighbours in a video or two exposures of one scene belong into one split",
    ),
    "image_duplicate": Kind("warning", "the same picture twice in one split", "keep one of them"),
    "image_damaged": Kind("warning", "images their decoder complains of", "look at them"),
    "image_unlisted": Kind("note", "pictures without an entry", "annotate them, or ignore this"),
    "link_outside": Kind("note", "links that leave the data folder", "they are followed, as in training"),
    # annotations
    "annotation_missing": Kind("error", "images without an annotation file", "annotate them, or unlist them", _OUT),
    "annotation_broken": Kind("error", "unreadable annotations", "correct or export them again", "left out"),
    "annotation_orphan": Kind("error", "annotations of an unknown image", "correct image_id, or delete them", _DROP),
    "box_malformed": Kind("error", "boxes that are not four numbers", "correct or delete them", _DROP),
    "box_no_area": Kind("error", "boxes without area", "draw them again, or delete them", _DROP),
    "box_outside": Kind("error", "boxes outside their image", "draw them again, or delete them", _DROP),
    "box_duplicate": Kind("error", "boxes drawn twice", "delete one: the second can never be found", _DROP),
    "box_beyond": Kind("warning", "boxes that reach beyond their image", "training clips them", "clipped to the image"),
    "box_similar": Kind("warning", "boxes of one class that nearly coincide", "delete one if it is the same object"),
    "box_two_classes": Kind("warning", "boxes of two classes that coincide", "decide for one class"),
    "segmentation_broken": Kind("error", "segmentations that cannot be painted", "draw them again, or delete them"),
    # classes
    "class_broken": Kind("error", "entries of the class list that are none", "give each category one id and one name"),
    "class_unknown": Kind("error", "classes that are not expected", "correct the name, or add it to the class list"),
    "class_similar": Kind("warning", "class names that may be one", "write them alike if they mean the same"),
    "class_unused": Kind("warning", "classes without a box", "collect some, or take them off the class list"),
    "class_untrained": Kind("warning", "classes only outside train", "move some images to train"),
    "class_unmeasured": Kind("warning", "classes that val lacks", "move some images to val: they get no figure"),
    "class_rare": Kind("warning", "classes with few boxes", "collect more of them"),
    "class_imbalance": Kind("warning", "classes of very different frequency", "collect more of the rare ones"),
    # masks
    "mask_missing": Kind("error", "images without a mask", "draw them, or unlist the images"),
    "mask_broken": Kind("error", "unreadable masks", "export them again as PNGs of class ids"),
    "mask_size": Kind("error", "masks of another size than their image", "export them again in the image's size"),
    "mask_foreign": Kind("error", "masks with ids of no class", "correct the ids, or the class list", "set to 255"),
    # of the whole
    "anchor_gap": Kind(
        "warning",
        "boxes that no anchor fits",
        "give the head anchors of their size (lowest, min_scale, ratios) and, for small ones, a tap of finer stride",
    ),
    "lists_missing": Kind("warning", "no lists of train and val", "write ImageSets/Main/train.txt and val.txt"),
    "json_skipped": Kind("warning", "json files that were not checked", "expected COCO's three lists"),
    "crowd": Kind("note", "crowds", "neither learned nor penalised"),
    "difficult": Kind("note", "boxes marked difficult", "neither learned nor penalised"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, or something worth knowing.

    Attributes:
        kind: Key of `KINDS`.
        split: Part of the data it was found in.
        file: Relative to the data folder.
        value: What was found.
        expected: What should be there; may be empty.
        image: The image's id: COCO's number, the stem of a VOC file.
        annotation: COCO's id, or the number of the object in its xml, from 1.
        index: Picture within the split, for the cleaned copy; -1 where none is meant.
        position: Place of the annotation in its file, from 0, likewise.
    """

    kind: str
    split: str
    file: str
    value: str
    expected: str = ""
    image: int | str | None = None
    annotation: int | str | None = None
    index: int = -1
    position: int = -1

    def __post_init__(self) -> None:
        for key in ("file", "value", "expected"):
            object.__setattr__(self, key, printable(getattr(self, key)))

    @property
    def severity(self) -> Severity:
        """Of its kind."""
        return KINDS[self.kind].severity

    def to_json(self) -> dict[str, Any]:
        """The keys that docs/data.md promises."""
        keys = ("kind", "severity", "split", "file", "image", "annotation", "value", "expected")
        return {key: getattr(self, key) for key in keys}


def printable(text: str) -> str:
    """The same without what would break a line, steer a terminal or not encode."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: object, most: int = 60) -> str:
    """A value from a data file as one short printable line."""
    text = value if isinstance(value, str) else repr(value)
    return printable(text[:most]) + ("..." if len(text) > most else "")
