"""Decoding pictures: OpenCV, RGB, upright, with one-line errors."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnv2det.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"
# what Pillow raises on damaged files
DAMAGED = (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error, Image.DecompressionBombError)
MOST_PIXELS = 2 * 89_478_485  # what Pillow takes for an attack
LARGEST_FILE = 2**30  # bytes
# folders that file systems and archives make, beside those whose names begin with a dot
SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "system volume information"}
)
# in coded data a marker is 0xFF before anything but a stuffed zero, a restart or another 0xFF
JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Reads a picture.

    A truncated JPEG is refused, although OpenCV would fill its missing rows with grey.

    Args:
        path: The file. Grey and CMYK become RGB, of 16 bits the upper eight are kept, alpha is
            dropped (the colours below it stay), EXIF rotation is applied.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        DataError: The file is missing, empty, truncated, too large or no picture.
    """
    try:
        if os.path.getsize(path) > LARGEST_FILE:
            raise DataError(f"{path}: a file of {os.path.getsize(path)} bytes; not decoded")
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the image ({error.strerror})") from None
    except ValueError as error:  # a name no file can have
        raise DataError(f"{str(path)!a}: cannot read the image ({error})") from None
    return decode_image(data, where=str(path))


def decode_image(data: bytes, *, where: str) -> NDArray[np.uint8]:
    """Decodes the bytes of a picture file; see `read_image`."""
    if not data:
        raise DataError(f"{where}: the image file is empty")
    if data.startswith(JPEG_START):
        ends, pixels = _walk_jpeg(data)
        if not ends:
            raise DataError(f"{where}: truncated JPEG (no end-of-image marker in {len(data)} bytes)")
    elif data.startswith(PNG_START):
        if data.rfind(b"IEND") < 0:
            raise DataError(f"{where}: truncated PNG (no IEND chunk in {len(data)} bytes)")
        pixels = int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
    else:
        pixels = _claimed_pixels(data)
    if pixels > MOST_PIXELS:
        raise DataError(f"{where}: not decoded: it claims {pixels} pixels, more than {MOST_PIXELS}")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise DataError(f"{where}: cannot decode the image ({' '.join(str(error).split())[:120]})") from None
    if image is None:
        raise DataError(f"{where}: not an image, or a damaged one ({len(data)} bytes)")
    return image  # type: ignore[return-value]


def _walk_jpeg(data: bytes) -> tuple[bool, int]:
    """Whether the picture itself reaches its end marker, and how many pixels its header claims.

    An embedded thumbnail has an end marker too, and phones append films behind the picture's, so
    the segments are walked.
    """
    position, pixels = 2, 0
    while (match := JPEG_MARKER.search(data, position)) is not None:
        marker, position = data[match.start() + 1], match.end()
        if marker == 0xD9:
            return True, pixels
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the header of a frame
            height, width = data[position + 3 : position + 5], data[position + 5 : position + 7]
            pixels = max(pixels, int.from_bytes(height, "big") * int.from_bytes(width, "big"))
        # every other segment states its length; behind a scan's header the search goes on in coded data
        position += int.from_bytes(data[position : position + 2], "big")
    return False, pixels


def _claimed_pixels(data: bytes) -> int:
    """Pixels that the header of any other file claims; 0 where Pillow does not know it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as picture:
                return picture.width * picture.height
    except Image.DecompressionBombError:
        return MOST_PIXELS + 1
    except DAMAGED:
        return 0


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """All pictures below a folder, sorted, without those of `is_hidden`.

    Raises:
        DataError: The folder is missing or holds none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{folder}: no such folder")
    images = sorted(path for path in (root / name for name in image_names(root)) if path.is_file())
    if not images:
        raise DataError(f"{folder}: no images in it (looked for {', '.join(sorted(EXTENSIONS))})")
    return images


def image_names(folder: str | os.PathLike[str]) -> list[str]:
    """Paths below a folder of all pictures in it and its folders, sorted, without those of `is_hidden`."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        pictures = [name for name in files if os.path.splitext(name)[1].lower() in EXTENSIONS and not is_hidden(name)]
        names += [os.path.relpath(os.path.join(place, name), folder) for name in pictures]
    return sorted(names)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to a tool or file system, such as ``.thumbnails`` or ``@eaDir``."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def inside(root: Path, relative: str, *, where: str) -> Path:
    """Joins a path found in a data file to the folder it must stay in.

    Args:
        root: The folder.
        relative: As the data file states it.
        where: File and entry that state it, for the message.

    Raises:
        DataError: The path is absolute or climbs out of ``root``.
    """
    # judged alone: beside a root of "." or ".." a prefix says nothing
    plain = os.path.normpath(relative)
    if os.path.isabs(relative) or plain.split(os.sep)[0] == os.pardir or "\0" in relative:
        raise DataError(f"{where}: path '{relative}' leaves the data folder {root}")
    return Path(os.path.normpath(os.path.join(root, plain)))


def read_sized(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Reads a picture whose annotation states its size.

    Some annotations were drawn on the stored pixels, not on the upright picture: where only that
    fits the stated size, EXIF rotation is not applied.

    Args:
        path: The file.
        size: (H, W) as annotated.

    Raises:
        DataError: As `read_image`, or the size is another one.
    """
    image = read_image(path)
    if image.shape[:2] != size and image.shape[1::-1] == size:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flags)  # type: ignore[assignment]
    if image.shape[:2] != size:
        raise DataError(f"{path}: image is {image.shape[1]}x{image.shape[0]}, its annotation says {size[1]}x{size[0]}")
    return image
