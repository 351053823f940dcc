"""What a check of data can find, how bad each is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mnv2det.data.formats.problems import ANNOTATION_LEFT_OUT, Kind, Severity, printable
from mnv2det.data.formats.problems import KINDS as READER_KINDS

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# An error is what training with `bad_data: stop` refuses, with one exception: it cannot see that a picture is in two
# splits (image_leak), and metrics come out wrong without anybody noticing.
KINDS: dict[str, Kind] = {
    **READER_KINDS,
    # images
    "image_leak": Kind(
        "error", "the same picture in two splits", "keep it in one of them: metrics come out too good", "left out here"
    ),
    "image_near_leak": Kind(
        "warning",
        "nearly the same picture in two splits",
        "neighbours in a video or two exposures of one scene belong into one split",
    ),
    "image_duplicate": Kind("warning", "the same picture twice in one split", "keep one of them"),
    "image_damaged": Kind(
        "warning", "images their decoder complains of", "look at them: what is missing was filled with grey"
    ),
    "image_unlisted": Kind("note", "pictures without an entry", "annotate them, or ignore this"),
    "link_outside": Kind("note", "links that leave the data folder", "they are followed, as in training"),
    # boxes
    "box_duplicate": Kind(
        "warning", "boxes drawn twice", "delete one: the second can never be found", ANNOTATION_LEFT_OUT
    ),
    "box_beyond": Kind("warning", "boxes that reach beyond their image", "training clips them", "clipped to the image"),
    "box_similar": Kind("warning", "boxes of one class that nearly coincide", "delete one if it is the same object"),
    "box_two_classes": Kind("warning", "boxes of two classes that coincide", "decide for one class"),
    "crowd": Kind("note", "crowds", "neither learned nor penalised"),
    "difficult": Kind("note", "boxes marked difficult", "neither learned nor penalised"),
    # classes
    "class_similar": Kind("warning", "class names that may be one", "write them alike if they mean the same"),
    "class_unused": Kind("warning", "classes without a box", "collect some, or take them off the class list"),
    "class_untrained": Kind("warning", "classes only outside train", "move some images to train"),
    "class_unmeasured": Kind("warning", "classes that val lacks", "move some images to val: they get no metric"),
    "class_rare": Kind("warning", "classes with few boxes", "collect more of them"),
    "class_imbalance": Kind("warning", "classes of very different frequency", "collect more of the rare ones"),
    # masks
    "mask_broken": Kind("error", "unreadable masks", "export them again as PNGs of class ids"),
    "mask_size": Kind("error", "masks of another size than their image", "export them again in the image's size"),
    "mask_foreign": Kind("error", "masks with ids of no class", "correct the ids, or the class list", "set to 255"),
    "mask_binary": Kind(
        "error", "masks of 0 and 255 for two classes", "write class ids 0 and 1, for example 255 divided by 255"
    ),
    # of the whole
    "part_unannotated": Kind("warning", "parts without a box or mask pixel", "move annotated images there"),
    "anchor_gap": Kind(
        "warning",
        "boxes that no anchor fits",
        "give the head anchors of their size (lowest, min_scale, ratios) and, for small ones, a tap of finer stride",
    ),
    "lists_missing": Kind("warning", "no lists of train and val", "write ImageSets/Main/train.txt and val.txt"),
    "json_skipped": Kind("warning", "json files that were not checked", "expected COCO's three lists"),
    "csv_skipped": Kind("warning", "csv files that were not read", "expected a row for each box, and named columns"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, or something worth knowing.

    Attributes:
        kind: Key of `KINDS`.
        split: Part of the data it was found in.
        file: Relative to the data folder.
        value: What is wrong.
        expected: What should be there; may be empty.
        image: The image's id: COCO's own, the path of a VOC image below JPEGImages.
        annotation: COCO's id, or the number of the object in its xml, from 1.
        index: Index of the picture in the split, for the cleaned copy; -1 where none is meant.
        position: Position of the annotation in its file, from 0; -1 where none is meant.
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
        for key in ("file", "value", "expected", "image", "annotation"):
            value = getattr(self, key)
            object.__setattr__(self, key, printable(value) if isinstance(value, str) else value)

    @property
    def severity(self) -> Severity:
        """Of its kind."""
        return KINDS[self.kind].severity

    def to_json(self) -> dict[str, Any]:
        """The keys that docs/data.md promises."""
        keys = ("kind", "severity", "split", "file", "image", "annotation", "value", "expected")
        return {key: getattr(self, key) for key in keys}
