"""One way to run a model, loaded and measured in a process of its own, so that its memory and threads are its own."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mnv2det.commands.accuracy import LabelledSet
from mnv2det.commands.export import Labelled
from mnv2det.data.images import decode_image
from mnv2det.errors import ConfigError, Mnv2detError
from mnv2det.io import cores
from mnv2det.runtime.base import is_export
from mnv2det.runtime.predictor import Predictor

PARTS = ("decode", "preprocess", "network", "postprocess")
PRECISIONS = ("fp32", "bf16", "int8")
WARM_UP = 10  # predictions that are not counted


@dataclass
class Row:
    """One way to run the model.

    Attributes:
        backend: Name of a runtime.
        precision: Of `PRECISIONS`.
        file: What it loads.
        file_bytes: Size of that, with the files that belong to it.
        seconds: Of each prediction, by part.
        memory: Bytes by which the process grew at most, from before it loaded the model; None where the system does
            not tell.
        metrics: Measured on the labelled set.
        main: Names of those that each task is judged by.
    """

    backend: str
    precision: str
    file: Path
    file_bytes: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    main: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Milliseconds (``median`` and ``p90`` of the whole, medians of the parts) and the rest."""
        total = np.sum([self.seconds[part] for part in PARTS], axis=0) * 1e3
        return {
            "backend": self.backend,
            "precision": self.precision,
            "median_ms": float(np.median(total)),
            "p90_ms": float(np.percentile(total, 90)),
            **{f"{part}_ms": float(np.median(self.seconds[part])) * 1e3 for part in PARTS},
            "predictions": len(total),
            "memory_bytes": self.memory,
            "file_bytes": self.file_bytes,
            "metrics": self.metrics,
            "main": self.main,
        }


@dataclass(frozen=True)
class Settings:
    """What the measuring processes have in common.

    Attributes:
        threads: As `Predictor` takes it, as are ``heads`` and ``memory_budget``.
        heads: By task, thresholds in place of the model's.
        memory_budget: For backends that run weights.
        modules: To import first: they register the components that the model, or its backend, is made of.
    """

    threads: int | None
    heads: Mapping[str, Mapping[str, Any]] | None
    memory_budget: int | None
    modules: Sequence[str]


@contextmanager
def child_process(row: Row, settings: Settings) -> Iterator[Connection]:
    """A process that has loaded the model and waits."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, row, settings), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(5)
        process.kill()


def ask(child: Connection, *question: Any) -> Any:
    """A child's answer to a question; raises the error that it met."""
    try:
        # a child that could not load the model has said so and is gone
        with suppress(ConnectionError):
            child.send(question)
        kind, answer = child.recv()
    except (EOFError, ConnectionError):
        raise ConfigError("a measuring process ended; was there enough memory?") from None
    if kind == "error":
        raise answer
    return answer


def _serve(pipe: Connection, row: Row, settings: Settings) -> None:
    """The child's side: loads the model, then answers questions until the pipe is closed."""
    before = peak_memory()
    try:
        _import(settings.modules)
        predictor = open_row(row, settings)
        cv2.setNumThreads(settings.threads or cores())
        while True:
            question, *arguments = pipe.recv()
            answer: Any = None
            if question == "time":
                times, after = time_parts(predictor, *arguments), peak_memory()
                answer = times, None if before is None or after is None else max(0, after - before)
            elif question == "measure":
                answer = _measure(predictor, arguments[0])
            pipe.send(("done", answer))
    except (EOFError, KeyboardInterrupt):
        return
    except Mnv2detError as error:
        pipe.send(("error", error))


def _import(modules: Sequence[str]) -> None:
    """Imports modules that register components, as the process that started this one did."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"{module}: it registers components, but bench cannot import it by name ({error})"
            ) from None


def open_row(row: Row, settings: Settings) -> Predictor:
    """The predictor that is measured for a row."""
    return Predictor(
        row.file,
        backend=row.backend,
        device="cpu",
        threads=settings.threads,
        precision="bf16" if row.precision == "bf16" else "fp32",
        memory_budget=None if is_export(row.file) else settings.memory_budget,
        heads=settings.heads,
    )


def _measure(predictor: Predictor, labelled: Labelled) -> tuple[dict[str, float], list[str]]:
    data = LabelledSet(*labelled, predictor)
    return data.measure(predictor.batch), data.main_metrics()


def time_parts(
    predictor: Predictor, encoded: Sequence[bytes], repeats: int, warm_up: int = WARM_UP
) -> dict[str, list[float]]:
    """Seconds of each part of each prediction, one picture at a time.

    Args:
        predictor: Any.
        encoded: Files of pictures, taken in turn.
        repeats: Predictions.
        warm_up: Predictions before these.
    """
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    for number in range(-warm_up, repeats):
        times = [time.perf_counter()]
        image = decode_image(encoded[number % len(encoded)], where="picture")
        times.append(time.perf_counter())
        pixels, frame = predictor.prepare(image)
        times.append(time.perf_counter())
        outputs = predictor.run(np.ascontiguousarray(pixels)[None], [frame])
        times.append(time.perf_counter())
        predictor.finish(outputs, [frame])
        times.append(time.perf_counter())
        if number >= 0:
            for part, spent in zip(PARTS, np.diff(times).tolist(), strict=True):
                seconds[part].append(spent)
    return seconds


def peak_memory() -> int | None:
    """Most bytes of memory that this process had; None where the system does not tell (Windows)."""
    try:
        # getrusage counts what the process was before it became this program
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
