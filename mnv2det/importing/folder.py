"""The folder that an import or export writes: whole or not at all, apart from what is read, with a record."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnv2det.errors import ConfigError

RECORD = "import.json"  # what was imported and what was left out
VERSION = 1


def check_apart(source: Path, target: Path) -> None:
    """Refuses to write into what is read, or around it."""
    real, here = target.resolve(), source.resolve()
    if real == here or here in real.parents or real in here.parents:
        raise ConfigError(f"-o {target}: lies in the folder that is read, or the other way round ({source})")


def read_record(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What an import wrote about itself into a folder; None where the folder is no import."""
    try:
        record = json.loads((Path(folder) / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("version") == VERSION else None


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Writes a folder beside its place and moves it there when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name[:100]}.{os.getpid()}.part"
    draft.mkdir()
    try:
        write(draft)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
