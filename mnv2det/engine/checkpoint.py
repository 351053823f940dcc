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
from mnv2det.io import RunFolder, sync_folder, write_atomically

FORMAT = 1


@dataclass
class Progress:
    """How far a run has come; travels in the checkpoint.

    Attributes:
        step: Optimizer steps done.
        seconds: Time spent on them: loading included, evaluation and start-up not.
        best: The best value of the deciding metric so far, None before the first evaluation.
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


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any], *, keep: int = 1) -> None:
    """Writes the state; ``path`` always holds a whole checkpoint, the old or the new one.

    Args:
        path: ``last.pt`` of a run folder.
        state: Plain types and tensors.
        keep: How many checkpoints stay, this one included.

    Raises:
        OSError: The file system refuses; ``path`` is as it was.
    """
    path = Path(path)
    data = io.BytesIO()  # torch.save onto a full disk would raise no OSError
    torch.save({"format": FORMAT, **state}, data)
    new = path.with_name("last.new.pt")
    try:
        write_atomically(new, lambda file: file.write(data.getbuffer()))
        if path.exists():
            _shift_older(path, keep)
        os.replace(new, path)
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def _older(path: Path, age: int) -> Path:
    """Where the checkpoint that is ``age`` saves older than ``path`` is kept."""
    return path.with_name(f"last.{age}.pt") if age else path


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote; runs no code that the file may hold.

    Raises:
        WeightsError: The file is missing, damaged or no checkpoint of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no checkpoint there; nothing to resume")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not look at the checksums
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise WeightsError(f"{path}: damaged or foreign checkpoint ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise WeightsError(f"{path}: not a checkpoint of this version")
    return state


def load_newest(run: str | os.PathLike[str]) -> tuple[dict[str, Any], list[str]]:
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
    last = RunFolder(run).checkpoint
    older = sorted(last.parent.glob("last.[0-9]*.pt"), key=lambda path: int(path.name.split(".")[1]))
    problems: list[str] = []
    for path in (last, *older):
        try:
            state = load_checkpoint(path)
        except WeightsError as error:
            problems.append(str(error))
            continue
        if path != last:
            if last.exists():
                os.replace(last, last.with_name("last.damaged.pt"))
            os.replace(path, last)
        step = dict(state.get("progress") or {}).get("step", "?")
        return state, [f"warning: {problem}; going on from the one before, step {step}" for problem in problems]
    raise WeightsError(problems[0] if not older else f"no checkpoint is readable: {'; '.join(problems)}")


def remove_leftovers(run: str | os.PathLike[str]) -> None:
    """Removes what a killed process left half written in a run folder."""
    folder = RunFolder(run)
    new = folder.checkpoint.with_name("last.new.pt")
    written = (folder.checkpoint, new, _older(folder.checkpoint, 1), folder.best, folder.metrics, folder.config)
    for file in written:
        for path in folder.path.glob(f".{file.name}.*"):
            path.unlink(missing_ok=True)
    new.unlink(missing_ok=True)


def _shift_older(path: Path, keep: int) -> None:
    """``last.pt`` also becomes ``last.1.pt``, that one ``last.2.pt``; those beyond ``keep`` are removed."""
    for age in range(keep - 1, 1, -1):
        if _older(path, age - 1).exists():
            os.replace(_older(path, age - 1), _older(path, age))
    if keep > 1:
        link = path.with_name(".last.1.pt.link")
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
            os.replace(link, _older(path, 1))
        except (OSError, AttributeError):  # no hard links on this file system, or system: a copy does
            write_atomically(_older(path, 1), lambda file: file.write(path.read_bytes()))
    age = keep
    while _older(path, age).exists():
        _older(path, age).unlink()
        age += 1


_DAMAGED = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)
