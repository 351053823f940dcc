"""Masks: class ids read from a PNG, or painted from COCO's polygons and run lengths."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mnv2det.data.images import DAMAGED
from mnv2det.errors import DataError
from mnv2det.structures import IGNORE

# what VOC calls by another name than COCO
VOC_NAMES = {
    "airplane": "aeroplane",
    "motorcycle": "motorbike",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
}
MOST_OUTLINE = 4_000_000  # pixels along one polygon; pycocotools holds 5 points for each


def read_mask(path: Path, classes: int) -> NDArray[np.uint8]:
    """Reads class ids from a palette or grey PNG.

    Args:
        path: The file.
        classes: Number of classes; ids are below it, or 255.

    Returns:
        uint8 (H, W).

    Raises:
        DataError: As `read_ids`, or it holds an id that no class has.
    """
    ids = read_ids(path, classes)
    wrong = ids[foreign(ids, classes)]
    if len(wrong):
        values, counts = np.unique(wrong, return_counts=True)
        more = f" (and {len(values) - 1} other such ids)" if len(values) > 1 else ""
        raise DataError(
            f"{path}: class id {values[0]} in {counts[0]} pixels{more}; expected 0 ... {classes - 1}, or 255 = ignore"
        )
    return ids.astype(np.uint8)


def foreign(ids: NDArray[Any], classes: int) -> NDArray[np.bool_]:
    """Which ids are neither a class's nor 255."""
    wrong: NDArray[np.bool_] = ((ids < 0) | (ids >= classes)) & (ids != IGNORE)
    return wrong


def read_ids(path: Path, classes: int) -> NDArray[Any]:
    """Reads a mask as it is stored, whatever its ids are.

    Pillow reads it, because OpenCV would turn a palette into its colours. Like a picture's, the
    EXIF rotation is applied, although few masks have one.

    Args:
        path: The file.
        classes: Number of classes, for the message.

    Returns:
        bool or integers (H, W).

    Raises:
        DataError: The file is missing or damaged, or holds colours.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the mask ({error.strerror})") from None
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=("PNG",)))
        ids: NDArray[Any] = np.array(picture)
    except DAMAGED as error:
        reason = " ".join(str(error).split()).split(" <")[0][:100]
        raise DataError(f"{path}: not a PNG, or a damaged one ({reason}; {len(data)} bytes)") from None
    if picture.mode not in ("P", "L", "1", "I", "I;16"):
        raise DataError(
            f"{path}: colours ({picture.mode}) where class ids are expected; write every pixel's class id,"
            f" 0 ... {classes - 1} or 255, into a palette or grey PNG"
        )
    if picture.mode == "L":
        ids //= {2: 85, 4: 17}.get(data[24], 1)  # Pillow spreads 2- and 4-bit grey over 0 ... 255
    return ids


class Region(NamedTuple):
    """What one object covers.

    Attributes:
        image: Index of its image.
        id: Its class in the mask.
        crowd: Whether it is a group whose members were not told apart.
        runs: COCO's compressed run lengths.
        pixels: Its area.
    """

    image: int
    id: int
    crowd: bool
    runs: bytes
    pixels: int


class RegionTable:
    """Regions of all images in flat arrays, in the order they are painted.

    Crowds come first and are painted as 255: parts of such a region show no object, so it stays
    ignored where no other object lies. Then the largest, so that small ones lie on top.
    """

    def __init__(self, regions: Sequence[Region], images: int) -> None:
        owner = np.array([region.image for region in regions], np.int64)
        crowd = np.array([region.crowd for region in regions], np.bool_)
        pixels = np.array([region.pixels for region in regions], np.int64)
        order = np.lexsort((-pixels, ~crowd, owner))
        ids = np.where(crowd, IGNORE, [region.id for region in regions])
        self.ids = ids[order].astype(np.uint8)
        self.first = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=images))]).astype(np.int64)
        lengths = np.array([len(region.runs) for region in regions], np.int64)[order]
        self.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.runs = np.frombuffer(b"".join(regions[position].runs for position in order), np.uint8)

    def paint(self, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """One image's mask: uint8 (H, W), 0 where nothing was annotated."""
        from pycocotools import mask

        painted = np.zeros(size, np.uint8, order="F")  # run lengths go down the columns
        for region in range(int(self.first[index]), int(self.first[index + 1])):
            runs = self.runs[self.offsets[region] : self.offsets[region + 1]].tobytes()
            covered = mask.decode({"size": list(size), "counts": runs})
            np.copyto(painted, self.ids[region], where=covered.view(np.bool_))
        return np.ascontiguousarray(painted)


