"""How fast a model runs on this machine, by backend and precision."""

from __future__ import annotations

import importlib.util
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mnv2det.commands.accuracy import LabelledSet
from mnv2det.commands.export import CALIBRATION, pictures_to_calibrate, pictures_to_compare, write_int8
from mnv2det.data.images import decode_image
from mnv2det.errors import ConfigError, Mnv2detError, near
from mnv2det.export.program import SUFFIXES, ExportMetadata, to_onnx
from mnv2det.io import cores
from mnv2det.models.build import from_file, weights_of
from mnv2det.runtime.backends import NAMES, READERS, has_bf16
from mnv2det.runtime.predictor import Predictor

PARTS = ("decode", "preprocess", "network", "postprocess")
PRECISIONS = ("fp32", "bf16", "int8")
WARM_UP = 10  # predictions that are not counted
Labelled = tuple[str, Sequence[str]]


@dataclass
class Row:
    """One way to run the model.

    Attributes:
        backend: Of `mnv2det.runtime.backends`.
        precision: Of `PRECISIONS`.
        file: What it loads.
        seconds: Of each prediction, by part.
        memory: Bytes by which the process grew at most, from before it loaded the model.
        metrics: Measured on the labelled set.
        main: Names of those that each task is judged by.
    """

    backend: str
    precision: str
    file: Path
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: int = 0
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
            "file_bytes": size_of(self.file),
            "metrics": self.metrics,
            "main": self.main,
        }


def bench(
    source: str,
    *,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    images: str | None = None,
    size: tuple[int, int] | None = None,
    calibrate: str | None = None,
    threads: int | None = None,
    rounds: int = 5,
    repeats: int = 40,
    labelled: Labelled | None = None,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
    memory_budget: int | None = None,
) -> dict[str, Any]:
    """Times every backend and precision that is to be had, in turns, each in a process of its own.

    Args:
        source: A run folder, a weight file or an exported model.
        backends: Those wanted; None takes all that are installed.
        precisions: Likewise, of `PRECISIONS`.
        images: Folder of pictures; None as `mnv2det.commands.export.pictures_to_compare`.
        size: (H, W) that they are brought to; None leaves them.
        calibrate: Folder of pictures for int8; None takes the run's training set if int8 is asked for,
            and otherwise leaves int8 out.
        threads: None takes all cores.
        rounds: Turns, so that a machine's moods hit all alike.
        repeats: Predictions in a turn.
        labelled: As in `mnv2det.commands.export.export`.
        heads: By task, thresholds in place of the model's.
        memory_budget: As in `Predictor`; torch's rows then have it.

    Returns:
        ``rows`` as `Row.summary` gives them, ``threads``, ``pictures``, what they are and ``problems`` with them.

    Raises:
        ConfigError: A backend or precision is unknown, not installed or not to be had.
        DataError: A folder holds no pictures.
        WeightsError: The source cannot be read.
    """
    problems: list[str] = []
    pictures, where = pictures_to_compare(source, images, 16, problems)
    encoded = [_encode(picture, size) for picture in pictures]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        unknown = [name for name in precisions or () if name not in PRECISIONS]
        if unknown:
            raise ConfigError(f"precisions: no '{unknown[0]}'{near(unknown[0], PRECISIONS)}")
        rows = list(_rows(source, Path(folder), backends, precisions, calibrate, heads, problems))
        if not rows:
            raise ConfigError("nothing to time: none of these backends has one of these precisions here")
        children = [opened.enter_context(_child(row, threads, heads, memory_budget)) for row in rows]
        for child in children:
            _ask(child, "load")  # so that none of them is timed while another still loads
        turns = [(row, child) for _ in range(rounds) for row, child in zip(rows, children, strict=True)]
        for number, (row, child) in enumerate(tqdm(turns, desc="timing", leave=False, disable=not sys.stderr.isatty())):
            found, row.memory = _ask(child, "time", encoded, repeats, WARM_UP if number < len(rows) else 2)
            for part, seconds in found.items():
                row.seconds.setdefault(part, []).extend(seconds)
        for row, child in zip(rows, children, strict=True) if labelled else ():
            row.metrics, row.main = _ask(child, "measure", labelled)
        return {
            "source": source,
            "threads": threads or cores(),
            "pictures": len(pictures),
            "pictures_from": where,
            "size": list(size) if size else None,
            "rows": [row.summary() for row in rows],
            "problems": problems,
        }


