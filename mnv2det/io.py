"""Files and the machine: run folders, atomic writes, JSON, optional libraries, processor cores."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from mnv2det.errors import ConfigError, DataError

T = TypeVar("T")
CONFIG = "config.yaml"  # the config in a run folder, and in a folder of imported data


class RunFolder:
    """Where a training run keeps its files.

    Args:
        path: The folder; need not exist.

    Attributes:
        path: The folder.
        config: The configuration as YAML, with its bases and overrides merged.
        best: The weights of the best evaluation.
        checkpoint: The newest checkpoint.
        metrics: Losses and metrics, a line of JSON for each record.
        predictions: A picture of predictions beside ground truth.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / CONFIG
        self.best = self.path / "best.safetensors"
        self.checkpoint = self.path / "last.pt"
        self.metrics = self.path / "metrics.jsonl"
        self.predictions = self.path / "predictions.png"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def exists(self) -> bool:
        """Whether a run was begun in this folder: it holds a config."""
        return os.path.isfile(self.config)

    def check_unused(self) -> None:
        """Checks that a new run may be written here.

        Raises:
            ConfigError: The path is a file, or the folder holds a run with a checkpoint.
        """
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            raise ConfigError(f"{self}: is a file; a run needs a folder")
        if os.path.exists(self.checkpoint):
            raise ConfigError(f"{self}: holds a run already; choose another --out, or go on with --resume {self}")

    def check_begun(self) -> None:
        """Checks that this is a run folder.

        Raises:
            ConfigError: It is not.
        """
        if not self.exists:
            raise ConfigError(f"{self}: not a run folder (no {CONFIG} in it)")


def config_file(source: str | os.PathLike[str]) -> Path:
    """The config file that is meant by "a run folder or a YAML file".

    Raises:
        ConfigError: A folder holds no run. A file is not looked at: `load_config` does that.
    """
    if not os.path.isdir(source):
        return Path(source)
    run = RunFolder(source)
    run.check_begun()
    return run.config


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
    # of a long name only the beginning, since there is no room for more characters beside the longest names;
    # what a killed process leaves in a run folder is removed by its name
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:32]}.")
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


def sync_folder(folder: str | os.PathLike[str]) -> None:
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
        data: Plain nested data; see `to_json`.

    Raises:
        DataError: The file cannot be written.
    """
    text = to_json(data, indent=2) + "\n"
    try:
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise DataError(f"{path}: cannot write ({error.strerror})") from None


def to_json(data: Any, indent: int | None = None) -> str:
    """Plain nested data as JSON. NaN and infinity, which JSON has no words for, become null."""
    return json.dumps(_finite(data), indent=indent, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data


def cache_folder() -> Path:
    """Where what can be made again is kept: ``$MNV2DET_CACHE``, or ``mnv2det`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("MNV2DET_CACHE") or os.path.join(home, "mnv2det"))


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_watched() -> bool:
    """Whether stderr is a terminal, where a progress bar is seen; programs without a console have no stderr at all."""
    return sys.stderr is not None and sys.stderr.isatty()


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
