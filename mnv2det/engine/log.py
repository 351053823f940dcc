"""What a run reports: metrics.jsonl, the progress bar, messages."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from mnv2det.engine.sinks import Sink, numbers_of
from mnv2det.io import RunFolder, is_watched, to_json, write_atomically


class RunLog:
    """Lines of JSON in a run folder; silent on all processes but the first.

    Args:
        folder: The run folder.
        active: Whether this process writes.
        step: On resume, the step to go on from: later lines of a killed run are dropped.
        evaluated: On resume, the step of the latest evaluation that counts: lines of later ones are dropped.
        sinks: Get the numbers of training and evaluation as well.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        active: bool,
        step: int = 0,
        evaluated: int = 0,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.path, self.active, self.sinks = RunFolder(folder).metrics, active, sinks
        if active and self.path.exists():
            lines = self.path.read_text(errors="replace").splitlines() if step else []
            kept = "".join(f"{line}\n" for line in lines if _is_older(line, step, evaluated))
            write_atomically(self.path, lambda file: file.write(kept.encode()))

    def write(self, **record: Any) -> None:
        """Appends one record."""
        if self.active:
            with self.path.open("a") as file:
                file.write(to_json(record) + "\n")
            if self.sinks and (numbers := numbers_of(record)):
                for sink in self.sinks:
                    sink.write(record["step"], numbers)

    def close(self) -> None:
        """Closes the sinks."""
        for sink in self.sinks:
            sink.close()

    def say(self, message: str) -> None:
        """Prints a line above the progress bar."""
        if self.active and sys.stderr is not None:
            tqdm.write(message, file=sys.stderr)


def progress_bar(total: int, start: int, *, active: bool) -> tqdm[Any]:
    """Shows the steps done and the time left; redrawn every 20 seconds only where stderr is no terminal."""
    watched = is_watched()
    return tqdm(
        total=total,
        initial=start,
        disable=not active or sys.stderr is None,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.2 if watched else 20,
        file=sys.stderr,
    )


def _is_older(line: str, step: int, evaluated: int) -> bool:
    """Whether a line was written before the run was at these steps; a line that a kill has cut was not."""
    try:
        record = json.loads(line)
        return record["step"] <= (evaluated if record["kind"] == "eval" else step)
    except (ValueError, KeyError, TypeError):
        return False
