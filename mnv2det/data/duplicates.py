"""Finding the same picture twice, even if it was encoded or resized again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

THUMB = 16  # side of the small pictures that decide
MAX_DISTANCE = 10  # of 63 bits; only thumbs decide, so it may be generous
FLAT = 6.0  # grey levels: below this deviation a picture has no features to know it by
ROWS, COLUMNS = 64, 4096  # compared at once: what the caches hold
PAIRS = 16384  # of thumbs compared at once: about 100 MB


class Tolerance(NamedTuple):
    """How much two thumbs may differ, once their mean brightness is the same.

    Attributes:
        mean: Grey levels, on average.
        high: Grey levels that at most one value in a hundred exceeds: what moves differs much in few places.
        relative: ``mean`` as a share of the thumb's own deviation: dark pictures differ little anyway.
    """

    mean: float
    high: float
    relative: float


# tried on 960 photographs (BCCD, CamVid, and parts of VOC and COCO): down to JPEG quality 20, resized or brightened a
# picture differs less from itself, and the next frame of a video, a fifteenth of a second later, a little more
SAME = Tolerance(2.5, 7.5, 0.12)
# the next frame, or a second exposure
NEAR = Tolerance(4.0, 16.0, 0.2)


class Fingerprint(NamedTuple):
    """What a picture is known by: a digest of its file, a perceptual hash of 64 bits, a thumb of RGB bytes."""

    digest: bytes
    hash: int
    thumb: bytes


def fingerprint_of(image: NDArray[np.uint8], digest: bytes) -> Fingerprint:
    """Hashes a picture.

    The hash is the usual one from the lowest frequencies of a 32x32 grey copy: which of them lie
    above their median.

    Args:
        image: uint8 (H, W, 3), RGB.
        digest: Of its file.
    """
    # twice, because it is faster; small pictures only once, because enlarging them would blur
    small = image if min(image.shape[:2]) < 64 else cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    thumb = cv2.resize(small, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(cv2.resize(small, (32, 32), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    low = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean brightness says nothing
    return Fingerprint(digest, int.from_bytes(np.packbits(bits).tobytes(), "big"), thumb.tobytes())


class Fingerprints:
    """Fingerprints of many pictures in flat arrays; None stands for a picture that could not be read."""

    def __init__(self, fingerprints: Sequence[Fingerprint | None]) -> None:
        empty = bytes(THUMB * THUMB * 3)
        self.digests = [item.digest if item else None for item in fingerprints]
        self.hashes = np.array([item.hash if item else 0 for item in fingerprints], np.uint64)
        thumbs = b"".join(item.thumb if item else empty for item in fingerprints)
        self.thumbs: NDArray[np.uint8] = np.frombuffer(thumbs, np.uint8).reshape(len(fingerprints), len(empty))
        parts = (self.thumbs[first : first + PAIRS] for first in range(0, len(fingerprints), PAIRS))
        self.flat = np.concatenate(
            [np.zeros(0, np.bool_), *(part.std(axis=1, dtype=np.float32) < FLAT for part in parts)]
        )

    def __len__(self) -> int:
        return len(self.digests)


def matches(rows: Fingerprints, columns: Fingerprints | None = None, tolerance: Tolerance = SAME) -> NDArray[np.int64]:
    """For every picture one of the others that shows the same.

    That is the first whose file is the same or else, by hashes and thumbs, the first that looks the
    same; flat pictures, which all look the same, are left out of that. All pairs are compared, in blocks.

    Args:
        rows: N pictures.
        columns: The others; None compares the rows with each other, each with those before it.
        tolerance: What counts as the same.

    Returns:
        int64 (N,): index into the columns, -1 where none shows the same.
    """
    others = rows if columns is None else columns
    found = _equal_files(rows, others, columns is None)
    kept = np.flatnonzero(~others.flat)
    hashes = others.hashes[kept]
    for first in range(0, len(rows), ROWS):
        left = np.arange(first, min(first + ROWS, len(rows)))
        left = left[(found[left] < 0) & ~rows.flat[left]]
        end = len(kept) if columns is not None else int(np.searchsorted(kept, first + ROWS))
        for start in range(0, end, COLUMNS):
            if not len(left):
                break
            block = kept[start : min(start + COLUMNS, end)]
            near = np.bitwise_count(rows.hashes[left, None] ^ hashes[start : start + len(block)]) <= MAX_DISTANCE
            row, column = np.divmod(np.flatnonzero(near), len(block))
            pairs = left[row], block[column]
            if columns is None:
                before = pairs[1] < pairs[0]
                pairs = pairs[0][before], pairs[1][before]
            _confirm((rows, others), pairs, tolerance, found)
            left = left[found[left] < 0]
    return found


def _equal_files(rows: Fingerprints, columns: Fingerprints, within: bool) -> NDArray[np.int64]:
    found = np.full(len(rows), -1, np.int64)
    first: dict[bytes, int] = {}
    for index, digest in enumerate(columns.digests):
        if digest is not None:
            first.setdefault(digest, index)
    for index, digest in enumerate(rows.digests):
        place = first.get(digest, -1) if digest is not None else -1
        found[index] = place if not within or place < index else -1
    return found


def _confirm(
    fingerprints: tuple[Fingerprints, Fingerprints],
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    tolerance: Tolerance,
    found: NDArray[np.int64],
) -> None:
    """Enters the candidates whose thumbs agree; they come in the order of rows, then columns."""
    row, column = pairs
    for start in range(0, len(row), PAIRS):
        part = slice(start, start + PAIRS)
        same = alike(fingerprints[0].thumbs[row[part]], fingerprints[1].thumbs[column[part]], tolerance)
        # backwards, so that of several the first stays
        chosen, place = row[part][same][::-1], column[part][same][::-1]
        new = found[chosen] < 0
        found[chosen[new]] = place[new]


def alike(first: NDArray[np.uint8], second: NDArray[np.uint8], tolerance: Tolerance) -> NDArray[np.bool_]:
    """Which pairs of thumbs (N, T) show the same: bool (N,)."""
    difference = first.astype(np.float32) - second.astype(np.float32)
    difference -= difference.mean(axis=1, keepdims=True)
    np.abs(difference, out=difference)
    mean = difference.mean(axis=1)
    rank = int(difference.shape[1] * 0.99)
    high = np.partition(difference, rank, axis=1)[:, rank]
    deviation = np.minimum(first.std(axis=1), second.std(axis=1))
    same: NDArray[np.bool_] = (
        (mean <= tolerance.mean) & (high <= tolerance.high) & (mean <= tolerance.relative * deviation)
    )
    return same
