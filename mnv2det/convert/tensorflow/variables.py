"""What a file of TensorFlow holds: arrays by name, in TensorFlow's layouts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mnv2det.convert.graph import DamagedError
from mnv2det.convert.tensorflow.pipeline import Pipeline
from mnv2det.convert.tensorflow.protobuf import fields, message, number, varints

DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}  # of tensorflow/core/framework/types.proto
MOST_VALUES = 2**26  # of one array
LONGEST_NAME = 4096
MOST_NUMBERS = 2**22  # bytes of them, where they are stored one by one


@dataclass
class Variables:
    """Arrays of a network, and what else its file states.

    Attributes:
        arrays: By their names in TensorFlow; convolutions are (height, width, in, out), depthwise ones
            (height, width, channels, 1).
        kinds: Operators by the name of their node, of a graph only.
        inputs: The nodes that a node reads, of a graph only.
        format: What kind of file it is, for messages: ``a frozen graph``.
        source: Name of the file.
        sha256: Checksum of the file.
        parts: Further files that were read, with their sha256.
        pipeline: The configuration beside a checkpoint, if there is one.
        folded: Whether a layer was taken whose batch norm is folded away, so that it cannot be trained as it is; set
            by `NamedLayers`.
    """

    arrays: Mapping[str, NDArray[np.generic]]
    format: str
    source: str
    sha256: str
    kinds: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, list[str]] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    pipeline: Pipeline | None = None
    folded: bool = False

    def input_size(self) -> tuple[int, int] | None:
        """(H, W) to which pictures are resized, as the graph or the configuration has it; None where none does."""
        for name, kind in self.kinds.items():
            reads = self.inputs[name]
            if kind == "ResizeBilinear" and name.startswith("Preprocessor/") and len(reads) == 2:
                size = self.arrays.get(reads[1])
                if size is not None and size.shape == (2,) and np.issubdtype(size.dtype, np.integer):
                    height, width = (int(side) for side in size)
                    if 32 <= height <= 8192 and 32 <= width <= 8192:
                        return height, width
        return self.pipeline.size if self.pipeline else None


def read_shape(view: memoryview) -> tuple[int, ...]:
    """A TensorShapeProto: its sizes.

    Raises:
        DamagedError: A size is negative, or it is unknown how many there are.
    """
    shape = []
    for key, value in fields(view):
        if key == 2:
            sizes = [number(size) for inner, size in fields(message(value)) if inner == 1]
            shape.append(sizes[-1] if sizes else 0)
        elif key == 3 and value:
            raise DamagedError("a shape of unknown rank")
    if any(size < 0 for size in shape) or math.prod(shape) > MOST_VALUES:
        raise DamagedError(f"a tensor of shape {shape[:8]}")
    return tuple(shape)


def read_array(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Raw little-endian values as an array.

    Raises:
        DamagedError: They are not as many as the shape says.
    """
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if len(data) != expected:
        raise DamagedError(f"{len(data)} bytes for a tensor of shape {list(shape[:8])}, expected {expected}")
    return np.frombuffer(data, dtype).reshape(shape)


def read_tensor(view: memoryview) -> NDArray[np.generic] | None:
    """A TensorProto; None where its type is none of `DTYPES`.

    Raises:
        DamagedError: It contradicts itself.
    """
    kind, content = 0, None
    shape: tuple[int, ...] = ()
    values: list[memoryview] = []
    whole: list[int] = []
    for key, value in fields(view):
        if key == 1:
            kind = number(value)
        elif key == 2:
            shape = read_shape(message(value))
        elif key == 4:
            content = message(value)
        elif key in (5, 6):  # floats and doubles, one or several of them
            values.append(message(value))
        elif key in (7, 10, 13):  # int, int64, half: a number, or a list of them
            if len(whole) + (1 if isinstance(value, int) else len(value)) > MOST_NUMBERS:
                raise DamagedError("too many numbers that are stored one by one")
            whole += [number(value)] if isinstance(value, int) else varints(value)
    if kind not in DTYPES:
        return None
    dtype = DTYPES[kind]
    if content is not None:
        return read_array(content, dtype, shape)
    if whole:
        if kind == 19:  # float16 as whole numbers
            flat = np.array([bits & 0xFFFF for bits in whole], "<u2").view(dtype)
        else:
            flat = np.array(whole, np.int64).astype(dtype)
    else:
        packed = b"".join(values)
        size = np.dtype(dtype).itemsize
        if len(packed) % size:
            raise DamagedError(f"{len(packed)} bytes of values of {size} bytes")
        flat = np.frombuffer(packed, dtype)
    count = math.prod(shape)
    if len(flat) == 1:
        # it stands for all of them, which take no memory so
        return np.broadcast_to(flat[0], shape)
    if len(flat) != count:
        raise DamagedError(f"{len(flat)} values for a tensor of shape {list(shape[:8])}")
    return flat.reshape(shape)
