"""Reads TFLite files: the operators in execution order, their weights dequantised to float32.

Kinds and further attributes of operators are named as in `schema`. A damaged or hostile file ends in a `WeightsError`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.convert.graph import DamagedError, Graph, Operator, TensorInfo, damage_located, printable, read_bounded
from mnv2det.convert.tflite.flatbuffer import Table, read_scalar
from mnv2det.convert.tflite.schema import ACTIVATIONS, CONSTANTS, KINDS, OPTIONS, PADDINGS, TYPES, WEIGHT_AXES
from mnv2det.errors import WeightsError

MAGIC = b"TFL3"  # at byte 4
# far above any network of this family; they bound the time and memory that a hostile file can cost
MAX_BYTES, MAX_OPERATORS, MAX_BUFFERS, MAX_TENSORS, MAX_RANK = 1 << 31, 10_000, 100_000, 64, 8

# a zip of label files may follow the flatbuffer; if it were cut off, nothing in the graph would tell
ARCHIVE_START, ARCHIVE_END, ARCHIVE_END_BYTES = re.compile(rb"PK\x03\x04[\x0a-\x3f]\x00"), b"PK\x05\x06", 22


def read_tflite(path: str | os.PathLike[str]) -> Graph:
    """Reads a TFLite file of one graph.

    Raises:
        WeightsError: The file is missing, no TFLite file, truncated or damaged, or has weights of a type that this
            reader does not know.
    """
    data = read_bounded(Path(path), MAX_BYTES, kind="TFLite file")
    if not is_tflite(data):
        raise WeightsError(f"{path}: not a TFLite file ('TFL3' expected at byte 4)")
    try:
        return _Reader(data).graph(Path(path).name)
    except DamagedError as error:
        raise WeightsError(f"{path}: truncated, damaged or unsupported TFLite file ({error})") from None


def is_tflite(start: bytes) -> bool:
    """Whether these are the first bytes (at least 8) of a TFLite file."""
    return start[4:8] == MAGIC


class _Reader:
    """Reads one file. Its methods raise `DamagedError`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        if ARCHIVE_START.search(data) and not 0 <= data.rfind(ARCHIVE_END) <= len(data) - ARCHIVE_END_BYTES:
            raise DamagedError("the archive of label files at its end is cut off")
        model = Table(data, read_scalar(data, 0, "I"))
        # numbers above 126 do not fit the older field of one byte
        self.codes = [max(code.scalar(0, "b"), code.scalar(3, "i")) for code in model.tables(1, MAX_OPERATORS)]
        self.buffers = [buffer.vector(0, "u1") for buffer in model.tables(4, MAX_BUFFERS)]
        graphs = model.table_positions(2, MAX_OPERATORS)
        if len(graphs) != 1:
            raise DamagedError(f"{len(graphs)} graphs, expected 1")
        self.main = Table(data, graphs[0])
        self.tensor_positions = self.main.table_positions(0, MAX_BUFFERS)
        self.parsed: dict[int, TensorInfo] = {}
        self.unpacked_from: dict[int, int] = {}  # in float16 files: a tensor and the constant it is unpacked from
        self.budget = 4 * len(data)  # elements that may be dequantised: many tensors may claim the same bytes

    def graph(self, source: str) -> Graph:
        """The whole graph of the file ``source``."""
        operators = []
        for index, table in enumerate(self.main.tables(3, MAX_OPERATORS)):
            kind = self.kind(table.scalar(0, "I"))
            with damage_located(f"operator {index} {kind}"):
                operator = self.operator(index, kind, table)
            if operator is not None:
                operators.append(operator)
        inputs, outputs = (self.tensors(self.main.vector(number, "<i4")) for number in (1, 2))
        return Graph(operators, inputs, outputs, "a TFLite file", source, hashlib.sha256(self.data).hexdigest())

    def kind(self, code: int) -> str:
        """Name of the operator that an index into the file's list of operator codes stands for."""
        if code >= len(self.codes):
            raise DamagedError(f"an operator has code {code} of {len(self.codes)}")
        return KINDS.get(self.codes[code], f"OP_{self.codes[code]}")

    def operator(self, index: int, kind: str, table: Table) -> Operator | None:
        """An operator with its weights; None for one that only unpacks a constant."""
        numbers = [int(tensor) for tensor in table.vector(1, "<i4")[: MAX_TENSORS + 1]]
        outputs = self.tensors(table.vector(2, "<i4"))
        if len(numbers) > MAX_TENSORS:
            raise DamagedError(f"more than {MAX_TENSORS} inputs")
        inputs = {slot: self.tensor(number) for slot, number in enumerate(numbers) if number != -1}
        computed = tuple(info for info in inputs.values() if not self.constant(info).size)
        if kind == "DEQUANTIZE" and not computed and len(outputs) == 1 and list(inputs) == [0]:
            self.unpacked_from[outputs[0].index] = inputs[0].index
            return None
        operator = Operator(index, kind, computed, outputs, attributes=self.attributes(kind, table))
        if kind in CONSTANTS and 1 in inputs and 0 < (values := self.constant(inputs[1])).size <= 64:
            operator.attributes[CONSTANTS[kind]] = tuple(int(value) for value in values.flat)
        if kind in WEIGHT_AXES:
            self.add_weights(operator, inputs)
        return operator

    def attributes(self, kind: str, table: Table) -> dict[str, Any]:
        """What an operator's options table says, as the schema lists it."""
        expected, fields = OPTIONS.get(kind, (0, {}))
        options, actual = table.table(4) if fields else None, table.scalar(3, "B")
        if options is not None and actual != expected:
            raise DamagedError(f"options of type {actual}, expected {expected}")
        values: dict[str, Any] = {n: options.scalar(*spec) if options else spec[2] for n, spec in fields.items()}
        for name, words in (("padding", PADDINGS), ("activation", ACTIVATIONS)):
            if name in values:
                values[name] = words.get(values[name], f"{name.upper()}_{values[name]}")
        for name in ("stride", "dilation", "filter"):
            if f"{name}_h" in values:
                values[name] = (values.pop(f"{name}_h"), values.pop(f"{name}_w"))
        return values

    def add_weights(self, operator: Operator, inputs: dict[int, TensorInfo]) -> None:
        """Gives an operator its weight and bias, in torch's layout."""
        axes = WEIGHT_AXES[operator.kind]
        if 1 not in inputs or not self.constant(inputs[1]).size:
            raise DamagedError("its weight is no constant")
        weight = self.dequantize(inputs[1])
        if weight.ndim != len(axes) or (operator.kind == "DEPTHWISE_CONV_2D" and weight.shape[0] != 1):
            raise DamagedError(f"its weight has shape {list(weight.shape)}")
        operator.weight = np.ascontiguousarray(weight.transpose(axes))
        if 2 not in inputs:
            return
        default_scale = None
        if 0 in inputs and inputs[0].scale is not None and inputs[1].scale is not None:
            default_scale = inputs[0].scale[:1].astype(np.float64) * inputs[1].scale
        operator.bias = self.dequantize(inputs[2], default_scale)
        if operator.bias.shape != operator.weight.shape[:1]:
            raise DamagedError(f"its bias has shape {list(operator.bias.shape)}, expected [{len(operator.weight)}]")

    def dequantize(self, info: TensorInfo, default_scale: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """A constant as float32.

        Args:
            info: The tensor.
            default_scale: float64 (1,) or (channels,), for integers that state no scale.
        """
        info = self.packed(info)
        raw = self.constant(info)
        self.budget -= raw.size
        if self.budget < 0:
            raise DamagedError("more weights than the file has room for")
        if raw.dtype.kind == "f":
            values = raw.astype(np.float32)
        else:
            # float32 holds a product of 8 or 16 bits as TFLite itself computes it; int32 needs more
            exact: type[np.floating[Any]] = np.float32 if raw.itemsize <= 2 else np.float64
            scale, zero = (info.scale, info.zero_point) if info.scale is not None else (default_scale, None)
            if scale is None:
                raise DamagedError(f"tensor '{info.name}' is {info.kind} without a scale")
            shape = [1] * raw.ndim
            if len(scale) > 1:
                if not 0 <= info.axis < raw.ndim or raw.shape[info.axis] != len(scale):
                    raise DamagedError(f"tensor '{info.name}' has {len(scale)} scales for shape {list(raw.shape)}")
                shape[info.axis] = len(scale)
            with np.errstate(all="ignore"):
                offset = np.zeros(len(scale)) if zero is None else zero
                shifted = raw.astype(exact) - offset.astype(exact).reshape(shape)
                values = (shifted * scale.astype(exact).reshape(shape)).astype(np.float32)
        if not np.isfinite(values).all():
            raise DamagedError(f"tensor '{info.name}' holds values that are not finite")
        return values

    def constant(self, info: TensorInfo) -> NDArray[Any]:
        """The stored numbers of a constant; empty for a tensor that is computed."""
        info = self.packed(info)
        data = self.buffers[info.buffer]
        if not data.size:
            return data
        if info.dtype == "":
            raise DamagedError(f"tensor '{info.name}' is a constant of unsupported type {info.kind}")
        if min(info.shape, default=1) < 0 or math.prod(info.shape) * np.dtype(info.dtype).itemsize != len(data):
            raise DamagedError(f"tensor '{info.name}' of shape {list(info.shape)} has {len(data)} bytes of data")
        return data.view(info.dtype).reshape(info.shape)

    def packed(self, info: TensorInfo) -> TensorInfo:
        """The constant that a tensor is unpacked from; other tensors are returned as they are."""
        return self.tensor(self.unpacked_from[info.index]) if info.index in self.unpacked_from else info

    def tensors(self, numbers: NDArray[Any]) -> tuple[TensorInfo, ...]:
        """The tensors of a list of numbers."""
        if len(numbers) > MAX_TENSORS:
            raise DamagedError(f"{len(numbers)} tensors in one list, at most {MAX_TENSORS} are believable")
        return tuple(self.tensor(int(number)) for number in numbers)

    def tensor(self, index: int) -> TensorInfo:
        """The tensor of a number; parsed when it is first asked for."""
        if index not in self.parsed:
            if not 0 <= index < len(self.tensor_positions):
                raise DamagedError(f"tensor {index} of {len(self.tensor_positions)}")
            self.parsed[index] = self.parse_tensor(index, Table(self.data, self.tensor_positions[index]))
        return self.parsed[index]

    def parse_tensor(self, index: int, table: Table) -> TensorInfo:
        """Reads a tensor's table."""
        name = printable(table.vector(3, "u1")[:80].tobytes().decode("utf-8", "replace"))
        shape, number, buffer = table.vector(0, "<i4"), table.scalar(1, "b"), table.scalar(2, "I")
        if len(shape) > MAX_RANK or buffer >= len(self.buffers):
            raise DamagedError(f"tensor '{name}' has {len(shape)} axes and buffer {buffer} of {len(self.buffers)}")
        if table.table(6) is not None:
            raise DamagedError(f"tensor '{name}' is stored sparse, which is not supported")
        scale, zero, axis = None, None, 0
        quantization = table.table(4)
        if quantization is not None and (scales := quantization.vector(2, "<f4")).size:
            scale, axis = scales, quantization.scalar(6, "i")
            zeros = quantization.vector(3, "<i8")
            zero = zeros if zeros.size else np.zeros(len(scales), np.int64)
            if len(zero) != len(scale):
                raise DamagedError(f"tensor '{name}' has {len(scale)} scales but {len(zero)} zero points")
        kind, dtype = TYPES.get(number, (f"TYPE_{number}", ""))
        return TensorInfo(index, name, tuple(int(size) for size in shape), kind, dtype, scale, zero, axis, buffer)
