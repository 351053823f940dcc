"""``last.pt``: everything a run needs to go on, as plain types."""

from __future__ import annotations

import io
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mnv2det.errors import WeightsError
from mnv2det.models.weights.files import write_atomically

FORMAT = 1


@dataclass
class Progress:
    """Where a run is; travels in the checkpoint.

    Attributes:
        step: Optimizer steps done.
        seconds: Time spent on them: loading included, evaluation and start-up not.
        best: The best value of the deciding figure so far, None before the first evaluation.
        skipped: Broken images left out so far.
        figures: Of the latest evaluation.
    """

    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    skipped: int = 0
    figures: dict[str, float] = field(default_factory=dict)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes the state; ``path`` always holds a whole checkpoint, the old or the new one."""
    data = io.BytesIO()  # torch.save into a full disk would raise no OSError
    torch.save({"format": FORMAT, **state}, data)
    write_atomically(path, lambda file: file.write(data.getbuffer()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote; runs no code that the file may hold.

    Raises:
        WeightsError: The file is missing, damaged or no checkpoint of ours.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no checkpoint there; nothing to resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: damaged or foreign checkpoint ({str(error).splitlines()[0][:120]})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise WeightsError(f"{path}: not a checkpoint of this version")
    return state


def changed_keys(before: Any, now: Any, place: str = "") -> list[str]:
    """Dotted keys of two nested configs whose values differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line for key in keys for line in changed_keys(before.get(key), now.get(key), f"{place}.{key}".lstrip("."))
        ]
    return [] if before == now else [f"{place} ({before!r} -> {now!r})"]
