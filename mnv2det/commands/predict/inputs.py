"""Lists what is to be predicted: files, folders, patterns and cameras."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

from mnv2det.commands.predict.video import CODECS, VIDEOS, is_video
from mnv2det.data.images import EXTENSIONS
from mnv2det.errors import DataError

ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
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


def list_inputs(patterns: Sequence[str | os.PathLike[str]]) -> list[Input]:
    """Lists all inputs in order, each with a stem of its own.

    Args:
        patterns: Files, folders (with all pictures and videos below them), glob patterns, ``camera:0``.

    Raises:
        DataError: One of them does not exist, matches nothing or is an address.
    """
    taken: set[str] = set()
    inputs = []
    for file in (file for pattern in patterns for file in _expand(os.fspath(pattern))):
        plain = f"camera{file}" if isinstance(file, int) else file.stem
        candidates = chain([plain], (f"{plain}_{number}" for number in count(2)))
        stem = next(name for name in candidates if name not in taken)
        taken.add(stem)
        inputs.append(Input(file, stem, isinstance(file, int) or is_video(file)))
    return inputs


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


def _expand(item: str) -> list[Path] | list[int]:
    """The files that an argument stands for, or the number of a camera."""
    if ADDRESS.match(item):
        raise DataError(f"{item}: addresses are not fetched; expected a file, folder, pattern or camera:0")
    if item.startswith("camera:"):
        number = CAMERA.fullmatch(item)
        if number is None:
            raise DataError(f"{item}: expected camera: and a number, such as camera:0")
        return [int(number[1])]
    path = Path(item)
    known = EXTENSIONS | VIDEOS
    if path.is_file():
        return [path]
    if path.is_dir():
        listed, what = path.rglob("*"), "no images or videos in it"
    elif glob.has_magic(item):
        listed, what = (Path(name) for name in glob.iglob(item, recursive=True)), "no image or video matches"
    else:
        raise DataError(f"{item}: no such image, video or folder")
    files = sorted({path for path in listed if path.suffix.lower() in known and path.is_file()})
    if not files:
        raise DataError(f"{item}: {what} (looked for {', '.join(sorted(known))})")
    return files
