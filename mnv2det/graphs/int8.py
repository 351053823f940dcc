"""Post-training int8 of an exported network, calibrated on pictures."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.io import import_optional

# the operators that are computed in int8: all others are cheap, or come before or after the network.
# Clipping is among them because a convolution and the ReLU behind it become one operator; otherwise the
# convolution's result would be rounded before it is clipped.
CLIPPING = ("Clip", "Relu")
QUANTIZED = ("Conv", "Add", *CLIPPING)


def to_int8(proto: Any, inputs: Iterable[NDArray[np.uint8]]) -> Any:
    """Quantises a network to int8 where that saves time, by onnxruntime's static quantisation.

    Activations have eight unsigned bits and one range, weights eight signed bits and a range per
    channel. That holds for the first convolution, as pixels have no more than 256 values, and for the
    last ones: in float32 they would be a fifth of the time and nearly half of the file, for no better
    results (docs/results.md). What follows them stays in float32.

    Args:
        proto: An ``onnx.ModelProto`` as `mnv2det.graphs.program.ExportProgram.onnx` makes it; it is not changed.
        inputs: What it is calibrated on, uint8 (1, H, W, 3) each; of the input's size if the form is raw.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        ConfigError: onnxruntime or ONNX is not installed.
    """
    library = import_optional("onnxruntime.quantization", "export")
    onnx = import_optional("onnx", "export")
    logger, level = logging.getLogger(), logging.getLogger().level
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        logger.setLevel(logging.ERROR)  # it recommends preparations that are already made
        try:
            library.quantize_static(
                # a copy: quantize_static moves the weights of its argument into a file of its own
                onnx.ModelProto.FromString(proto.SerializeToString()),
                path,
                _reader(library.CalibrationDataReader, proto.graph.input[0].name, inputs),
                quant_format=library.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED),
                per_channel=True,
                activation_type=library.QuantType.QUInt8,
                weight_type=library.QuantType.QInt8,
                nodes_to_exclude=sorted(kept_exact(proto)),
                calibrate_method=library.CalibrationMethod.MinMax,
            )
        finally:
            logger.setLevel(level)
        return onnx.load(str(path))


def kept_exact(proto: Any) -> set[str]:
    """Names of the nodes that are not quantised: all before the first convolution, all behind the last ones.

    Args:
        proto: An ``onnx.ModelProto``; its nodes are in the order of computation.
    """
    exact = set()
    conv_outputs: set[str] = set()
    after_conv: set[str] = set()  # values that depend on a convolution
    activations = set()  # clipping nodes that follow a convolution at once
    for node in proto.graph.node:
        if node.op_type == "Conv":
            conv_outputs.update(node.output)
        elif not after_conv & set(node.input):
            exact.add(node.name)
            continue
        after_conv.update(node.output)
        if node.op_type in CLIPPING and conv_outputs & set(node.input):
            activations.add(node.name)
    before_conv: set[str] = set()  # values that a convolution depends on
    for node in reversed(proto.graph.node):
        if before_conv & set(node.output) or node.op_type == "Conv":
            before_conv.update(node.input)
        elif node.name not in activations:
            exact.add(node.name)
    return exact


def _reader(base: type, name: str, inputs: Iterable[NDArray[np.uint8]]) -> Any:
    """Hands the inputs, under the name of the network's input, to onnxruntime one by one."""
    feeds: Iterator[dict[str, NDArray[np.uint8]]] = ({name: image} for image in inputs)

    class Reader(base):
        def get_next(self) -> Any:
            return next(feeds, None)

    return Reader()
