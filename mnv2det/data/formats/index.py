"""Keeps what was read of a large annotation file as arrays on disk, which all processes share.

An index is named after the content of the file, so that none is ever out of date: a changed file has another name. It
is a folder of ``.npy`` files and a list of their checksums; a damaged one is read anew. Indices that were not used for
longest are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnv2det.io import cache_folder
from mnv2det.version import __version__

LEAST = 2**25  # bytes of a file that is worth it
MOST_KEPT = 8
ABANDONED = 86_400  # seconds
VERSION = 1  # of the arrays; another one when their meaning changes
ABOUT = "index.json"


class Index(NamedTuple):
    """What is kept of a file.

    Attributes:
        folder: Where it lies.
        arrays: By name, mapped from disk, not to be written to.
        about: What else was saved.
    """

    folder: Path
    arrays: dict[str, NDArray[Any]]
    about: dict[str, Any]


def indices() -> Path:
    """The folder of all indices."""
    return cache_folder() / "index"


def key_of(content: bytes, arguments: Mapping[str, Any]) -> str:
    """The name of an index.

    Args:
        content: Of the annotation file.
        arguments: On which the arrays depend as well.
    """
    digest = hashlib.sha256(content)
    digest.update(json.dumps([VERSION, __version__, arguments], sort_keys=True).encode())
    return digest.hexdigest()[:40]


def load(folder: Path) -> Index | None:
    """Maps an index into memory; None where there is none. One that is damaged is removed."""
    try:
        stored = json.loads((folder / ABOUT).read_bytes())
        arrays: dict[str, NDArray[Any]] = {}
        for name, checksum in stored["checksums"].items():
            array = arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            if _checksum(array) != checksum:
                raise ValueError(name)
        about = dict(stored["about"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(folder)
    return Index(folder, arrays, about)


def save(folder: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Writes an index so that it is there whole or not at all; of several processes the first one wins.

    Raises:
        OSError: The disk is full, or the cache cannot be written to.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        checksums = {name: _checksum(array) for name, array in arrays.items()}
        (temporary / ABOUT).write_text(json.dumps({"checksums": checksums, "about": dict(about)}))
        with contextlib.suppress(FileExistsError, OSError):
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_oldest(folder.parent)


def _checksum(array: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data.cast("B")) if array.size else 0


def _remove_oldest(parent: Path) -> None:
    """Removes the indices that were not used for longest, and what killed processes left long ago."""
    with contextlib.suppress(OSError):
        for path in parent.glob(".*"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
        found = sorted(parent.glob(f"*/{ABOUT}"), key=lambda path: path.parent.stat().st_mtime)
        for path in found[:-MOST_KEPT]:
            shutil.rmtree(path.parent, ignore_errors=True)
