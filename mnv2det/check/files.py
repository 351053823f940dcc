"""Reading one picture and its mask for the check; runs in the workers."""

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
from mnv2det.data.duplicates import Fingerprint, fingerprint_of
from mnv2det.data.images import DAMAGED, EXTENSIONS, LARGEST_FILE, decode_image
from mnv2det.data.masks import read_ids
from mnv2det.errors import DataError

MANY_IDS = 300  # of a mask, more than any class list has
HARMLESS = re.compile(r"libpng warning|\bWARN\b")  # what decoders print of pictures that are complete


class PictureFiles(NamedTuple):
    """A picture and, perhaps, its mask; ``classes``, their number, is for messages."""

    file: Path | None
    mask: Path | None = None
    classes: int = 255


class MaskFacts(NamedTuple):
    """A mask's size (H, W) and the pixels of each id, or what is wrong with it."""

    problem: str
    size: tuple[int, int] = (0, 0)
    counts: dict[int, int] = {}  # noqa: RUF012 - never written to


class PictureFacts(NamedTuple):
    """What a picture's file holds.

    Attributes:
        problem: Kind and description of what keeps it from being read.
        complaint: What the decoder printed about a picture that it did read.
        size: (H, W), upright as it is trained on.
        stored: (H, W) before EXIF rotation.
        fingerprint: To compare it with others.
        mask: Of its mask, if it has one.
        target: The annotation, of a data set whose files are not known.
    """

    problem: tuple[str, str] | None = None
    complaint: str = ""
    size: tuple[int, int] | None = None
    stored: tuple[int, int] | None = None
    fingerprint: Fingerprint | None = None
    mask: MaskFacts | None = None
    target: Arrays | None = None


def inspect(files: PictureFiles) -> PictureFacts:
    """Reads a picture and its mask."""
    facts = PictureFacts() if files.file is None else _inspect_picture(files.file)
    return facts if files.mask is None else facts._replace(mask=_inspect_mask(files.mask, files.classes))


def _inspect_picture(path: Path) -> PictureFacts:
    try:
        if not os.path.isfile(path):
            return PictureFacts(("image_missing", "no such file" + _other_suffix(path)))
        if path.stat().st_size > LARGEST_FILE:
            return PictureFacts(("image_broken", f"a file of {path.stat().st_size} bytes"))
        data = path.read_bytes()
        printed()
        image = decode_image(data, where="")
    except DataError as error:
        printed()
        return PictureFacts(("image_broken", str(error).removeprefix(": ")), stored=_stored_size(data))
    except (OSError, MemoryError) as error:
        return PictureFacts(("image_broken", getattr(error, "strerror", None) or type(error).__name__))
    complaint = " ".join(line for line in printed().split("\n") if not HARMLESS.search(line)).strip()[:120]
    size = (image.shape[0], image.shape[1])
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return PictureFacts(None, complaint, size, _stored_size(data) or size, fingerprint_of(image, digest))


def _stored_size(data: bytes) -> tuple[int, int] | None:
    """(H, W) that the file states, before EXIF rotation; None where Pillow does not know it."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.height, picture.width
    except DAMAGED:
        return None


def _other_suffix(path: Path) -> str:
    """A hint at the same name with another suffix."""
    for suffix in sorted(EXTENSIONS):
        for other in (path.with_suffix(suffix), path.with_suffix(suffix.upper())):
            if os.path.isfile(other):
                return f"; there is {other.name}"
    return ""


def _inspect_mask(path: Path, classes: int) -> MaskFacts:
    try:
        if path.stat().st_size > LARGEST_FILE:
            return MaskFacts(f"a file of {path.stat().st_size} bytes")
        ids = read_ids(path, classes)
    except DataError as error:
        return MaskFacts(str(error).removeprefix(f"{path}: "))
    except (OSError, MemoryError) as error:
        return MaskFacts(getattr(error, "strerror", None) or type(error).__name__)
    return MaskFacts("", (ids.shape[0], ids.shape[1]), _counts(ids))


def _counts(ids: np.ndarray) -> dict[int, int]:
    """Pixels of each id, of the first `MANY_IDS` of them."""
    if ids.dtype in (np.bool_, np.uint8):
        counts = np.bincount(ids.astype(np.uint8).ravel(), minlength=256)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, numbers = np.unique(ids, return_counts=True)
    return dict(zip(values[:MANY_IDS].tolist(), numbers[:MANY_IDS].tolist(), strict=True))


class DatasetInspector:
    """Reads images of a data set through itself: one that is registered by its user, or generates them."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, index: int) -> PictureFacts:
        """As `inspect`, of the image ``index``."""
        try:
            sample = self.dataset.read(index)
        except DataError as error:
            return PictureFacts(("image_broken", str(error)))
        size = (sample.image.shape[0], sample.image.shape[1])
        mask = sample.target.pop("mask", None)
        mask_facts = None if mask is None else MaskFacts("", (mask.shape[0], mask.shape[1]), _counts(mask))
        digest = hashlib.blake2b(sample.image.tobytes(), digest_size=16).digest()
        return PictureFacts(None, "", size, size, fingerprint_of(sample.image, digest), mask_facts, sample.target)