def encode(segmentation: Any, size: tuple[int, int]) -> tuple[bytes, int]:
    """Compressed run lengths of what COCO states as polygons or as run lengths of either kind.

    All is checked first: pycocotools reads and writes beyond its memory on what is malformed.

    Args:
        segmentation: As in the json.
        size: (H, W) of the image.

    Returns:
        The run lengths, and the number of pixels inside.

    Raises:
        DataError: It is neither, or contradicts the image's size.
    """
    from pycocotools import mask

    try:
        if size[0] * size[1] >= 2**31:
            raise ValueError(f"an image of {size[1]}x{size[0]} is too large")
        if isinstance(segmentation, list):
            parts = mask.frPyObjects(_polygons(segmentation, size), *size)
            encoded = parts[0] if len(parts) == 1 else mask.merge(parts)
            return encoded["counts"], int(mask.area(encoded))
        if list(segmentation["size"]) != list(size):
            raise ValueError(f"its size {segmentation['size']} is not the image's {list(size)}")
        counts = segmentation["counts"]
        loose = isinstance(counts, list)
        if loose and not all(whole(count) for count in counts):
            raise ValueError("its counts are no whole numbers")
        lengths = np.array(counts, np.int64) if loose else _lengths(counts)
        if (lengths < 0).any() or sum(lengths.tolist()) != size[0] * size[1]:
            raise ValueError("its counts do not add up to the image")
        runs = mask.frPyObjects(segmentation, *size)["counts"] if loose else counts.encode("ascii")
        return runs, int(lengths[1::2].sum())
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(f"segmentation: not polygons or a run-length mask ({str(error)[:80]})") from None


def bounds(segmentation: Any, size: tuple[int, int]) -> list[float]:
    """(x, y, w, h) of a segmentation; arguments and errors as those of `encode`."""
    from pycocotools import mask

    if not isinstance(segmentation, list):
        runs, _ = encode(segmentation, size)
        return mask.toBbox({"size": list(size), "counts": runs}).tolist()
    try:
        points = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
        low, high = np.min([p.min(0) for p in points], 0), np.max([p.max(0) for p in points], 0)
        with np.errstate(over="ignore", invalid="ignore"):
            extent = high - low
        if not np.isfinite([low, extent]).all():
            raise ValueError("its coordinates are not finite")
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"segmentation: not polygons or a run-length mask ({str(error)[:80]})") from None
    return [*low.tolist(), *extent.tolist()]


def whole(value: Any) -> bool:
    """Whether a value from a json is a whole number that int64 holds."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def _polygons(polygons: list[Any], size: tuple[int, int]) -> list[NDArray[np.float64]]:
    if not polygons:
        raise ValueError("it has no polygon")
    side, outlines = max(size), []
    for polygon in polygons:
        if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
            raise ValueError("a polygon is no list of numbers")
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers; expected x and y of 3 points or more")
        corners = np.array(polygon, np.float64)
        # written so that nan fails
        if not (corners.min() >= -side and corners.max() <= 2 * side):
            raise ValueError(f"a polygon from {corners.min():g} to {corners.max():g} leaves the image far behind")
        if 3 * side * len(polygon) > MOST_OUTLINE and _outline(corners) > MOST_OUTLINE:
            raise ValueError(f"a polygon's outline is longer than {MOST_OUTLINE} pixels")
        outlines.append(corners)
    return outlines


def _outline(corners: NDArray[np.float64]) -> float:
    points = corners.reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _lengths(text: str) -> NDArray[np.int64]:
    """Decodes compressed run lengths: 5 bits to a letter, from the third on as differences to the last but one."""
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("its counts are no run lengths")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    letters = ends - starts + 1
    if letters.max() > 6:
        raise ValueError("its counts are no run lengths")
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, letters))
    lengths = np.add.reduceat((codes & 31) << shift, starts)
    lengths -= np.where(codes[ends] & 16, 1 << 5 * letters, 0)
    for chain in (lengths[1::2], lengths[2::2]):
        np.cumsum(chain, out=chain)
    return lengths
