"""Reads TFLite files: the operators in execution order, their weights dequantised to float32.

Kinds and further attributes are named as in `tflite_schema`. A damaged or hostile file ends in a
`WeightsError`.
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

from mnv2det.convert.graph import DamagedError, Graph, Operator, TensorInfo, printable
from mnv2det.convert.tflite.flatbuffer import Table, scalar
from mnv2det.convert.tflite.schema import ACTIVATIONS, CONSTANTS, KINDS, OPTIONS, PADDINGS, TYPES, WEIGHT_AXES
from mnv2det.errors import WeightsError

MAGIC = b"TFL3"  # at byte 4
# far above any network of this family; they bound the time and memory a hostile file can cost
MAX_BYTES, MAX_OPERATORS, MAX_BUFFERS, MAX_INPUTS, MAX_RANK = 1 << 31, 10_000, 100_000, 64, 8

# a zip of label files may be appended to the flatbuffer: nothing in the graph misses its end
ARCHIVE_START, ARCHIVE_END, ARCHIVE_END_BYTES = re.compile(rb"PK\x03\x04[\x0a-\x3f]\x00"), b"PK\x05\x06", 22


def read_tflite(path: str | os.PathLike[str]) -> Graph:
    """Reads a TFLite file of one graph.

    Raises:
        WeightsError: It is missing, no TFLite file, truncated, damaged, or its weights are of a
            type this reader does not know.
    """
    try:
        size = Path(path).stat().st_size if Path(path).is_file() else -1
        if size < 0 or size > MAX_BYTES:
            raise WeightsError(f"{path}: no such TFLite file" if size < 0 else f"{path}: over 2 GiB, no TFLite file")
        data = Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot read the TFLite file ({error.strerror})") from None
    if not is_tflite(data):
        raise WeightsError(f"{path}: not a TFLite file ('TFL3' expected at byte 4)")
    try:
        return _Reader(data).graph()
    except DamagedError as error:
        raise WeightsError(f"{path}: truncated, damaged or unsupported TFLite file ({error})") from None


def is_tflite(start: bytes) -> bool:
    """Whether these are the first bytes (at least 8) of a TFLite file."""
    return start[4:8] == MAGIC


class _Reader:
    """Walks one file. Its methods raise `DamagedError`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        if ARCHIVE_START.search(data) and not 0 <= data.rfind(ARCHIVE_END) <= len(data) - ARCHIVE_END_BYTES:
            raise DamagedError("the archive of label files at its end is cut off")
        model = Table(data, scalar(data, 0, "I"))
        codes = [Table(data, at) for at in model.places(1, MAX_OPERATORS)]
        # codes above 126 do not fit the older one-byte field
        self.codes = [max(code.scalar(0, "b"), code.scalar(3, "i")) for code in codes]
        self.buffers = [Table(data, at).vector(0, "u1") for at in model.places(4, MAX_BUFFERS)]
        graphs = model.places(2, MAX_OPERATORS)
        if len(graphs) != 1:
            raise DamagedError(f"{len(graphs)} graphs, expected 1")
        self.main = Table(data, graphs[0])
        self.tensors = self.main.places(0, MAX_BUFFERS)
        self.known: dict[int, TensorInfo] = {}
        self.unpacked: dict[int, int] = {}  # tensor -> the constant it is unpacked from (float16 files)
        self.budget = 4 * len(data)  # elements to dequantise: many tensors may claim the same bytes

    def graph(self) -> Graph:
        operators = []
        for index, at in enumerate(self.main.places(3, MAX_OPERATORS)):
            table = Table(self.data, at)
            kind = self.kind(table.scalar(0, "I"))
            try:
                operator = self.operator(index, kind, table)
            except DamagedError as error:
                raise DamagedError(f"operator {index} {kind}: {error}") from None
            if operator is not None:
                operators.append(operator)
        ends = [self.infos(self.main.vector(number, "<i4")) for number in (1, 2)]
        return Graph(operators, ends[0], ends[1], hashlib.sha256(self.data).hexdigest())

    def kind(self, code: int) -> str:
        if code >= len(self.codes):
            raise DamagedError(f"an operator has code {code} of {len(self.codes)}")
        return KINDS.get(self.codes[code], f"OP_{self.codes[code]}")

    def operator(self, index: int, kind: str, table: Table) -> Operator | None:
        numbers = [int(tensor) for tensor in table.vector(1, "<i4")[: MAX_INPUTS + 1]]
        outputs = self.infos(table.vector(2, "<i4"))
        if len(numbers) > MAX_INPUTS:
            raise DamagedError(f"more than {MAX_INPUTS} inputs")
        given = {slot: self.info(tensor) for slot, tensor in enumerate(numbers) if tensor != -1}
        moving = tuple(info for info in given.values() if not self.constant(info).size)
        if kind == "DEQUANTIZE" and not moving and len(outputs) == 1 and list(given) == [0]:
            self.unpacked[outputs[0].index] = given[0].index
            return None
        found = Operator(index, kind, moving, outputs, attributes=self.attributes(kind, table))
        if kind in CONSTANTS and 1 in given and 0 < (values := self.constant(given[1])).size <= 64:
            found.attributes[CONSTANTS[kind]] = tuple(int(value) for value in values.flat)
        if kind in WEIGHT_AXES:
            self.weigh(found, given)
        return found

    def attributes(self, kind: str, table: Table) -> dict[str, Any]:
        expected, names = OPTIONS.get(kind, (0, {}))
        options, given = table.table(4) if names else None, table.scalar(3, "B")
        if options is not None and given != expected:
            raise DamagedError(f"options of type {given}, expected {expected}")
        values: dict[str, Any] = {n: options.scalar(*where) if options else where[2] for n, where in names.items()}
        for name, words in (("padding", PADDINGS), ("activation", ACTIVATIONS)):
            if name in values:
                values[name] = words.get(values[name], f"{name.upper()}_{values[name]}")
        for name in ("stride", "dilation", "filter"):
            if f"{name}_h" in values:
                values[name] = (values.pop(f"{name}_h"), values.pop(f"{name}_w"))
        return values

    def weigh(self, operator: Operator, given: dict[int, TensorInfo]) -> None:
        """Adds weight and bias."""
        axes = WEIGHT_AXES[operator.kind]
        if 1 not in given or not self.constant(given[1]).size:
            raise DamagedError("its weight is no constant")
        weight = self.dequantize(given[1])
        if weight.ndim != len(axes) or (operator.kind == "DEPTHWISE_CONV_2D" and weight.shape[0] != 1):
            raise DamagedError(f"its weight has shape {list(weight.shape)}")
        operator.weight = np.ascontiguousarray(weight.transpose(axes))
        if 2 in given:
            fallback = None
            if 0 in given and given[0].scale is not None and given[1].scale is not None:
                fallback = given[0].scale[:1].astype(np.float64) * given[1].scale
            operator.bias = self.dequantize(given[2], fallback)
            if operator.bias.shape != operator.weight.shape[:1]:
                shape, channels = list(operator.bias.shape), len(operator.weight)
                raise DamagedError(f"its bias has shape {shape}, expected [{channels}]")

    def dequantize(self, info: TensorInfo, fallback: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """A constant as float32; ``fallback`` is the scale of integers that state none."""
        info = self.source(info)
        raw = self.constant(info)
        self.budget -= raw.size
        if self.budget < 0:
            raise DamagedError("more weights than the file has room for")
        if raw.dtype.kind == "f":
            values = raw.astype(np.float32)
        else:
            # float32 holds a product of 8 or 16 bits as TFLite itself computes it; int32 needs more
            exact: type[np.floating[Any]] = np.float32 if raw.itemsize <= 2 else np.float64
            scale, zero = (info.scale, info.zero_point) if info.scale is not None else (fallback, None)
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
        info = self.source(info)
        data = self.buffers[info.buffer]
        if not data.size:
            return data
        if info.dtype == "":
            raise DamagedError(f"tensor '{info.name}' is a constant of unsupported type {info.kind}")
        if min(info.shape, default=1) < 0 or math.prod(info.shape) * np.dtype(info.dtype).itemsize != len(data):
            raise DamagedError(f"tensor '{info.name}' of shape {list(info.shape)} has {len(data)} bytes of data")
        return data.view(info.dtype).reshape(info.shape)

    def source(self, info: TensorInfo) -> TensorInfo:
        return self.info(self.unpacked[info.index]) if info.index in self.unpacked else info

    def infos(self, numbers: NDArray[Any]) -> tuple[TensorInfo, ...]:
        if len(numbers) > MAX_INPUTS:
            raise DamagedError(f"{len(numbers)} tensors in one list, at most {MAX_INPUTS} are believable")
        return tuple(self.info(int(number)) for number in numbers)

    def info(self, index: int) -> TensorInfo:
        if index not in self.known:
            if not 0 <= index < len(self.tensors):
                raise DamagedError(f"tensor {index} of {len(self.tensors)}")
            self.known[index] = self.parse_info(index, Table(self.data, self.tensors[index]))
        return self.known[index]

    def parse_info(self, index: int, table: Table) -> TensorInfo:
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
