"""How fast a model runs on this machine, by backend and precision, each measured in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mnv2det.commands.export import (
    CALIBRATION,
    Labelled,
    PathLike,
    file_size,
    pictures_to_calibrate,
    pictures_to_compare,
)
from mnv2det.commands.measure import PRECISIONS, WARM_UP, Row, Settings, ask, child_process
from mnv2det.errors import ConfigError, near
from mnv2det.graphs.program import ExportMetadata, ExportProgram
from mnv2det.io import cores, is_watched
from mnv2det.models.build import from_file, weights_of
from mnv2det.models.depthwise import has_bf16_kernels
from mnv2det.registry import component_modules
from mnv2det.runtime.base import Runtime, is_export, readers, runtimes
from mnv2det.runtime.predictor import Predictor


def bench(
    source: PathLike,
    *,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    images: PathLike | None = None,
    size: tuple[int, int] | None = None,
    calibrate: PathLike | None = None,
    threads: int | None = None,
    rounds: int = 5,
    repeats: int = 40,
    labelled: Labelled | None = None,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
    memory_budget: int | None = None,
) -> dict[str, Any]:
    """Times every backend and precision that is to be had, in turns, each in a process of its own.

    The processes import the modules that registered components of your own; these must be importable by name.

    Args:
        source: A run folder, a weight file or an exported model.
        backends: Names of runtimes; None takes all that are installed.
        precisions: Of `PRECISIONS`; None takes all that are to be had.
        images: Folder of pictures; None as `mnv2det.commands.export.pictures_to_compare`.
        size: (H, W) that they are brought to; None leaves them.
        calibrate: Folder of pictures for int8; None takes the run's training set if int8 is asked for,
            and otherwise leaves int8 out.
        threads: None takes all cores.
        rounds: Turns, so that a change of the machine's speed meets all rows.
        repeats: Predictions in a turn.
        labelled: As in `mnv2det.commands.export.export`.
        heads: By task, thresholds in place of the model's.
        memory_budget: As in `Predictor`, for the rows of torch.

    Returns:
        ``rows`` as `Row.summary` gives them, ``threads``, ``pictures``, what they are and ``problems`` with them.

    Raises:
        ConfigError: A backend or precision is unknown, not installed or not to be had.
        DataError: A folder holds no picture that can be read.
        WeightsError: The source cannot be read.
    """
    unknown = [name for name in precisions or () if name not in PRECISIONS]
    if unknown:
        raise ConfigError(f"precisions: no '{unknown[0]}'{near(unknown[0], PRECISIONS)}")
    problems: list[str] = []
    pictures, where = pictures_to_compare(source, images, 16, problems)
    encoded = [_encode(picture, size) for picture in pictures]
    settings = Settings(threads, heads, memory_budget, component_modules())
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as opened:
        int8_wanted = bool(calibrate or precisions)
        rows = make_rows(
            source,
            Path(folder),
            ways_to_run(source, backends, precisions or PRECISIONS, int8=int8_wanted),
            settings,
            lambda: pictures_to_calibrate(source, calibrate, CALIBRATION, problems),
        )
        if not rows:
            raise ConfigError("nothing to time: none of these backends has one of these precisions here")
        children = [opened.enter_context(child_process(row, settings)) for row in rows]
        for child in children:
            ask(child, "load")  # so that none of them is timed while another still loads
        turns = [(row, child) for _ in range(rounds) for row, child in zip(rows, children, strict=True)]
        for number, (row, child) in enumerate(tqdm(turns, desc="timing", leave=False, disable=not is_watched())):
            times, row.memory = ask(child, "time", encoded, repeats, WARM_UP if number < len(rows) else 2)
            for part, seconds in times.items():
                row.seconds.setdefault(part, []).extend(seconds)
        for row, child in zip(rows, children, strict=True) if labelled else ():
            row.metrics, row.main = ask(child, "measure", labelled)
        return {
            "source": str(source),
            "threads": threads or cores(),
            "pictures": len(pictures),
            "pictures_from": where,
            "size": list(size) if size else None,
            "rows": [row.summary() for row in rows],
            "problems": problems,
        }


def ways_to_run(
    source: PathLike, backends: Sequence[str] | None, precisions: Sequence[str], *, int8: bool
) -> list[tuple[Runtime, str]]:
    """The runtimes wanted, each with the precisions wanted that it has.

    Args:
        source: As `bench` takes it, as are ``backends`` and ``precisions``.
        backends: None takes those installed.
        precisions: Of `PRECISIONS`.
        int8: Whether weights may be quantised.
    """
    exported = is_export(source)
    able = {runtime.name: runtime for runtime in (readers(source) if exported else runtimes())}
    for name in backends or ():
        if name not in able:
            raise ConfigError(f"backend '{name}': {source} is run by {', '.join(able)}")
    ways = []

    def usable(runtime: Runtime) -> bool:
        return runtime.available() if exported else runtime.can_write()

    for runtime in (able[name] for name in backends or able if backends or usable(able[name])):
        for precision in precisions:
            if precision == "int8":
                has = runtime.int8 and (int8 or exported)
            else:
                has = precision in runtime.precisions and (precision != "bf16" or has_bf16_kernels())
            if has:
                ways.append((runtime, precision))
    return ways


def make_rows(
    source: PathLike,
    folder: Path,
    ways: Sequence[tuple[Runtime, str]],
    settings: Settings,
    calibration: Callable[[], Iterator[NDArray[np.uint8]]],
) -> list[Row]:
    """A row for each way to run the model, and the file that it needs, written into a folder.

    Args:
        source: As `bench` takes it.
        folder: For the files.
        ways: Of `ways_to_run`.
        settings: Of the measuring processes.
        calibration: Gives the pictures for int8; called if there is such a row.
    """
    if is_export(source):
        file = Path(source)
        is_int8 = Predictor(source, heads=settings.heads, memory_budget=settings.memory_budget).precision == "int8"
        return [
            Row(runtime.name, precision, file, file_size(runtime.files(file)))
            for runtime, precision in ways
            if (precision == "int8") == is_int8
        ]
    weights = weights_of(source)
    model, header = from_file(str(weights), heads=settings.heads)
    whole = ExportProgram(model, ExportMetadata(header, "raw"))
    programs: dict[Any, ExportProgram] = {"fp32": whole}
    rows = []
    for runtime, precision in ways:
        kind = "int8" if precision == "int8" else "fp32"
        # most runtimes quantise in the same way, which is done once for all of them
        way = type(runtime).quantize if kind == "int8" else kind
        if way not in programs:
            programs[way] = runtime.quantize(whole, calibration())
        file = weights if runtime.native else folder / f"{runtime.name}-{kind}{runtime.suffix}"
        if not file.is_file():
            runtime.write(programs[way], file)
        rows.append(Row(runtime.name, precision, file, file_size(runtime.files(file))))
    return rows


def _encode(picture: NDArray[np.uint8], size: tuple[int, int] | None) -> bytes:
    if size is not None:
        picture = cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done
    return data.tobytes()
