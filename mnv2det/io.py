"""Files and the machine: atomic writes, JSON, optional libraries, processor cores."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from mnv2det.errors import ConfigError, DataError

T = TypeVar("T")


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that it is there whole or not at all.

    Args:
        path: The file; its folder is made if it is missing.
        write: Is called with a temporary file beside ``path``, which is then synced and renamed into place.

    Raises:
        OSError: The file system refuses; ``path`` is as it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def sync_folder(folder: Path) -> None:
    """Makes a rename in a folder survive a power failure, where the file system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Writes data for other programs to read.

    Args:
        path: The file.
        data: Plain nested data.

    Raises:
        DataError: The file cannot be written.
    """
    try:
        write_atomically(path, lambda file: file.write(json.dumps(data, indent=2).encode() + b"\n"))
    except OSError as error:
        raise DataError(f"{path}: cannot write ({error.strerror})") from None


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def import_optional(module: str, extra: str) -> Any:
    """Imports a library that only some installations have.

    Args:
        module: Name of the module.
        extra: The extra of this package that brings it.

    Raises:
        ConfigError: It is not installed; the message says which command installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{module} is not installed ({error}): pip install 'mnv2det[{extra}]'") from None


def evenly_spread(items: Sequence[T], count: int) -> list[T]:
    """Takes at most ``count`` items, evenly spread over the whole list, so that its order does not decide.

    The first and the last item are among them if there are two or more.
    """
    if len(items) <= count:
        return list(items)
    last, steps = len(items) - 1, max(count - 1, 1)
    return [items[number * last // steps] for number in range(count)]
