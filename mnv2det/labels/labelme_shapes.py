"""The shapes of labelme's json files that cover an area."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnv2det.data.formats.coco_values import real
from mnv2det.data.formats.problems import shown
from mnv2det.data.images import DAMAGED
from mnv2det.data.masks import encode
from mnv2det.labels.reading import EntryError, is_text

NO_CLASSES = frozenset({"__ignore__", "_background_"})  # labelme's own names for what is no object
CIRCLE_POINTS = 72
LEAST_MOST = {"rectangle": (2, 4), "circle": (2, 2), "polygon": (3, math.inf), "mask": (2, 2)}  # points of a shape


class Shape(NamedTuple):
    """A shape that covers an area: its label, the numbers of its box as stated, its outline, and its flag.

    A ``mask`` has the rectangle around it as outline, and its pixels as bool (H, W).
    """

    label: str
    stated: list[float]
    outline: list[float]
    difficult: bool
    position: int
    plain: bool  # a rectangle, which has no outline of its own
    bitmap: NDArray[np.bool_] | None = None


def parse_shape(entry: Any, position: int) -> Shape | None:
    """A shape that covers an area; None for what labelme itself takes for no object.

    Raises:
        EntryError: It is no shape, or one without an area.
    """
    if not isinstance(entry, dict):
        raise EntryError("annotation_broken", f"expected keys, got {shown(entry, 40)}")
    label, kind = entry.get("label"), entry.get("shape_type") or "polygon"
    if not isinstance(label, str) or not is_text(label):
        raise EntryError("annotation_broken", f"label {shown(label, 40)}: expected the name of a class")
    if label in NO_CLASSES:
        return None
    if not isinstance(kind, str) or kind not in LEAST_MOST:
        what = f"'{shown(label, 40)}' is a {shown(kind, 20)}; expected a rectangle, polygon, circle or mask"
        raise EntryError("box_malformed", what)
    points = entry.get("points")
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(real(value) for value in point) for point in points
    ):
        raise EntryError("box_malformed", f"'{shown(label, 40)}': points: expected a list of [x, y], numbers both")
    least, most = LEAST_MOST[kind]
    if not least <= len(points) <= most:
        raise EntryError("box_malformed", f"'{shown(label, 40)}': a {kind} of {len(points)} points")
    flags = entry.get("flags")
    difficult = entry.get("difficult") is True or (isinstance(flags, dict) and flags.get("difficult") is True)
    numbers = [float(value) for point in points for value in point]
    if kind == "mask":
        return _mask(entry, label, numbers, difficult, position)
    across, down = numbers[::2], numbers[1::2]
    if kind == "circle":
        radius = math.hypot(across[1] - across[0], down[1] - down[0])
        turns = [2 * math.pi * step / CIRCLE_POINTS for step in range(CIRCLE_POINTS)]
        numbers = [
            value
            for turn in turns
            for value in (across[0] + radius * math.cos(turn), down[0] + radius * math.sin(turn))
        ]
    if kind == "rectangle":
        left, top, right, bottom = min(across), min(down), max(across), max(down)
        numbers = [left, top, right, top, right, bottom, left, bottom]
    stated = [across[0], down[0], across[1], down[1]]
    if kind == "rectangle" and len(points) > 2:
        stated = [left, top, right, bottom]
    return Shape(label, stated, numbers, difficult, position, kind == "rectangle")


def _mask(entry: dict[str, Any], label: str, numbers: list[float], difficult: bool, position: int) -> Shape:
    """A shape of pixels: a PNG in base64 that covers the rectangle of two points, both of them inside."""
    place = f"'{shown(label, 40)}': mask"
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(entry["mask"], validate=True)), formats=("PNG",))
    except (KeyError, TypeError, binascii.Error, ValueError, *DAMAGED):
        raise EntryError("segmentation_broken", f"{place}: expected a PNG in base64") from None
    left, top, right, bottom = numbers
    width, height = picture.size
    # the size is compared before the pixels are unpacked
    if (right - left + 1, bottom - top + 1) != (width, height):
        what = f"{place} of {width}x{height} pixels, the points are for {right - left + 1:g}x{bottom - top + 1:g}"
        raise EntryError("segmentation_broken", what)
    try:
        bitmap = np.asarray(picture) > 0
    except DAMAGED:
        raise EntryError("segmentation_broken", f"{place}: a damaged PNG") from None
    if bitmap.ndim != 2 or not bitmap.any() or not all(value.is_integer() for value in numbers):
        raise EntryError("segmentation_broken", f"{place}: expected black and white, not all black, at whole numbers")
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    bitmap = bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    left, top = left + int(columns[0]), top + int(rows[0])
    right, bottom = left + bitmap.shape[1], top + bitmap.shape[0]
    outline = [left, top, right, top, right, bottom, left, bottom]
    return Shape(label, numbers, outline, difficult, position, plain=False, bitmap=bitmap)


def encode_shapes(shapes: Sequence[Shape], size: tuple[int, int]) -> tuple[bytes, int]:
    """Compressed run lengths of all that shapes cover, and the number of pixels.

    Args:
        shapes: Of one object.
        size: (H, W) of the picture.

    Raises:
        DataError: An outline leaves the picture far behind.
    """
    from pycocotools import mask

    outlines = [shape.outline for shape in shapes if shape.bitmap is None]
    encoded = [encode(outlines, size)[0]] if outlines else []
    for shape in shapes:
        if shape.bitmap is not None:
            painted = np.zeros(size, np.uint8, order="F")
            x, y = int(shape.outline[0]), int(shape.outline[1])
            top, left = max(y, 0), max(x, 0)
            part = shape.bitmap[top - y :, left - x :]
            window = painted[top : top + part.shape[0], left : left + part.shape[1]]
            window[:] = part[: window.shape[0], : window.shape[1]]
            encoded.append(mask.encode(painted)["counts"])
    merged = mask.merge([{"size": list(size), "counts": counts} for counts in encoded])
    return merged["counts"], int(mask.area(merged))
