"""The JSON file beside an exported file whose format has no room for metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnv2det.errors import WeightsError
from mnv2det.graphs.program import ExportMetadata, ExportProgram
from mnv2det.io import write_json
from mnv2det.models.head import Head
from mnv2det.ops.boxes import CENTER_SCALE, SIZE_SCALE


def sidecar_of(path: Path) -> Path:
    """Where the metadata of an exported file is: ``model.tflite.json`` of ``model.tflite``."""
    return path.with_name(f"{path.name}.json")


def write_sidecar(
    program: ExportProgram, files: Sequence[Path], inputs: Mapping[str, Any], outputs: Mapping[str, Sequence[int]]
) -> None:
    """Writes what a program needs that has only the exported files; docs/deploy.md describes the keys.

    Args:
        program: What was exported.
        files: The exported files that the metadata belongs to; the first one gives it its name.
        inputs: By name of an input, what it takes: ``shape``, ``layout``, ``type`` and the like.
        outputs: By name of an output, its shape.
    """
    metadata = program.metadata
    entries = {key: json.loads(text) if text.startswith("{") else text for key, text in metadata.entries().items()}
    size = metadata.header.preprocess.input_size
    heads: dict[str, Head] = dict(program.model.heads.items())  # type: ignore[arg-type]
    facts = {
        **entries,
        "inputs": dict(inputs),
        "outputs": {name: list(shape) for name, shape in outputs.items()},
        "detectors": {
            task: found for task, head in heads.items() if (found := detector_facts(head, task, size)) is not None
        },
        "sha256": {file.suffix: checksum(file) for file in files},
    }
    write_json(sidecar_of(files[0]), facts)


def detector_facts(head: Head, task: str, size: tuple[int, int]) -> dict[str, Any] | None:
    """What turns a detector's raw tensors into detections; None of a head that predicts no boxes at anchors.

    Args:
        head: Any.
        task: Its name.
        size: (H, W) of the input.
    """
    coding = head.anchor_coding()
    if coding is None:
        return None
    return {
        "logits": f"{task}.{coding.logits}",
        "codes": f"{task}.{coding.codes}",
        "scores": "softmax" if coding.softmax else "sigmoid",
        "background_first": coding.softmax,
        "score_threshold": coding.settings.score_threshold,
        "nms_iou": coding.settings.nms_iou,
        "max_detections": coding.settings.max_detections,
        "clip_after_nms": coding.settings.clip_after_nms,
        "center_scale": CENTER_SCALE,
        "size_scale": SIZE_SCALE,
        "anchors": head.constants(size)[coding.anchors].tolist(),
    }


def read_sidecar(path: Path, files: Sequence[Path]) -> tuple[ExportMetadata, dict[str, Any]]:
    """Reads what `write_sidecar` wrote.

    Args:
        path: The exported file.
        files: All that the metadata belongs to.

    Returns:
        The metadata, and all that is in the file.

    Raises:
        WeightsError: A file is missing, damaged, or of another export.
    """
    place = sidecar_of(path)
    missing = [file for file in (place, *files) if not file.is_file()]
    if missing:
        raise WeightsError(f"{path}: {missing[0].name} must lie beside it, as mnv2det exports it; it is missing")
    try:
        facts = json.loads(place.read_bytes())
        entries = {
            key: json.dumps(facts[key]) if isinstance(facts[key], dict) else str(facts[key])
            for key in ExportMetadata.KEYS
            if key in facts
        }
        sums, shapes = dict(facts["sha256"]), {str(name): tuple(shape) for name, shape in facts["outputs"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{place}: not written by mnv2det, or damaged ({type(error).__name__}: {error})") from None
    for file in files:
        if sums.get(file.suffix) != checksum(file):
            raise WeightsError(f"{file}: damaged, or of another export than {place.name}")
    return ExportMetadata.of(entries, where=str(place)), {**facts, "outputs": shapes}


def checksum(file: Path) -> str:
    """The SHA-256 of a file's content.

    Raises:
        WeightsError: It cannot be read.
    """
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{file}: cannot read ({error.strerror})") from None
