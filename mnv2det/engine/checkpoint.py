"""``last.pt`` and the ones before it: everything a run needs to go on, as plain types.

``last.pt`` is the newest checkpoint, ``last.1.pt`` the one before, and so on. At every instant
``last.pt`` is whole: a new one is written and synced beside it as ``last.new.pt``, the old ones move
up (a hard link keeps ``last.pt`` where it is), and then one rename puts the new one in its place.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mnv2det.errors import WeightsError
from mnv2det.io import sync_folder, write_atomically

FORMAT = 1
LAST = "last.pt"


@dataclass
class Progress:
    """Where a run is; travels in the checkpoint.

    Attributes:
        step: Optimizer steps done.
        seconds: Time spent on them: loading included, evaluation and start-up not.
        best: The best value of the deciding figure so far, None before the first evaluation.
        skipped: Broken images left out so far.
        nonfinite: Steps left out so far because their loss or gradient was not finite.
        evaluated: Step of the latest evaluation.
        metrics: Of the latest evaluation.
    """

    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    skipped: int = 0
    nonfinite: int = 0
    evaluated: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """Reads what a checkpoint holds; version 0.1 called the metrics ``figures``."""
        known = dict(state)
        if "figures" in known:
            known["metrics"] = known.pop("figures")
        return cls(**known)


def save_checkpoint(path: Path, state: dict[str, Any], *, keep: int = 1) -> None:
    """Writes the state; ``path`` always holds a whole checkpoint, the old or the new one.

    Args:
        path: ``last.pt`` of a run folder.
        state: Plain types and tensors.
        keep: How many checkpoints stay, this one included.

    Raises:
        OSError: The file system refuses; ``path`` is as it was.
    """
    data = io.BytesIO()  # torch.save into a full disk would raise no OSError
    torch.save({"format": FORMAT, **state}, data)
    new = path.with_name("last.new.pt")
    try:
        write_atomically(new, lambda file: file.write(data.getbuffer()))
        if path.exists():
            _move_up(path, keep)
        os.replace(new, path)
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def previous(path: Path, age: int) -> Path:
    """Where the checkpoint that is ``age`` saves older than ``path`` is kept."""
    return path.with_name(f"last.{age}.pt") if age else path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote; runs no code that the file may hold.

    Raises:
        WeightsError: The file is missing, damaged or no checkpoint of ours.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no checkpoint there; nothing to resume")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not look at the checksums
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        what = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise WeightsError(f"{path}: damaged or foreign checkpoint ({what})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise WeightsError(f"{path}: not a checkpoint of this version")
    return state


def load_newest(run: Path) -> tuple[dict[str, Any], list[str]]:
    """Reads a run's newest readable checkpoint and makes it ``last.pt``.

    A damaged newer one becomes ``last.damaged.pt``, so that saving does not move it over a good one.

    Args:
        run: The run folder.

    Returns:
        The state, and a warning for every file that could not be read.

    Raises:
        WeightsError: There is no checkpoint, or none that can be read.
        OSError: A damaged one cannot be moved aside.
    """
    last = run / LAST
    found = [last, *sorted(run.glob("last.[0-9]*.pt"), key=lambda path: int(path.name.split(".")[1]))]
    problems: list[str] = []
    for path in found:
        try:
            state = load_checkpoint(path)
        except WeightsError as error:
            problems.append(str(error))
            continue
        if path != last:
            if last.exists():
                os.replace(last, run / "last.damaged.pt")
            os.replace(path, last)
        step = dict(state.get("progress") or {}).get("step", "?")
        return state, [f"warning: {problem}; going on from the one before, step {step}" for problem in problems]
    raise WeightsError(problems[0] if len(found) == 1 else f"no checkpoint is readable: {'; '.join(problems)}")


def sweep(run: Path) -> None:
    """Removes what a killed process left half written in a run folder."""
    for name in (LAST, "last.new.pt", "last.1.pt", "best.safetensors", "metrics.jsonl", "config.yaml"):
        for path in run.glob(f".{name}.*"):
            path.unlink(missing_ok=True)
    (run / "last.new.pt").unlink(missing_ok=True)


def _move_up(path: Path, keep: int) -> None:
    """``last.pt`` also becomes ``last.1.pt``, that one ``last.2.pt``; what is beyond ``keep`` goes."""
    for age in range(keep - 1, 1, -1):
        if previous(path, age - 1).exists():
            os.replace(previous(path, age - 1), previous(path, age))
    if keep > 1:
        link = path.with_name(".last.1.pt.link")
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
            os.replace(link, previous(path, 1))
        except OSError:  # no hard links on this file system: a copy does
            write_atomically(previous(path, 1), lambda file: file.write(path.read_bytes()))
    age = keep
    while previous(path, age).exists():
        previous(path, age).unlink()
        age += 1


_DAMAGED = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
