"""Reads models of TensorFlow.js: a ``model.json`` and the files of weights, called shards, that it names."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnv2det.convert.graph import DamagedError, damage_located, printable, read_bounded
from mnv2det.convert.tensorflow.variables import LONGEST_NAME, MOST_VALUES, Variables, read_array
from mnv2det.errors import WeightsError

LARGEST_JSON = 2**23  # bytes
LARGEST = 2**29  # bytes of all weights, as they are stored and as float32
MOST_SHARDS = 1000
MOST_DIMENSIONS = 8
STORED = {"float32": "<f4", "int32": "<i4", "bool": "|u1"}
QUANTISED = {"uint8": "|u1", "uint16": "<u2", "float16": "<f2"}


class Weight(NamedTuple):
    """A weight as the manifest describes it; what is stored times ``scale``, plus ``offset``, are its values."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str
    scale: float
    offset: float

    @property
    def size(self) -> int:
        """Bytes that it takes in the shards."""
        return math.prod(self.shape) * np.dtype(self.stored).itemsize


def read_tfjs(path: Path) -> Variables:
    """Reads the weights of a graph model or a layers model; quantised ones become what they stand for.

    Args:
        path: The ``model.json``; its shards lie in the same folder or below it.

    Raises:
        WeightsError: A file is missing, damaged or outside the folder, or it is no model of TensorFlow.js.
    """
    data = read_bounded(path, LARGEST_JSON, kind="model.json of TensorFlow.js")
    arrays: dict[str, NDArray[np.generic]] = {}
    parts: dict[str, str] = {}
    try:
        model = _dict(json.loads(data), "the file")
        topology = _dict(model.get("modelTopology"), "'modelTopology'")
        kinds, inputs = _read_nodes(topology)
        left = LARGEST
        for number, group in enumerate(_list(model.get("weightsManifest"), "'weightsManifest'")):
            group = _dict(group, f"group {number} of 'weightsManifest'")
            weights = [_weight(entry) for entry in _list(group.get("weights"), "'weights'")]
            # without quantisation as many bytes as are stored, with it more
            left -= sum(max(weight.size, 4 * math.prod(weight.shape)) for weight in weights)
            if left < 0:
                raise DamagedError(f"weights of more than {LARGEST:,} bytes")
            paths = _list(group.get("paths"), "'paths'")
            stored = _read_shards(path, paths, sum(weight.size for weight in weights), parts)
            for name, array in _take(stored, weights):
                if name in arrays:
                    raise DamagedError(f"two weights '{printable(name)}'")
                arrays[name] = array
    except (ValueError, RecursionError):  # of the JSON
        raise WeightsError(f"{path}: damaged, or no model of TensorFlow.js (not JSON)") from None
    except DamagedError as error:
        raise WeightsError(f"{path}: damaged, or no model of TensorFlow.js ({error})") from None
    kind = "a graph model of TensorFlow.js" if kinds else "a layers model of TensorFlow.js"
    return Variables(arrays, kind, path.name, hashlib.sha256(data).hexdigest(), kinds, inputs, parts)


def _read_nodes(topology: dict[str, Any]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Operators and inputs by the names of the nodes; nothing of a layers model, which has no nodes."""
    kinds: dict[str, str] = {}
    inputs: dict[str, list[str]] = {}
    if "node" not in topology and "model_config" in topology:
        return kinds, inputs
    for entry in _list(topology.get("node"), "'node'"):
        node = _dict(entry, "a node")
        name = _text(node.get("name"), "the name of a node")
        kinds[name] = _text(node.get("op"), f"the operator of node '{printable(name)}'")
        inputs[name] = [_text(read, "an input of a node") for read in _list(node.get("input", []), "'input'")]
    if not kinds:
        raise DamagedError("no nodes")
    return kinds, inputs


def _weight(entry: Any) -> Weight:
    """An entry of the manifest."""
    entry = _dict(entry, "a weight")
    name = _text(entry.get("name"), "the name of a weight")
    with damage_located(f"weight '{printable(name)}'"):
        shape = _list(entry.get("shape"), "its shape")
        if len(shape) > MOST_DIMENSIONS or not all(type(size) is int and 0 <= size <= MOST_VALUES for size in shape):
            raise DamagedError(f"its shape is {printable(repr(shape))}")
        if math.prod(shape) > MOST_VALUES:
            raise DamagedError(f"its shape is {shape}, more than {MOST_VALUES:,} values")
        dtype = entry.get("dtype")
        if not isinstance(dtype, str) or dtype not in STORED:
            raise DamagedError(f"its type is {printable(repr(dtype))}, expected one of {', '.join(STORED)}")
        stored, scale, offset = STORED[dtype], 1.0, 0.0
        if (quantisation := entry.get("quantization")) is not None:
            quantisation = _dict(quantisation, "'quantization'")
            kind = quantisation.get("dtype")
            if not isinstance(kind, str) or kind not in QUANTISED:
                raise DamagedError(f"quantised as {printable(repr(kind))}, expected one of {', '.join(QUANTISED)}")
            stored = QUANTISED[kind]
            if kind != "float16":  # which is only a shorter way of writing the values
                scale, offset = (_number(quantisation, key) for key in ("scale", "min"))
    return Weight(name, tuple(shape), dtype, stored, scale, offset)


def _read_shards(model: Path, names: list[Any], expected: int, parts: dict[str, str]) -> bytes:
    """The contents of shards, one after another; ``parts`` gets their checksums."""
    folder = Path(os.path.realpath(model.parent))
    contents = []
    left = expected
    for entry in names:
        name = _text(entry, "the path of a shard")
        if len(parts) >= MOST_SHARDS or name in parts:
            raise DamagedError(f"shard '{printable(name)}' is named twice, or is one of more than {MOST_SHARDS}")
        shard = folder / name
        if ".." in shard.parts or not Path(os.path.realpath(shard)).is_relative_to(folder):
            raise DamagedError(f"shard '{printable(name)}' lies outside the folder of the file")
        content = read_bounded(shard, LARGEST, kind="shard")
        left -= len(content)
        if left < 0:
            break
        parts[name] = hashlib.sha256(content).hexdigest()
        contents.append(content)
    if left:
        surplus = f"more than {expected:,}" if left < 0 else f"{expected - left:,}"
        raise DamagedError(f"shards of {surplus} bytes, expected {expected:,}")
    return b"".join(contents)


def _take(stored: bytes, weights: list[Weight]) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Names and values of weights that are stored one after another."""
    view, position = memoryview(stored), 0
    for weight in weights:
        array = read_array(view[position : position + weight.size], weight.stored, weight.shape)
        position += weight.size
        if weight.stored != STORED[weight.dtype]:
            with np.errstate(all="ignore"):  # values that are not finite are refused where they are used
                # in double precision, as JavaScript computes
                values = array.astype(np.float64) * weight.scale + weight.offset
                array = (values.round() if weight.dtype == "int32" else values).astype(STORED[weight.dtype])
        yield weight.name, array


def _dict(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedError(f"{what} is no object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise DamagedError(f"{what} is no list")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME or not value.isprintable():
        raise DamagedError(f"{what} is {printable(repr(value))}, expected text")
    return value


def _number(values: dict[str, Any], key: str) -> float:
    value = values.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e30:
        raise DamagedError(f"'{key}' of its quantisation is {printable(repr(value))}, expected a number")
    return float(value)
