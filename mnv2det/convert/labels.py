"""Class names from a text file, for networks whose own files hold none."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from mnv2det.errors import WeightsError
from mnv2det.structures import VOC_CLASSES

BACKGROUND = "background"  # class 0 of the releases with 1001 classes
LARGEST = 2**24  # bytes of a label map
# COCO's classes by their ids from 1; ten ids have none
# fmt: off
COCO_IDS = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "", "backpack", "umbrella", "", "", "handbag", "tie", "suitcase",
    "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket", "bottle", "", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana",
    "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "", "dining table", "", "", "toilet", "", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
]
# fmt: on
NAMED = {"coco90": COCO_IDS, "voc": list(VOC_CLASSES)}  # of detectors, without the background
ITEM = re.compile(r"item\s*\{([^{}]*)\}")
KEY = re.compile(r"""(\w+)\s*:\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|(-?\d+))""")


def default_names(count: int, known: Sequence[str] = ()) -> list[str]:
    """The names of a known data set if it has as many classes, else numbers."""
    return list(known) if count == len(known) else [str(number) for number in range(count)]


def detector_names(labels: str | os.PathLike[str], count: int) -> list[str]:
    """Class names of a detector by their ids from 1; empty where an id has no name.

    Args:
        labels: ``coco90`` or ``voc``, a label map of the Object Detection API (``.pbtxt``), or a text file as
            `read_labels` takes it.
        count: The number of classes, without the background.

    Returns:
        As many names as there are classes.

    Raises:
        WeightsError: The file cannot be read, or is for another number of classes.
    """
    known = NAMED.get(str(labels))
    if known is None and Path(labels).suffix == ".pbtxt":
        named = read_label_map(labels)
        if max(named) > count:
            raise WeightsError(f"{labels}: has an id {max(named)}, but the network has {count} classes")
        return [named.get(number, "") for number in range(1, count + 1)]
    if known is None:
        return read_labels(labels, count, private_background=True)
    if len(known) != count:
        raise WeightsError(f"{labels}: names of {len(known)} classes, but the network has {count}")
    return list(known)


def read_label_map(path: str | os.PathLike[str]) -> dict[int, str]:
    """The names of a StringIntLabelMap in text form, by their ids from 1; display names come first.

    Raises:
        WeightsError: It cannot be read, has no item, or an item without an id or name, or ids or names twice.
    """
    try:
        if Path(path).stat().st_size > LARGEST:
            raise WeightsError(f"{path}: too large for a label map")
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise WeightsError(f"{path}: cannot read the label map ({reason})") from None
    names: dict[int, str] = {}
    for number, item in enumerate(ITEM.findall(re.sub(r"#[^\n]*", "", text)), 1):
        keys = {key: double or single or digits for key, double, single, digits in KEY.findall(item)}
        name, stated = keys.get("display_name") or keys.get("name", ""), keys.get("id", "")
        if not name or not stated.isdecimal() or len(stated) > 6:
            raise WeightsError(f"{path}: item {number} has no {'name' if stated.isdecimal() else 'id'}")
        if int(stated) == 0 and name.lower() == BACKGROUND:
            continue
        if int(stated) == 0 or int(stated) in names or name in names.values():
            raise WeightsError(f"{path}: item {number} has the id or name of another: {stated} '{name}'")
        names[int(stated)] = name
    if not names:
        raise WeightsError(f"{path}: no items; expected item {{ id: 1 name: 'person' }} ...")
    return names


def read_labels(path: str | os.PathLike[str], count: int, *, private_background: bool = False) -> list[str]:
    """Reads class names, one per line; blank lines at the end do not count.

    A first name ``background``, in whatever letters, is added or dropped so that as many names are left as the network
    has outputs.

    Args:
        path: A text file in UTF-8.
        count: The number of classes.
        private_background: Whether the network has one more output, a background that is none of its classes.

    Returns:
        As many names as there are classes.

    Raises:
        WeightsError: The file cannot be read, has a blank line between names, or another number of names.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise WeightsError(f"{path}: cannot read the label file ({reason})") from None
    if "" in names:
        raise WeightsError(f"{path}: line {names.index('') + 1} is blank, expected a class name")
    stated, outputs = len(names), count + private_background
    has_background = bool(names) and names[0].lower() == BACKGROUND
    if stated == outputs - 1 and not has_background:
        names = [BACKGROUND, *names]
    elif stated == outputs + 1 and has_background:
        names = names[1:]
    if len(names) != outputs:
        raise WeightsError(f"{path}: {stated} class names, but the network has {outputs} outputs")
    if not private_background:
        return names
    if names[0].lower() != BACKGROUND:
        raise WeightsError(f"{path}: {len(names)} class names, but the network has {count} classes")
    return names[1:]
