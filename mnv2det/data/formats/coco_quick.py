"""Reads a COCO json of the usual form by a typed parser, as arrays instead of an object for every value.

A json of COCO's size becomes gigabytes of Python's dictionaries. Here only what is needed is parsed, and checked in
arrays. A file with anything unusual in it, be it a mistake, is left to `mnv2det.data.formats.coco`, which reads entry
by entry and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
LARGEST_ID = 2**53


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: int
    width: int


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: Box
    area: float | None = None
    iscrowd: Literal[0, 1] = 0


class _Outlined(_Annotation):
    segmentation: msgspec.Raw = msgspec.UNSET  # type: ignore[assignment]


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _Boxes(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Outlines(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Outlined]
    categories: list[_Category]


class QuickJson(NamedTuple):
    """A COCO json whose ids are whole numbers, occur once, and are all known.

    Attributes:
        ids: Of the images, int64 (P,).
        files: Their file names.
        sizes: (H, W) of the images, int64 (P, 2).
        categories: Entries with ``id`` and ``name``.
        annotation_ids: int64 (N,).
        image: Index of each annotation's image, int64 (N,).
        category: Index of each annotation's category, int64 (N,).
        boxes: ``[x, y, w, h]``, float64 (N, 4).
        area: float64 (N,).
        crowd: bool (N,).
        outlines: The annotations' segmentations as they stand in the file; empty unless they were asked for.
    """

    ids: NDArray[np.int64]
    files: list[str]
    sizes: NDArray[np.int64]
    categories: list[dict[str, Any]]
    annotation_ids: NDArray[np.int64]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    boxes: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    outlines: list[msgspec.Raw]


def read_quickly(content: bytes, *, outlines: bool) -> QuickJson | None:
    """Reads a json; None where it has anything unusual, or is none.

    Args:
        content: Of the file.
        outlines: Whether segmentations are wanted.
    """
    try:
        kind: type[_Boxes | _Outlines] = _Outlines if outlines else _Boxes
        parsed = msgspec.json.decode(content, type=kind)
    except (ValueError, RecursionError):
        return None
    images, annotations = parsed.images, parsed.annotations
    if not images or not annotations:
        return None
    if any("\\" in entry.file_name for entry in images):
        return None  # what it means depends on the files that are there
    ids = _whole(entry.id for entry in images)
    sizes = np.stack([_whole(entry.height for entry in images), _whole(entry.width for entry in images)], axis=1)
    image = _positions(_whole(entry.image_id for entry in annotations), ids)
    category = _positions(
        _whole(entry.category_id for entry in annotations), _whole(entry.id for entry in parsed.categories)
    )
    boxes = np.array([entry.bbox for entry in annotations], np.float64)
    area = np.array([np.nan if entry.area is None else entry.area for entry in annotations], np.float64)
    if image is None or category is None:
        return None
    return QuickJson(
        ids,
        [entry.file_name for entry in images],
        sizes,
        [{"id": entry.id, "name": entry.name} for entry in parsed.categories],
        _whole(entry.id for entry in annotations),
        image,
        category,
        boxes,
        np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area),
        np.array([entry.iscrowd for entry in annotations], np.bool_),
        [entry.segmentation for entry in parsed.annotations] if isinstance(parsed, _Outlines) else [],
    )


def _whole(values: Iterator[int]) -> NDArray[np.int64]:
    """Whole numbers; too large ones become -1, which no id that is looked for is."""
    return np.fromiter((value if abs(value) < LARGEST_ID else -1 for value in values), np.int64)


def _positions(wanted: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Where each number stands among others; None if one is not there, or one of those stands there twice."""
    order = np.argsort(known, kind="stable")
    ordered = known[order]
    if not len(known) or (np.diff(ordered) == 0).any() or (known < 0).any():
        return None
    found = np.searchsorted(ordered, wanted).clip(max=len(known) - 1)
    return None if (ordered[found] != wanted).any() else order[found]
