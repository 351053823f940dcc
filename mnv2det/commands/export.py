"""Writing a trained model for another runtime, and checking what was written."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mnv2det.commands.accuracy import LabelledSet
from mnv2det.commands.compare import Differences, compare
from mnv2det.config import load_config
from mnv2det.data.images import list_images, read_image
from mnv2det.data.transforms import fit
from mnv2det.engine.build import build_dataset
from mnv2det.errors import ConfigError, DataError, Mnv2detError, WeightsError
from mnv2det.export.int8 import to_int8
from mnv2det.export.program import SUFFIXES, ExportMetadata, Form, quantized, to_onnx, write, write_openvino
from mnv2det.io import RunFolder, config_file, evenly_spread, import_optional
from mnv2det.models.build import from_file, weights_of
from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import Preprocess

Pixels = NDArray[np.uint8]
CALIBRATION = 128  # pictures


def export(
    source: str,
    output: str,
    *,
    form: Form = "complete",
    int8: bool = False,
    calibrate: str | None = None,
    calibration: int = CALIBRATION,
    images: str | None = None,
    count: int = 8,
    tolerance: float = 1e-3,
    splits: int | None = None,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
    labelled: tuple[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Writes an exported model, then runs it beside torch on real pictures.

    The file is put in place only if it finds what torch finds. An int8 one is expected to differ;
    its difference is stated, and its accuracy where a labelled set is given.

    Args:
        source: A run folder or a weight file.
        output: ``.onnx``, ``.xml`` (OpenVINO, with a ``.bin`` beside it) or ``.pt2`` (torch.export).
        form: As `mnv2det.export.program.ExportMetadata` has it.
        int8: Whether to quantise, by way of ONNX.
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
        ``output``, ``form``, ``precision``, ``bytes``, ``pictures``, ``compared_on``, ``differences`` by name, and
        ``before`` and ``after``, metrics by name, where a labelled set is given, and ``problems``: a
        line for each picture that could not be read.

    Raises:
        ConfigError: What is asked for cannot be written, or the library for it is not installed.
        DataError: A folder holds no pictures, or the file cannot be written.
        WeightsError: The source cannot be read, or the export differs from it too much.
    """
    path = Path(output)
    if path.suffix == ".pt2" and int8:
        raise ConfigError("--int8: written as .onnx or .xml, not .pt2")
    if calibrate is not None and not int8:
        raise ConfigError("--calibrate FOLDER is for --int8")
    if splits is not None and int8:
        raise ConfigError("--splits: parts of a sum would be rounded each; not with --int8")
    weights = weights_of(source)
    model, header = from_file(str(weights), heads=heads)
    if heads:
        header.heads = model.header().heads
    metadata = ExportMetadata(header, form)
    reference = Predictor(weights, device="cpu", heads=heads)
    data = LabelledSet(*labelled, reference) if labelled else None
    problems: list[str] = []
    pictures, where = pictures_to_compare(source, images or calibrate, count, problems)
    calibrated = pictures_to_calibrate(source, calibrate, calibration, problems) if int8 else iter(())
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            made = Path(folder) / path.name
            if int8:
                write_int8(to_onnx(model, metadata), metadata, made, calibrated)
            else:
                write(model, metadata, made, splits=splits)
            exported = Predictor(made)
            differences = compare(reference, exported, pictures)
            if not int8 and differences.above(tolerance):
                raise WeightsError(f"{output}: not written, it differs from torch: {_line(differences, tolerance)}")
            before = data.measure(reference, about="before") if data else {}
            after = data.measure(exported, about="after") if data else {}
            del exported
            for part in Path(folder).iterdir():
                part.chmod(0o644)
                shutil.move(part, path.parent / part.name)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot write ({error.strerror})") from None
    size = sum(part.stat().st_size for part in (path, path.with_suffix(".bin")) if part.is_file())
    return {
        "output": output,
        "form": form,
        "precision": "int8" if int8 else "fp32",
        "bytes": size if path.suffix == ".xml" else path.stat().st_size,
        "pictures": differences.pictures,
        "compared_on": where,
        "detections": differences.detections,
        "differences": differences.largest,
        "before": before,
        "after": after,
        "main": data.main_metrics() if data else [],
        "problems": problems,
    }


