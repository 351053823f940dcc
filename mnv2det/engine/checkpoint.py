"""``last.pt``: everything a run needs to go on, as plain types."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from mnv2det.errors import WeightsError
from mnv2det.models.weights.files import write_atomically

FORMAT = 1


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
