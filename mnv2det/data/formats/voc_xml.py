"""What an annotation in VOC's xml states about one image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from mnv2det.errors import DataError

LARGEST_XML = 64 * 2**20  # bytes
# as programs print it: 12, 12., .5, 5.5e-17, 1.5e+01
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def parse_xml(path: Path) -> Any:
    """The root element of an annotation.

    Raises:
        DataError: The file is missing, huge, no xml, or one that harms its reader.
    """
    try:
        if path.stat().st_size > LARGEST_XML:
            raise DataError(f"{path}: {path.stat().st_size} bytes; expected an annotation of one image")
        return fromstring(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotation ({error.strerror})") from None
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise DataError(f"{path}: not a safe, well-formed xml ({' '.join(str(error).split())[:120]})") from None


def stated_size(tree: Any, path: Path) -> tuple[int, int]:
    """(H, W) of the image as its annotation states it.

    Raises:
        DataError: It states none, or what no image can have.
    """
    height, width = _number(tree, "size/height", path), _number(tree, "size/width", path)
    if min(height, width) < 1 or max(height, width) > 1e6:
        raise DataError(f"{path}: size {width:g}x{height:g} is not an image's")
    return int(height), int(width)


def stated_object(item: Any, number: int, path: Path) -> tuple[str, list[float], bool]:
    """Name, box and ``difficult`` of an annotation's object, the box as the file has it.

    Args:
        item: The element.
        number: Its number among the objects, from 1, for messages.
        path: The file, for messages.

    Raises:
        DataError: It has no name, or a corner is no number.
    """
    name = (item.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{path}: object {number} has no name")
    place = f"{path}: object {number} '{name}'"
    box = [_number(item, f"bndbox/{key}", place) for key in CORNERS]
    return name, box, (item.findtext("difficult") or "0").strip() == "1"


def _number(tree: Any, tag: str, place: object) -> float:
    text = (tree.findtext(tag) or "").strip()
    if not NUMBER.fullmatch(text) or abs(float(text)) > 1e12:
        raise DataError(f"{place}: {tag}: expected a number, got '{text[:40]}'")
    return float(text)


def set_size(tree: Any, size: tuple[int, int]) -> None:
    """Writes (H, W) where an annotation states the size of its image."""
    for tag, value in zip(("height", "width"), size, strict=True):
        parent = tree.find("size")
        if parent is None:
            parent = tree.makeelement("size", {})
            tree.append(parent)
        element = parent.find(tag)
        if element is None:
            element = parent.makeelement(tag, {})
            parent.append(element)
        element.text = str(value)
