"""What is to be predicted: files, folders, patterns and cameras."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mnv2det.commands.predict.video import CODECS, VIDEOS, is_video
from mnv2det.data.images import EXTENSIONS
from mnv2det.errors import DataError

ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
CAMERA = re.compile(r"camera:(\d{1,3})")


class Source(NamedTuple):
    """One input.

    Attributes:
        file: A file, or the number of a camera.
        stem: Of the files written for it, unlike that of any other input.
        video: Whether it is a video or camera.
    """

    file: Path | int
    stem: str
    video: bool

    @property
    def name(self) -> str:
        """As results call it."""
        return f"camera:{self.file}" if isinstance(self.file, int) else str(self.file)

    @property
    def picture(self) -> str:
        """Name of the annotated picture: the input's, or a png where its suffix is no picture's."""
        suffix = self.file.suffix.lower() if isinstance(self.file, Path) else ""
        return self.stem + (suffix if suffix in EXTENSIONS else ".png")


def sources_of(inputs: Sequence[str]) -> list[Source]:
    """All inputs in order, each with a stem of its own.

    Args:
        inputs: Files, folders (with all pictures and videos below them), patterns, ``camera:0``.

    Raises:
        DataError: One does not exist, matches nothing or is an address.
    """
    taken: set[str] = set()
    sources = []
    for file in (file for item in inputs for file in _expand(item)):
        plain = f"camera{file}" if isinstance(file, int) else file.stem
        stem, number = plain, 1
        while stem in taken:
            number += 1
            stem = f"{plain}_{number}"
        taken.add(stem)
        sources.append(Source(file, stem, isinstance(file, int) or is_video(file)))
    return sources


def refuse_overwriting(sources: Sequence[Source], folder: Path, formats: frozenset[str]) -> None:
    """Makes sure that no file that is read is one that would be written, by whatever way it is named.

    Args:
        sources: Of `sources_of`.
        folder: The output folder.
        formats: What is to be written.

    Raises:
        DataError: One is.
    """
    made = [folder / f"predictions.{kind}" for kind in ("json", "csv") if kind in formats]
    for item in sources:
        pictures = [item.stem + suffix for suffix, _ in CODECS] if item.video else [item.picture]
        made += [folder / name for name in pictures if "pictures" in formats]
    ours = {path.resolve() for path in made}
    # a file or, of a video, a folder for each; of several tasks in folders of their own
    below = [(folder / kind).resolve() for kind in ("masks", "voc") if kind in formats]
    read = {item.file.resolve() for item in sources if isinstance(item.file, Path)}
    own = sorted(path for path in read if path in ours or any(path.is_relative_to(kind) for kind in below))
    if own:
        raise DataError(f"--out {folder}: would overwrite the picture {own[0]}; choose another folder")


def _expand(item: str) -> list[Path] | list[int]:
    """The files that an input stands for, or a camera's number."""
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
    found = sorted({path for path in listed if path.suffix.lower() in known and path.is_file()})
    if not found:
        raise DataError(f"{item}: {what} (looked for {', '.join(sorted(known))})")
    return found
