"""Finding the same picture twice, even if it was encoded or resized again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

THUMB = 16  # side of the thumbnails, in pixels
MAX_DISTANCE = 10  # of the hashes' 63 bits; the thumbnails decide in the end, so this may be generous
FLAT = 6.0  # grey levels; a picture with a smaller standard deviation has no features to recognise it by
ROWS, COLUMNS = 64, 4096  # hashes compared at once: as many as the caches hold
PAIRS = 16384  # pairs of thumbnails compared at once, which takes about 100 MB


class Tolerance(NamedTuple):
    """How much two thumbnails may differ, after their mean brightness was made equal.

    Attributes:
        mean: Largest mean difference, in grey levels.
        high: Largest 99th percentile of the differences, in grey levels: something that moved makes a large
            difference in a few places.
        relative: Largest mean difference as a share of the thumbnails' own standard deviation: dark pictures
            never differ by many grey levels.
    """

    mean: float
    high: float
    relative: float


# Chosen on 960 photographs (BCCD, CamVid, and parts of VOC and COCO). A picture that was resized, brightened or saved
# with JPEG quality 20 or better differs less than SAME from itself. The next frame of a video, a fifteenth of a second
# later, differs a little more.
SAME = Tolerance(2.5, 7.5, 0.12)
# The next frame of a video, or a second exposure of the same scene.
NEAR = Tolerance(4.0, 16.0, 0.2)


class Fingerprint(NamedTuple):
    """What a picture is recognised by.

    Attributes:
        digest: Of its file.
        hash: Perceptual hash, 64 bits of which the first is always 0.
        thumb: Bytes of a thumbnail, 16 x 16 pixels of RGB.
    """

    digest: bytes
    hash: int
    thumb: bytes


def fingerprint(image: NDArray[np.uint8], digest: bytes) -> Fingerprint:
    """Computes what a picture is recognised by.

    The perceptual hash says which of the 64 lowest frequencies of a 32x32 grey copy lie above their median
    (pHash).

    Args:
        image: uint8 (H, W, 3), RGB.
        digest: Of its file.
    """
    # Resizing in two steps is faster. Small pictures are resized once, as enlarging them would blur them.
    small = image if min(image.shape[:2]) < 64 else cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    thumb = cv2.resize(small, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(cv2.resize(small, (32, 32), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    low = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean brightness, which tells no picture from another
    return Fingerprint(digest, int.from_bytes(np.packbits(bits).tobytes(), "big"), thumb.tobytes())


class Fingerprints:
    """Fingerprints of N pictures in flat arrays; None stands for a picture that could not be read.

    Attributes:
        digests: Of the files.
        hashes: uint64 (N,).
        thumbs: uint8 (N, 16 * 16 * 3).
        flat: bool (N,), whether a picture has no features to recognise it by.
    """

    def __init__(self, prints: Sequence[Fingerprint | None]) -> None:
        empty = bytes(THUMB * THUMB * 3)
        self.digests = [one.digest if one else None for one in prints]
        self.hashes = np.array([one.hash if one else 0 for one in prints], np.uint64)
        thumbs = b"".join(one.thumb if one else empty for one in prints)
        self.thumbs: NDArray[np.uint8] = np.frombuffer(thumbs, np.uint8).reshape(len(prints), len(empty))
        blocks = (self.thumbs[first : first + PAIRS] for first in range(0, len(prints), PAIRS))
        self.flat = np.concatenate(
            [np.zeros(0, np.bool_), *(block.std(axis=1, dtype=np.float32) < FLAT for block in blocks)]
        )

    def __len__(self) -> int:
        return len(self.digests)


def matches(rows: Fingerprints, columns: Fingerprints | None = None, tolerance: Tolerance = SAME) -> NDArray[np.int64]:
    """Finds for every picture another one that shows the same.

    It is the first one whose file is the same, or else the first one whose hash and thumbnail are alike. Pictures
    without features all look alike, so only their files are compared. All pairs are compared, in blocks.

    Args:
        rows: N pictures.
        columns: The pictures to search; None searches the rows themselves, for each picture those before it.
        tolerance: How much thumbnails may differ.

    Returns:
        int64 (N,): index into the columns, -1 where none shows the same.
    """
    others = rows if columns is None else columns
    result = _equal_files(rows, others, columns is None)
    kept = np.flatnonzero(~others.flat)
    hashes = others.hashes[kept]
    for first in range(0, len(rows), ROWS):
        left = np.arange(first, min(first + ROWS, len(rows)))
        left = left[(result[left] < 0) & ~rows.flat[left]]
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
            _enter_alike((rows, others), pairs, tolerance, result)
            left = left[result[left] < 0]
    return result


def _equal_files(rows: Fingerprints, columns: Fingerprints, within: bool) -> NDArray[np.int64]:
    """As `matches`, by the files' digests alone; ``within`` admits only pictures before each row."""
    result = np.full(len(rows), -1, np.int64)
    first: dict[bytes, int] = {}
    for index, digest in enumerate(columns.digests):
        if digest is not None:
            first.setdefault(digest, index)
    for index, digest in enumerate(rows.digests):
        other = first.get(digest, -1) if digest is not None else -1
        result[index] = other if not within or other < index else -1
    return result


def _enter_alike(
    prints: tuple[Fingerprints, Fingerprints],
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    tolerance: Tolerance,
    result: NDArray[np.int64],
) -> None:
    """Writes into ``result`` the pairs whose thumbnails are alike; pairs are sorted by row, then column."""
    row, column = pairs
    for start in range(0, len(row), PAIRS):
        block = slice(start, start + PAIRS)
        same = alike(prints[0].thumbs[row[block]], prints[1].thumbs[column[block]], tolerance)
        # backwards, so that the first of several columns is the one that stays
        rows, columns = row[block][same][::-1], column[block][same][::-1]
        new = result[rows] < 0
        result[rows[new]] = columns[new]


def alike(first: NDArray[np.uint8], second: NDArray[np.uint8], tolerance: Tolerance) -> NDArray[np.bool_]:
    """Which pairs of thumbnails differ by no more than the tolerance.

    Args:
        first: uint8 (N, T).
        second: uint8 (N, T).
        tolerance: How much they may differ.

    Returns:
        bool (N,).
    """
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