def _rows(
    source: str,
    folder: Path,
    backends: Sequence[str] | None,
    precisions: Sequence[str] | None,
    calibrate: str | None,
    heads: Mapping[str, Mapping[str, Any]] | None,
    problems: list[str],
) -> Iterator[Row]:
    """The ways to run it, and the files for them."""
    able: Sequence[str] = NAMES
    files: dict[str, Path]
    if (kind := SUFFIXES.get(Path(source).suffix.lower())) is not None:
        exported = Predictor(source)
        able, files = READERS[kind], {exported.backend.metadata.precision: Path(source)}
    else:
        files = {"fp32": folder / "fp32.onnx"}
    wanted = [name for name in backends or able if backends or name == "torch" or importlib.util.find_spec(name)]
    for name in wanted:
        if name not in able:
            raise ConfigError(f"backend '{name}': {source} is run by {', '.join(able)}")
    if kind is None:
        weights = weights_of(source)
        files["torch"] = weights
        model, header = from_file(str(weights), heads=heads)
        metadata = ExportMetadata(header, "raw")
        if any(name != "torch" for name in wanted):
            proto = to_onnx(model, metadata)
            files["fp32"].write_bytes(proto.SerializeToString())
            if "int8" in (precisions or PRECISIONS) and (calibrate or precisions):
                files["int8"] = folder / "int8.onnx"
                write_int8(
                    proto, metadata, files["int8"], pictures_to_calibrate(source, calibrate, CALIBRATION, problems)
                )
    for name in wanted:
        for precision in precisions or PRECISIONS:
            if precision == "bf16" and (name == "onnxruntime" or not has_bf16()):
                continue
            file = files.get("int8" if precision == "int8" else "fp32")
            if kind is None and name == "torch":
                file = None if precision == "int8" else files["torch"]
            if file is not None:
                yield Row(name, precision, file)


@contextmanager
def _child(row: Row, threads: int | None, heads: Any, memory_budget: int | None) -> Iterator[Connection]:
    """A process that has loaded the model and waits."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, row, threads, heads, memory_budget), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(5)
        process.kill()


def _ask(child: Connection, *question: Any) -> Any:
    try:
        # a child that could not load the model has said so and is gone
        with suppress(BrokenPipeError):
            child.send(question)
        kind, answer = child.recv()
    except EOFError:
        raise ConfigError("a measuring process ended; was there enough memory?") from None
    if kind == "error":
        raise answer
    return answer


def _serve(pipe: Connection, row: Row, threads: int | None, heads: Any, memory_budget: int | None) -> None:
    """The child's side."""
    before = _peak()
    try:
        precision: Any = "bf16" if row.precision == "bf16" else "fp32"
        predictor = Predictor(
            row.file,
            backend=row.backend,
            device="cpu",
            threads=threads,
            precision=precision,
            memory_budget=memory_budget if row.backend == "torch" and row.file.suffix == ".safetensors" else None,
            heads=heads if row.file.suffix == ".safetensors" else None,
        )
        cv2.setNumThreads(threads or cores())
        while True:
            question, *given = pipe.recv()
            answer: Any = None
            if question == "time":
                answer = time_parts(predictor, *given), max(0, _peak() - before)
            elif question == "measure":
                answer = _measure(predictor, given[0])
            pipe.send(("done", answer))
    except (EOFError, KeyboardInterrupt):
        return
    except Mnv2detError as error:
        pipe.send(("error", error))


def _measure(predictor: Predictor, labelled: Labelled) -> tuple[dict[str, float], list[str]]:
    data = LabelledSet(*labelled, predictor)
    return data.measure(predictor), data.main_metrics()


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


def size_of(file: Path) -> int:
    """Bytes of a model's file, or files."""
    parts = [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]
    return sum(part.stat().st_size for part in parts if part.is_file())


def _encode(picture: NDArray[np.uint8], size: tuple[int, int] | None) -> bytes:
    if size is not None:
        picture = cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done
    return data.tobytes()


def _peak() -> int:
    """Most bytes of memory that this process had."""
    try:
        # getrusage counts what the process was before it became this program
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