def write_int8(proto: Any, metadata: ExportMetadata, path: Path, pictures: Iterable[Pixels]) -> None:
    """Quantises an ONNX graph and writes it as ``.onnx`` or ``.xml``.

    Args:
        proto: Of `to_onnx`.
        metadata: What it says of itself in float32.
        path: What to write.
        pictures: To calibrate on, uint8 (H, W, 3), RGB.
    """
    inputs = (_input(picture, metadata.header.preprocess, metadata.form) for picture in pictures)
    small = to_int8(proto, inputs)
    entries = quantized(metadata).entries()
    for entry in small.metadata_props:
        entry.value = entries.get(entry.key, entry.value)
    if SUFFIXES[path.suffix.lower()] == "onnx":
        path.write_bytes(small.SerializeToString())
    else:
        network = import_optional("openvino", "openvino").Core().read_model(small.SerializeToString())
        write_openvino(network, quantized(metadata), path)


def pictures_to_compare(source: str, images: str | None, count: int, problems: list[str]) -> tuple[list[Pixels], str]:
    """Some pictures, and where they are from: a folder, a run's validation set, or a random generator."""
    if images is not None:
        return list(read_all(evenly_spread(list_images(images), count), problems)), images
    if RunFolder(source).exists:
        try:
            return list(_of_run(source, "val", count)), "the run's validation set"
        except Mnv2detError as error:
            problems.append(f"the run's validation set cannot be read: {error}")
    noise = np.random.default_rng(0)
    sizes = ((480, 640), (333, 500), (640, 427), (64, 80))
    made = [noise.integers(0, 256, (*sizes[index % len(sizes)], 3), dtype=np.uint8) for index in range(count)]
    return made, "noise; name real pictures with --images FOLDER"


def pictures_to_calibrate(source: str, folder: str | None, count: int, problems: list[str]) -> Iterator[Pixels]:
    """Pictures of a folder, or of a run's training set, read one by one.

    Raises:
        ConfigError: There is neither.
        DataError: The folder holds none.
    """
    if folder is not None:
        return read_all(evenly_spread(list_images(folder), count), problems)
    if not RunFolder(source).exists:
        raise ConfigError(f"int8: {source} is no run folder with a training set; name pictures with --calibrate FOLDER")
    return _of_run(source, "train", count)


def read_all(files: Sequence[Path], problems: list[str]) -> Iterator[Pixels]:
    """Reads pictures one by one; those that cannot be read are left out and get a line in ``problems``."""
    for file in tqdm(files, desc="reading", unit="image", leave=False, disable=not sys.stderr.isatty()):
        try:
            yield read_image(file)
        except DataError as error:
            problems.append(f"left out: {error}")


def _of_run(source: str, split: str, count: int) -> Iterator[Pixels]:
    """Pictures of a run's own data, evenly spread over it."""
    data = build_dataset(load_config(config_file(source)), split)
    return (data.read(index).image for index in evenly_spread(range(len(data)), count))


def _input(picture: Pixels, preprocess: Preprocess, form: Form) -> Pixels:
    if form == "complete":
        return np.ascontiguousarray(picture)[None]
    pixels, _ = fit(picture, preprocess)
    height, width = preprocess.input_size
    # of one larger than the input that may not be scaled, a part
    return np.ascontiguousarray(pixels[:height, :width])[None]


def _line(differences: Differences, tolerance: float) -> str:
    wrong = ", ".join(f"{name} {differences.largest[name]:.3g}" for name in differences.above(tolerance))
    return f"{wrong} on {differences.pictures} pictures (tolerance {tolerance:g})"
