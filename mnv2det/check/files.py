"""Looking at one picture and its mask; runs in the workers."""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mnv2det.check.pool import printed
from mnv2det.data.dataset import Arrays, Dataset
from mnv2det.data.duplicates import Fingerprint, fingerprint
from mnv2det.data.images import EXTENSIONS, decode_image
from mnv2det.data.masks import DAMAGED, read_ids
from mnv2det.errors import DataError

LARGEST_FILE = 2**30  # bytes
MANY_IDS = 300  # of a mask, more than any class list has
# what libjpeg prints where it made up the rest of a picture, and what OpenCV and libpng say of errors
HARMLESS = re.compile(r"libpng warning|\bWARN\b")
SERIOUS = ("premature end", "error", "unexpected end")


class Job(NamedTuple):
    """A picture and, perhaps, its mask; ``classes`` is for messages."""

    file: Path | None
    mask: Path | None = None
    classes: int = 255


class SeenMask(NamedTuple):
    """A mask's size and the pixels of each id, or what is wrong with it."""

    problem: str
    size: tuple[int, int] = (0, 0)
    counts: dict[int, int] = {}  # noqa: RUF012 - never written to


class Seen(NamedTuple):
    """What was seen of a picture.

    Attributes:
        problem: Kind and description of what keeps it from being read.
        complaint: What the decoder said of a picture that it did read.
        size: (H, W), upright as it is trained on.
        stored: (H, W) before EXIF rotation.
        fingerprint: To compare it with others.
        mask: Of its mask, if it has one.
        target: Of a data set whose files are not known.
    """

    problem: tuple[str, str] | None = None
    complaint: str = ""
    size: tuple[int, int] | None = None
    stored: tuple[int, int] | None = None
    fingerprint: Fingerprint | None = None
    mask: SeenMask | None = None
    target: Arrays | None = None


def see(job: Job) -> Seen:
    """Reads a picture and its mask."""
    seen = Seen() if job.file is None else _see_picture(job.file)
    return seen if job.mask is None else seen._replace(mask=_see_mask(job.mask, job.classes))


def _see_picture(path: Path) -> Seen:
    try:
        if not os.path.isfile(path):
            return Seen(("image_missing", "no such file" + _other_suffix(path)))
        if path.stat().st_size > LARGEST_FILE:
            return Seen(("image_broken", f"a file of {path.stat().st_size} bytes"))
        data = path.read_bytes()
        stored = _header(data)
        printed()
        image = decode_image(data, where="")
    except DataError as error:
        printed()
        return Seen(("image_broken", str(error).removeprefix(": ")))
    except (OSError, MemoryError) as error:
        return Seen(("image_broken", getattr(error, "strerror", None) or type(error).__name__))
    complaint = " ".join(line for line in printed().split("\n") if not HARMLESS.search(line)).strip()[:120]
    size = (image.shape[0], image.shape[1])
    if any(word in complaint.lower() for word in SERIOUS):
        return Seen(("image_broken", f"damaged: {complaint}"), size=size, stored=stored or size)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return Seen(None, complaint, size, stored or size, fingerprint(image, digest))


def _header(data: bytes) -> tuple[int, int] | None:
    """(H, W) that the file claims, before anything is decoded; None where Pillow does not know it.

    Raises:
        DataError: It claims too much to decode.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.height, picture.width
    except Image.DecompressionBombError as error:
        raise DataError(f": not decoded: {str(error).split(',')[0]}") from None
    except DAMAGED:
        return None


def _other_suffix(path: Path) -> str:
    """A hint at the same name with another suffix."""
    for suffix in sorted(EXTENSIONS):
        for other in (path.with_suffix(suffix), path.with_suffix(suffix.upper())):
            if os.path.isfile(other):
                return f"; there is {other.name}"
    return ""


def _see_mask(path: Path, classes: int) -> SeenMask:
    try:
        if path.stat().st_size > LARGEST_FILE:
            return SeenMask(f"a file of {path.stat().st_size} bytes")
        ids = read_ids(path, classes)
    except DataError as error:
        return SeenMask(str(error).removeprefix(f"{path}: "))
    except (OSError, MemoryError) as error:
        return SeenMask(getattr(error, "strerror", None) or type(error).__name__)
    return SeenMask("", (ids.shape[0], ids.shape[1]), _counts(ids))


def _counts(ids: np.ndarray) -> dict[int, int]:
    """Pixels of each id, of the first `MANY_IDS` of them."""
    if ids.dtype in (np.bool_, np.uint8):
        counts = np.bincount(ids.astype(np.uint8).ravel(), minlength=256)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, numbers = np.unique(ids, return_counts=True)
    return dict(zip(values[:MANY_IDS].tolist(), numbers[:MANY_IDS].tolist(), strict=True))


class See:
    """Reads images of a data set through itself: one that is registered by its user, or generates them."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, index: int) -> Seen:
        """As `see`."""
        try:
            sample = self.dataset.read(index)
        except DataError as error:
            return Seen(("image_broken", str(error)))
        size = (sample.image.shape[0], sample.image.shape[1])
        mask = sample.target.pop("mask", None)
        seen_mask = None if mask is None else SeenMask("", (mask.shape[0], mask.shape[1]), _counts(mask))
        digest = hashlib.blake2b(sample.image.tobytes(), digest_size=16).digest()
        return Seen(None, "", size, size, fingerprint(sample.image, digest), seen_mask, sample.target)
