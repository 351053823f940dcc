"""What the readers of a COCO json share: its lists, ids, numbers, paths and outlines."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mnv2det.data.formats.coco_quick import QuickJson
from mnv2det.data.formats.problems import shown
from mnv2det.data.images import inside
from mnv2det.data.masks import encode, whole
from mnv2det.errors import DataError
from mnv2det.io import is_watched

Id = int | str
SIDES = range(1, 10**6)  # pixels that an image may be wide or high
LARGEST_NUMBER = 1e9  # that a coordinate or an area may have
WATCHED_MASKS = 20_000  # from so many on, reading them shows how far it is


class EntryError(Exception):
    """What is wrong with an entry of the json: its kind and, if it is known, the image it belongs to."""

    def __init__(self, kind: str, what: str, *, index: int = -1) -> None:
        super().__init__(what)
        self.kind, self.index = kind, index


def load_json(path: Path) -> dict[str, list[Any]]:
    """A COCO-style json; its three lists are there, what they hold is not looked at.

    Raises:
        DataError: The file is missing, no json, or lacks one of the lists.
    """
    try:
        data = json.loads(read_content(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a json file ({str(error)[:120] or type(error).__name__})") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DataError(f"{path}: no list '{key}' at the top; expected COCO's images, annotations and categories")
    return data


def read_content(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotations ({error.strerror})") from None


def file_below(images: Path, name: str) -> str:
    """The path below a folder of images that a ``file_name`` states.

    Backslashes are Windows' separators, unless a file has that very name. A path may leave the folder and come back,
    as ``../train/1.jpg`` does in ``train``.

    Raises:
        DataError: The path is absolute or leaves the folder.
    """
    if name and not name.startswith("/") and "\\" not in name and ".." not in name and "\0" not in name:
        return os.path.normpath(name)
    file = os.path.normpath(name.replace("\\", "/") if "\\" in name and not os.path.isfile(images / name) else name)
    if file.startswith(os.pardir):
        file = os.path.relpath(images / file, images)
    try:
        inside(images, file, where="")
    except DataError:
        raise DataError(f"path {name!r} leaves the data folder {images}") from None
    return file


def encode_all(quick: QuickJson, painted: Sequence[bool]) -> tuple[list[bytes], NDArray[np.int64]]:
    """Run lengths of all segmentations, and their pixels.

    Args:
        quick: With outlines.
        painted: Whether a category is one of the masks' classes.

    Raises:
        DataError: A segmentation is none.
    """
    runs, pixels = [b""] * len(quick.boxes), np.zeros(len(quick.boxes), np.int64)
    rows = np.flatnonzero(np.array(painted)[quick.category])
    sizes = [(height, width) for height, width in quick.sizes.tolist()]
    quiet = len(rows) < WATCHED_MASKS or not is_watched()
    for row in tqdm(rows.tolist(), desc="reading COCO masks", disable=quiet, leave=False):
        outline = quick.outlines[row]
        if not isinstance(outline, msgspec.Raw):
            raise DataError("no segmentation, but masks are wanted")
        runs[row], pixels[row] = encode_outline(msgspec.json.decode(outline), sizes[quick.image[row]])
    return runs, pixels


def read_id(entry: Any, key: str, kind: str) -> Id:
    """An id of an image, a category or an annotation: a string or a whole number, which may be written as a float."""
    if not isinstance(entry, dict):
        raise EntryError(kind, f"expected keys, got {shown(entry, 40)}")
    value = as_whole(entry.get(key))
    if whole(value) or isinstance(value, str):
        return value
    raise EntryError(kind, f"{key} {shown(value, 30)}: expected a whole number or a string")


def as_whole(value: Any) -> Any:
    """The same value, a whole float (as pandas writes numbers) as an int."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def real(value: Any) -> bool:
    """Whether a value from a json is a number that a coordinate may be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER


def encode_outline(segmentation: Any, size: tuple[int, int]) -> tuple[bytes, int]:
    """`encode`, which also names a segmentation that is not there."""
    if not segmentation:
        raise DataError("no segmentation, but masks are wanted")
    return encode(segmentation, size)
