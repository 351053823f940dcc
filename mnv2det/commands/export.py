"""Writing a trained model for another runtime, and checking what was written."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mnv2det.commands.accuracy import LabelledSet
from mnv2det.commands.compare import Differences, compare
from mnv2det.config import load_config
from mnv2det.data.images import list_images, read_image
from mnv2det.engine.build import build_dataset
from mnv2det.errors import ConfigError, DataError, Mnv2detError, WeightsError
from mnv2det.graphs.program import ExportMetadata, ExportProgram, Form
from mnv2det.io import RunFolder, config_file, evenly_spread, is_watched
from mnv2det.models.build import from_file, weights_of
from mnv2det.runtime.base import runtimes, writer
from mnv2det.runtime.predictor import Predictor

Pixels = NDArray[np.uint8]
PathLike = str | os.PathLike[str]
Labelled = tuple[str, Sequence[str]]
CALIBRATION = 128  # pictures


def export(
    source: PathLike,
    output: PathLike,
    *,
    form: Form | None = None,
    int8: bool = False,
    fp16: bool = False,
    calibrate: PathLike | None = None,
    calibration: int = CALIBRATION,
    images: PathLike | None = None,
    count: int = 8,
    tolerance: float = 1e-3,
    splits: int | None = None,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
    labelled: Labelled | None = None,
) -> dict[str, Any]:
    """Writes an exported model, then runs it beside torch on real pictures.

    The file is put in place only if its results are torch's. Those of an int8 file, or of one with weights in half
    precision, are expected to differ; the difference is stated, and its accuracy where a labelled set is given.

    Args:
        source: A run folder or a weight file.
        output: The file to write; its suffix selects the runtime: ``.onnx``, ``.xml`` (OpenVINO), ``.pt2``
            (torch.export), ``.param`` (ncnn), ``.tflite`` (LiteRT) or that of a runtime of your own.
        form: As `mnv2det.graphs.program.ExportMetadata` has it; None is the complete one where the format has it.
        int8: Whether to quantise after training.
        fp16: Whether to store the weights in half precision.
        calibrate: Folder of pictures such as the model will see, not those it is measured on; None
            takes the run's training set.
        calibration: Most pictures of these that are used, evenly spread.
        images: Folder of pictures to compare on; None takes the run's validation set, or those of
            ``calibrate``, or else noise.
        count: Most pictures compared.
        tolerance: Largest difference in a score, in the share of a mask's pixels, or in a probability.
        splits: Parts of the bottlenecks' expanded channels (paper, section 5.1), float32 only; None leaves them whole.
        heads: By task, thresholds in place of the model's.
        labelled: A run folder or YAML, and overrides, on whose validation set to measure before and after.

    Returns:
        ``output``, ``form``, ``precision``, ``bytes``, ``pictures`` and ``detections`` (how many were compared),
        ``compared_on``, ``differences`` by name, ``before`` and ``after`` (metrics by name, where a labelled set is
        given), ``main`` (names of the metrics that each task is judged by) and ``problems``: a line for each
        picture that could not be read.

    Raises:
        ConfigError: What is asked for cannot be written, or the library for it is not installed.
        DataError: A folder holds no picture that can be read, or the file cannot be written.
        WeightsError: The source cannot be read, or the export differs from it too much.
    """
    path = Path(output)
    runtime = writer(path)
    for wanted, option in ((int8, "int8"), (fp16, "fp16")):
        if wanted and not getattr(runtime, option):
            able = " or ".join(other.suffix for other in runtimes() if getattr(other, option))
            raise ConfigError(f"--{option}: written as {able}, not {runtime.suffix}")
    if int8 and fp16:
        raise ConfigError("--int8 and --fp16: weights are stored in one of them")
    form = form or runtime.forms[0]
    if form not in runtime.forms:
        raise ConfigError(f"--form {form}: the format {runtime.format} has {' or '.join(runtime.forms)} files only")
    if calibrate is not None and not int8:
        raise ConfigError("--calibrate FOLDER is for --int8")
    if splits is not None and int8:
        raise ConfigError("--splits: each part of a sum would be rounded by itself; not with --int8")
    weights = weights_of(source)
    model, header = from_file(str(weights), heads=heads)
    if heads:
        header.heads = model.header().heads
    reference = Predictor(weights, device="cpu", heads=heads)
    data = LabelledSet(*labelled, reference) if labelled else None
    problems: list[str] = []
    pictures, where = pictures_to_compare(source, images or calibrate, count, problems)
    calibrated = pictures_to_calibrate(source, calibrate, calibration, problems) if int8 else None
    program = ExportProgram(model, ExportMetadata(header, form), splits=splits)
    if fp16:
        program = program.halve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial.") as folder:
            draft = Path(folder) / path.name
            runtime.write(program if calibrated is None else runtime.quantize(program, calibrated), draft)
            exported = Predictor(draft)
            differences = compare(reference, exported, pictures)
            if not (int8 or fp16) and differences.above(tolerance):
                raise WeightsError(f"{output}: not written, it differs from torch: {_line(differences, tolerance)}")
            before = data.measure(reference.batch, about="before") if data else {}
            after = data.measure(exported.batch, about="after") if data else {}
            del exported
            size = file_size(runtime.files(draft))
            # the file that the others belong to comes last
            for file in sorted(Path(folder).iterdir(), key=lambda file: file == draft):
                file.chmod(0o644)
                shutil.move(file, path.parent / file.name)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot write ({error.strerror})") from None
    return {
        "output": str(output),
        "form": form,
        "precision": "int8" if int8 else "fp16" if fp16 else "fp32",
        "bytes": size,
        "pictures": differences.pictures,
        "compared_on": where,
        "detections": differences.detections,
        "differences": differences.largest,
        "before": before,
        "after": after,
        "main": data.main_metrics() if data else [],
        "problems": problems,
    }


def file_size(files: Sequence[Path]) -> int:
    """Bytes of those files that exist."""
    return sum(file.stat().st_size for file in files if file.is_file())


def pictures_to_compare(
    source: PathLike, images: PathLike | None, count: int, problems: list[str]
) -> tuple[list[Pixels], str]:
    """Some pictures, and where they are from: a folder, a run's validation set, or a random generator.

    Args:
        source: A run folder, or a file.
        images: The folder; None takes the run's validation set, or noise where there is none.
        count: Most pictures.
        problems: Gets a line for each picture, or set, that cannot be read.

    Raises:
        ConfigError: The count is below 1.
        DataError: The folder holds no picture that can be read.
    """
    if count < 1:
        raise ConfigError(f"count: expected at least 1 picture to compare on, got {count}")
    if images is not None:
        return list(read_some(images, count, problems)), str(images)
    if RunFolder(source).exists:
        try:
            return list(_of_run(source, "val", count)), "the run's validation set"
        except Mnv2detError as error:
            problems.append(f"the run's validation set cannot be read: {error}")
    noise = np.random.default_rng(0)
    sizes = ((480, 640), (333, 500), (640, 427), (64, 80))
    pictures = [noise.integers(0, 256, (*sizes[index % len(sizes)], 3), dtype=np.uint8) for index in range(count)]
    return pictures, "noise; name real pictures with --images FOLDER"


def pictures_to_calibrate(
    source: PathLike, folder: PathLike | None, count: int, problems: list[str]
) -> Iterator[Pixels]:
    """Pictures of a folder, or of a run's training set, read one by one.

    Args:
        source: A run folder, or a file.
        folder: The folder; None takes the run's training set.
        count: Most pictures.
        problems: Gets a line for each picture of the folder that cannot be read.

    Raises:
        ConfigError: There is neither, or the count is below 1.
        DataError: The folder holds no picture that can be read.
    """
    if count < 1:
        raise ConfigError(f"calibration: expected at least 1 picture, got {count}")
    if folder is not None:
        return read_some(folder, count, problems)
    if not RunFolder(source).exists:
        raise ConfigError(f"int8: {source} is no run folder with a training set; name pictures with --calibrate FOLDER")
    return _of_run(source, "train", count)


def read_some(folder: PathLike, count: int, problems: list[str]) -> Iterator[Pixels]:
    """Reads pictures of a folder one by one, evenly spread over it; what cannot be read is left out.

    Args:
        folder: The folder.
        count: Most pictures read.
        problems: Gets a line for each picture that is left out.

    Raises:
        DataError: None of them can be read; raised at once, not when the first is asked for.
    """
    return _not_empty(_readable(evenly_spread(list_images(folder), count), problems), str(folder), problems)


def _not_empty(pictures: Iterator[Pixels], where: str, problems: Sequence[str] = ()) -> Iterator[Pixels]:
    """The same pictures; a DataError at once if there are none."""
    first = next(pictures, None)
    if first is None:
        raise DataError(f"{where}: not one picture can be read{f'; {problems[-1]}' if problems else ''}")
    return itertools.chain([first], pictures)


def _readable(files: Sequence[Path], problems: list[str]) -> Iterator[Pixels]:
    for file in tqdm(files, desc="reading", unit="image", leave=False, disable=not is_watched()):
        try:
            yield read_image(file)
        except DataError as error:
            problems.append(f"left out: {error}")


def _of_run(source: PathLike, split: str, count: int) -> Iterator[Pixels]:
    """Pictures of a run's own data, evenly spread over it."""
    data = build_dataset(load_config(config_file(source)), split)
    pictures = (data.read(index).image for index in evenly_spread(range(len(data)), count))
    return _not_empty(pictures, f"{source}: data.{split}")


def _line(differences: Differences, tolerance: float) -> str:
    wrong = ", ".join(f"{name} {differences.largest[name]:.3g}" for name in differences.above(tolerance))
    return f"{wrong} on {differences.pictures} pictures (tolerance {tolerance:g})"
