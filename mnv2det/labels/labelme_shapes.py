"""The shapes of labelme's json files that cover an area."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from mnv2det.data.formats.coco import real
from mnv2det.data.formats.problems import shown
from mnv2det.labels.reading import EntryError, is_text

NO_CLASSES = frozenset({"__ignore__", "_background_"})  # labelme's own names for what is no object
CIRCLE_POINTS = 72


class Shape(NamedTuple):
    """A shape that covers an area: its label, the numbers of its box as stated, its outline, and its flag."""

    label: str
    stated: list[float]
    outline: list[float]
    difficult: bool
    position: int
    plain: bool  # a rectangle, which has no outline of its own


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
    if kind not in ("rectangle", "circle", "polygon"):
        what = f"'{shown(label, 40)}' is a {shown(kind, 20)}; expected a rectangle, polygon or circle"
        raise EntryError("box_malformed", what)
    points = entry.get("points")
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(real(value) for value in point) for point in points
    ):
        raise EntryError("box_malformed", f"'{shown(label, 40)}': points: expected a list of [x, y], numbers both")
    least, most = {"rectangle": (2, 4), "circle": (2, 2), "polygon": (3, math.inf)}[kind]
    if not least <= len(points) <= most:
        raise EntryError("box_malformed", f"'{shown(label, 40)}': a {kind} of {len(points)} points")
    flags = entry.get("flags")
    difficult = entry.get("difficult") is True or (isinstance(flags, dict) and flags.get("difficult") is True)
    numbers = [float(value) for point in points for value in point]
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
