"""Kills a small training run at random moments, resumes it each time, and compares it with an undisturbed run.

    python benchmarks/kills.py --kills 50 --seed 0

Every attempt is a process of its own, forked after the imports, which take longer than the run. It writes its files
slowly, in pieces, so that many of the kills strike while a checkpoint is written, and it notes what it is doing in a
file that outlives it. After every kill, each checkpoint in the run folder must be readable. At the end, the weights,
their average and the optimizer's statistics must be bit-identical to those of the undisturbed run.
"""

from __future__ import annotations

import argparse
import collections
import io
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from tiny import TINY  # noqa: E402

import mnv2det.engine.trainer  # noqa: E402, F401
from mnv2det.cli import main as command  # noqa: E402
from mnv2det.engine.checkpoint import load_checkpoint  # noqa: E402

STEPS = 24
PIECE_S = 0.04  # how long a quarter of a file, a sync or a rename takes
CONFIG = str(ROOT / "configs" / "ssdlite_shapes.yaml")


class SlowFile(io.FileIO):
    """Writes in four pieces, with a pause after each."""

    note: Callable[[str], None]

    def write(self, data: Any) -> int:
        """Writes all of ``data``."""
        view = memoryview(data).cast("B")
        size = max(1, -(-len(view) // 4))
        for first in range(0, len(view), size):
            super().write(view[first : first + size])
            time.sleep(PIECE_S)
        self.note("step")
        return len(view)


def slow_down(note: Callable[[str], None]) -> None:
    """Makes this process write slowly and note what it does: step, write, sync, rename."""
    fdopen, fsync, replace = os.fdopen, os.fsync, os.replace

    def slow_open(handle: int, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode != "wb":
            return fdopen(handle, mode, *rest, **more)
        note("write")
        file = SlowFile(handle, "wb")
        file.note = note
        return file

    def slow_sync(handle: int) -> None:
        note("sync")
        time.sleep(PIECE_S)
        fsync(handle)
        time.sleep(PIECE_S)
        note("step")

    def slow_replace(old: Any, new: Any) -> None:
        note("rename")
        time.sleep(PIECE_S)
        replace(old, new)
        time.sleep(PIECE_S)
        note("step")

    os.fdopen, os.fsync, os.replace = slow_open, slow_sync, slow_replace  # type: ignore[assignment]


def start(arguments: list[str], notes: Path, log: Path) -> int:
    """Starts ``mnv2det`` with these arguments; returns the process's id."""
    notes.write_text("start")
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        slow_down(lambda what: bool(os.pwrite(handle, what.ljust(8).encode(), 0)))
        handle = os.open(notes, os.O_WRONLY)
        code = command(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def done(child: int) -> int | None:
    """Exit code of a process, negative for a signal, or None while it runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait(child: int, seconds: float) -> int | None:
    """Waits for a process; returns as `done`."""
    end = time.monotonic() + seconds
    code = done(child)
    while code is None and time.monotonic() < end:
        time.sleep(0.002)
        code = done(child)
    return code


def saved(child: int, last: Path) -> None:
    """Waits until a process has written a checkpoint, or has ended."""
    before = last.stat().st_mtime_ns if last.exists() else 0
    while not last.exists() or last.stat().st_mtime_ns == before:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.005)


def step_of(run: Path) -> int:
    """Reads every checkpoint of a run, which raises if one cannot be read; returns the newest one's step.

    Before the first one is renamed there is a whole ``last.new.pt`` and no ``last.pt``: the run starts anew then.
    """
    steps = {path.name: load_checkpoint(path)["progress"]["step"] for path in run.glob("last*.pt")}
    if steps.keys() - {"last.new.pt", "last.pt"} and "last.pt" not in steps:
        raise SystemExit(f"{run}: older checkpoints, but no last.pt")
    return steps.get("last.pt", 0)


def tensors(value: Any, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a nested state, each with its dotted name."""
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from tensors(part, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from tensors(part, f"{place}.{index}")


def different(one: Path, two: Path) -> tuple[list[str], int]:
    """Names the tensors in which two runs' last checkpoints differ, and counts all tensors."""
    parts = [dict(tensors(load_checkpoint(run / "last.pt"))) for run in (one, two)]
    places = parts[0].keys() | parts[1].keys()
    wrong = [p for p in places if p not in parts[0] or p not in parts[1] or not torch.equal(parts[0][p], parts[1][p])]
    return sorted(wrong), len(places)


def attempt(run: Path, folder: Path) -> int:
    """Starts a run, or resumes it if it has a checkpoint; returns the process's id."""
    settings = [*TINY, f"train.steps={STEPS}", "train.checkpoint_every=1", "train.eval_every=2", "--device", "cpu"]
    begin = [CONFIG, *settings, "--out", str(run)]
    resume = ["--resume", str(run)]
    return start(["train", *(resume if step_of(run) else begin)], folder / "notes", folder / "log")


def kill(run: Path, folder: Path, draw: random.Random) -> str | None:
    """Starts or resumes a run and kills it at a random moment.

    Returns:
        What it was doing then: start, step, write, sync or rename; None if it had finished before.
    """
    child = attempt(run, folder)
    if draw.random() < 0.8:  # else start-up may be hit too
        saved(child, run / "last.pt")
    code = wait(child, draw.uniform(0, 1.5))
    if code is None:
        os.kill(child, signal.SIGKILL)
        code = wait(child, 60)
    if code == 0:
        return None
    if code != -signal.SIGKILL:
        raise SystemExit(f"exit code {code}:\n{(folder / 'log').read_text()[-3000:]}")
    step_of(run)
    return (folder / "notes").read_text().strip()


def finish(run: Path, folder: Path) -> None:
    """Starts or resumes a run and lets it end."""
    code = wait(attempt(run, folder), 900)
    if code != 0:
        raise SystemExit(f"exit code {code}:\n{(folder / 'log').read_text()[-3000:]}")


def main() -> int:
    """Prints the table; returns 0 if no tensor differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    given = parser.parse_args()
    draw, where, wrong = random.Random(given.seed), collections.Counter[str](), []
    runs = left = count = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = folder / "whole"
        finish(whole, folder)
        while sum(where.values()) < given.kills:
            runs += 1
            run = folder / f"run{runs}"
            while sum(where.values()) < given.kills and (found := kill(run, folder, draw)) is not None:
                where[found] += 1
                left += any(run.glob(".*"))
            finish(run, folder)
            places, count = different(whole, run)
            wrong += [f"run {runs}: {place}" for place in places]
    print("| killed in | times |\n|---|---|")
    print("\n".join(f"| {name} | {where[name]} |" for name in ("start", "step", "write", "sync", "rename")))
    print(f"\n{sum(where.values())} kills over {runs} runs of {STEPS} steps; {left} left a half-written file behind")
    print(f"unreadable checkpoints: 0; tensors that differ from the undisturbed run: {len(wrong)} of {runs * count}")
    print("\n".join(wrong[:10]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
