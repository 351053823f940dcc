"""Lists what is to be predicted: files, folders, patterns and cameras; decides what of a folder is a picture."""

from __future__ import annotations

import errno
import glob
import os
import re
import warnings
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import cv2
from PIL import Image

from mnv2det.commands.predict.video import CODECS, VIDEOS, is_video
from mnv2det.data.images import DAMAGED, EXTENSIONS, is_hidden
from mnv2det.errors import DataError

ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
PILLOW_FORMATS = frozenset({"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"})
CAMERA = re.compile(r"camera:(\d{1,3})")


class Input(NamedTuple):
    """A picture, a video or a camera.

    Attributes:
        file: The file, or the number of the camera.
        stem: Stem of the files that are written for it; no other input has the same.
        video: Whether it is a video or camera.
    """

    file: Path | int
    stem: str
    video: bool

    @property
    def name(self) -> str:
        """Its name in results and messages."""
        return f"camera:{self.file}" if isinstance(self.file, int) else str(self.file)

    @property
    def picture_name(self) -> str:
        """File name of the annotated picture: with the input's suffix, or png where that is no picture's."""
        suffix = self.file.suffix.lower() if isinstance(self.file, Path) else ""
        return self.stem + (suffix if suffix in EXTENSIONS else ".png")


class Listing(NamedTuple):
    """What was found to predict.

    Attributes:
        inputs: Pictures, videos and cameras in order, each with a stem of its own.
        left_out: A line for each file that is neither a picture nor a video.
    """

    inputs: list[Input]
    left_out: list[str]


def list_inputs(patterns: Sequence[str | os.PathLike[str]]) -> Listing:
    """Lists all inputs in order, each with a stem of its own.

    Args:
        patterns: Files, folders (with all pictures and videos below them), glob patterns, ``camera:0``. Hidden files
            and those of the system (see `is_hidden`) are read only if a pattern names them.

    Raises:
        DataError: One of them does not exist, matches nothing or is an address.
    """
    taken: set[str] = set()
    inputs, left_out = [], []
    for pattern in patterns:
        files, others = _expand(os.fspath(pattern))
        left_out += [f"{path}: neither a picture nor a video that can be read here" for path in others]
        for file in files:
            plain = f"camera{file}" if isinstance(file, int) else file.stem
            candidates = chain([plain], (f"{plain}_{number}" for number in count(2)))
            stem = next(name for name in candidates if name not in taken)
            taken.add(stem)
            inputs.append(Input(file, stem, isinstance(file, int) or is_video(file)))
    return Listing(inputs, left_out)


def too_long(item: Input, folder: Path, formats: frozenset[str]) -> str | None:
    """Says which file of an input cannot be written because its name is too long for the file system.

    Args:
        item: The input.
        folder: The output folder; it exists.
        formats: What is to be written.

    Returns:
        A line for the list of failures, or None if every name is short enough.
    """
    # a video's frames have short names in a folder that has the video's
    suffixes = [suffix for kind, suffix in (("voc", ".xml"), ("masks", ".png")) if kind in formats]
    names = [item.stem + ("" if item.video else suffix) for suffix in suffixes]
    if "pictures" in formats:
        names.append(item.stem + CODECS[0][0] if item.video else item.picture_name)
    for name in names:
        try:
            os.lstat(folder / name)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
                return f"{item.name}: cannot write {name}: the file system takes no name of {len(name)} characters"
    return None


def refuse_overwriting(inputs: Sequence[Input], folder: Path, formats: frozenset[str]) -> None:
    """Makes sure that no file that is read would be overwritten, whatever path leads to it.

    Args:
        inputs: From `list_inputs`.
        folder: The output folder.
        formats: What is to be written.

    Raises:
        DataError: One would be.
    """
    written = [folder / f"predictions.{kind}" for kind in ("json", "csv") if kind in formats]
    if "pictures" in formats:
        for item in inputs:
            names = [item.stem + suffix for suffix, _ in CODECS] if item.video else [item.picture_name]
            written += [folder / name for name in names]
    paths = {path.resolve() for path in written}
    # these hold a file or, for a video, a folder per input, or such a folder per task
    folders = [(folder / kind).resolve() for kind in ("masks", "voc") if kind in formats]
    read = {item.file.resolve() for item in inputs if isinstance(item.file, Path)}
    overwritten = sorted(path for path in read if path in paths or any(path.is_relative_to(f) for f in folders))
    if overwritten:
        raise DataError(f"--out {folder}: would overwrite the picture {overwritten[0]}; choose another folder")


def _expand(item: str) -> tuple[list[Path] | list[int], list[Path]]:
    """The files that an argument stands for, or the number of a camera; and the files that cannot be predicted."""
    if ADDRESS.match(item):
        raise DataError(f"{item}: addresses are not fetched; expected a file, folder, pattern or camera:0")
    if item.startswith("camera:"):
        number = CAMERA.fullmatch(item)
        if number is None:
            raise DataError(f"{item}: expected camera: and a number, such as camera:0")
        return [int(number[1])], []
    # os.path answers False where Path raises an error: at a name that is too long for any file
    if os.path.isfile(item):
        return [Path(item)], []
    if os.path.isdir(item):
        listed, what = _walk(item), "no images or videos in it"
    elif glob.has_magic(item):
        listed, what = _matches(item), "no image or video matches"
    else:
        raise DataError(f"{item}: no such image, video or folder")
    listed = sorted(set(listed))
    files = [path for path in listed if can_be_read(path)]
    if not files:
        raise DataError(f"{item}: {what} (looked for {', '.join(sorted(EXTENSIONS | VIDEOS))})")
    return files, sorted(set(listed).difference(files))


def _walk(folder: str) -> list[Path]:
    """All files in a folder and the folders below it, without the hidden ones."""
    files: list[Path] = []
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        files += [Path(path, name) for name in names if not is_hidden(name)]
    return [path for path in files if path.is_file()]


def _matches(pattern: str) -> list[Path]:
    """All files that a pattern stands for, without hidden ones, unless the pattern itself spells their names out."""
    spelled_out = Path(pattern).parts
    paths = map(Path, glob.iglob(pattern, recursive=True))
    return [
        path
        for path in paths
        if path.is_file() and not any(is_hidden(name) for name in path.parts if name not in spelled_out)
    ]


def can_be_read(path: Path) -> bool:
    """Whether a file is a picture or video by its suffix or, if that says nothing, by its first bytes."""
    if path.suffix.lower() in EXTENSIONS | VIDEOS:
        return True
    try:
        return cv2.haveImageReader(os.fspath(path)) or pillow_knows(path)
    except cv2.error:
        return False


def pillow_knows(path: Path) -> bool:
    """Whether a file is a picture that Pillow decodes by itself; for some kinds, such as EPS, it starts programs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a picture that is too large, which reading it reports
            with Image.open(path) as picture:
                return picture.format in PILLOW_FORMATS
    except Image.DecompressionBombError:
        return True
    except DAMAGED:
        return False
