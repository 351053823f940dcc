"""LiteRT's flatbuffers (``.tflite``): conversion, weights in half precision, int8."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnv2det.errors import ConfigError
from mnv2det.graphs.graph import Raw
from mnv2det.graphs.program import INPUT, ExportProgram, quiet_exporters
from mnv2det.io import import_optional

EXTRA = "litert"
PARTS = ("algorithm_manager", "qtyping", "quantizer")  # of ai-edge-quantizer that are needed here
SIGNATURE = "serving_default"  # the converter's name for the only function of a file


def to_flatbuffer(program: ExportProgram, path: Path) -> dict[str, tuple[int, ...]]:
    """Converts a raw network for one picture of the model's own size, uint8 (1, H, W, 3).

    Args:
        program: Of the raw form.
        path: The file to write.

    Returns:
        The shapes of the outputs by name, without the batch.

    Raises:
        ConfigError: litert-torch is not installed, or cannot convert the network.
    """
    module = program.module()
    assert isinstance(module, Raw)
    example = program.example[:1]
    with torch.no_grad(), quiet_exporters(), silence():
        converter = import_optional("litert_torch", EXTRA)
        shapes = {name: tuple(value.shape[1:]) for name, value in module(example).items()}
        try:
            converter.convert(module, sample_kwargs={INPUT: example}).export(str(path))
        except (RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise ConfigError(f"litert-torch cannot convert this model ({type(error).__name__}: {said})") from None
    return shapes


def halve(path: Path) -> None:
    """Stores the weights of a file's convolutions in half precision.

    Raises:
        ConfigError: ai-edge-quantizer is not installed.
    """
    with silence():
        algorithms, types, quantizer = (_part_of_quantizer(name) for name in PARTS)
        weights = types.TensorQuantizationConfig(16, dtype=types.TensorDataType.FLOAT)
        config = types.OpQuantizationConfig(
            weight_tensor_config=weights, compute_precision=types.ComputePrecision.FLOAT
        )
        work = quantizer.Quantizer(path.read_bytes())
        everything = types.TFLOperationName.ALL_SUPPORTED
        work.update_quantization_recipe(".*", everything, config, algorithms.AlgorithmName.FLOAT_CASTING)
        path.write_bytes(work.quantize(enable_progress_report=False).quantized_model)


def quantize(path: Path, inputs: Iterable[NDArray[np.uint8]]) -> None:
    """Quantises a file to int8: a range for each activation and for each output channel of the weights.

    Input and outputs keep their types. The range of an activation is from the least to the largest value that it has
    on any picture: the moving average that the quantiser takes by default cuts off what is rare, and lost the VOC
    detector 0.03 of AP50.

    Args:
        path: A float32 file of `to_flatbuffer`.
        inputs: What it is calibrated on, uint8 (1, H, W, 3) each.

    Raises:
        ConfigError: ai-edge-quantizer is not installed.
    """
    with silence():
        algorithms, types, quantizer = (_part_of_quantizer(name) for name in PARTS)
        operations = types.TFLOperationName
        work = quantizer.Quantizer(path.read_bytes())
        work.add_static_config(".*", operations.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
        kept = algorithms.AlgorithmName.NO_QUANTIZE
        work.update_quantization_recipe(".*", operations.OUTPUT, None, kept)
        ranges: dict[str, Any] = {}
        for image in inputs:
            merge(ranges, work.calibrate({SIGNATURE: [{INPUT: image}]}))
        path.write_bytes(work.quantize(ranges, enable_progress_report=False).quantized_model)


def _part_of_quantizer(name: str) -> Any:
    return import_optional(f"ai_edge_quantizer.{name}", EXTRA)


def merge(ranges: dict[str, Any], others: dict[str, Any]) -> None:
    """Widens ranges, ``min`` and ``max`` by the name of a tensor, by those of another picture, in place."""
    for name, other in others.items():
        known = ranges.get(name)
        if known and other:
            low, high = np.minimum(known["min"], other["min"]), np.maximum(known["max"], other["max"])
            ranges[name] = {**known, "min": low, "max": high}
        elif other or name not in ranges:
            ranges[name] = other


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps these packages from printing their progress and remarks about their own insides."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
