"""Reads checkpoints of TensorFlow: an index, which is a table as LevelDB's, and files of raw values."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnv2det.convert.graph import DamagedError, damage_located, printable, read_bounded
from mnv2det.convert.tensorflow import object_graph
from mnv2det.convert.tensorflow.protobuf import fields, message, number, varint
from mnv2det.convert.tensorflow.variables import DTYPES, LONGEST_NAME, Variables, read_array, read_shape
from mnv2det.errors import WeightsError

LARGEST = 2**31  # bytes of values
LARGEST_INDEX = 2**26
FOOTER, MAGIC = 48, 0xDB4775248B80FB57
MOST_SHARDS = 1000
MOST_ENTRIES = 200_000
# what training keeps beside a variable, under its name and one of these
SLOTS = ("Momentum", "RMSProp", "RMSProp_1", "Adam", "Adam_1", "Adagrad", "Ftrl", "Ftrl_1")
AVERAGE = "ExponentialMovingAverage"
TEXT = 7  # the type of the graph of objects, by which TensorFlow 2 names its variables

Arrays = dict[str, NDArray[np.generic]]


class Entry(NamedTuple):
    """Where a variable's values lie: type, shape, number of the file, and place in it."""

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int


def read_checkpoint(prefix: Path) -> Variables:
    """Reads the variables of a checkpoint; moving averages take the place of what they are the average of.

    The optimizer's own variables are left out. Those of TensorFlow 2 get the names that the graph of objects states.

    Args:
        prefix: The path of the files without ``.index`` and ``.data-00000-of-00001``.

    Raises:
        WeightsError: A file is missing or damaged.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    data = read_bounded(index, LARGEST_INDEX, kind="checkpoint's index")
    try:
        shards, entries = _read_index(memoryview(data))
    except DamagedError as error:
        raise WeightsError(f"{index}: damaged, or no checkpoint's index ({error})") from None
    files: dict[int, memoryview] = {}
    parts = {}
    for shard in sorted({entry.shard for entry in entries.values()}):
        path = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
        files[shard] = memoryview(read_bounded(path, LARGEST, kind="checkpoint's values"))
        parts[path.name] = hashlib.sha256(files[shard]).hexdigest()
    try:
        names = None
        if (graph := entries.pop(object_graph.KEY, None)) is not None:
            with damage_located("the graph of objects"):
                names = object_graph.read_names(_values(files, graph))
        arrays, averages = _read_arrays(files, entries)
    except DamagedError as error:
        raise WeightsError(f"{prefix}: damaged ({error})") from None
    note = "a checkpoint's moving averages" if averages else "a checkpoint"
    arrays |= averages
    if names is not None:
        arrays, ambiguous = object_graph.name_variables(arrays, names)
        note = "a checkpoint of TensorFlow 2"
        if ambiguous:
            note += f", {ambiguous} of whose variables share their names with others"
    return Variables(arrays, note, index.name, hashlib.sha256(data).hexdigest(), parts=parts)


def _read_arrays(files: Mapping[int, memoryview], entries: Mapping[str, Entry]) -> tuple[Arrays, Arrays]:
    """The variables' values, and their moving averages."""
    arrays: Arrays = {}
    averages: Arrays = {}
    for name, entry in entries.items():
        owner, _, kind = name.rpartition("/")
        if kind in SLOTS and owner in entries:
            continue
        with damage_located(f"variable '{printable(name)}'"):
            array = read_array(_values(files, entry), entry.dtype, entry.shape)
        if kind == AVERAGE:
            averages[owner] = array
        else:
            arrays[name] = array
    return arrays, averages


def _values(files: Mapping[int, memoryview], entry: Entry) -> memoryview:
    """The bytes of a variable."""
    if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > len(files[entry.shard]):
        raise DamagedError("its values lie behind the end of the file")
    return files[entry.shard][entry.offset : entry.offset + entry.size]


def _read_index(data: memoryview) -> tuple[int, dict[str, Entry]]:
    """The number of files of values, and where each variable lies; variables of other types are left out."""
    if len(data) < FOOTER or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise DamagedError("its last bytes are not a table's")
    footer = data[-FOOTER:]
    _, position = _handle(footer, 0)
    handle, _ = _handle(footer, position)
    shards, count = 1, 0
    entries: dict[str, Entry] = {}
    for _, where in _block(data, *handle):
        block, _ = _handle(where, 0)
        for key, value in _block(data, *block):
            count += 1
            if count > MOST_ENTRIES:
                raise DamagedError(f"more than {MOST_ENTRIES} variables")
            if not key:
                shards = _shards(value)
                continue
            name = key.decode("utf-8", "replace")
            if not name.isprintable():
                raise DamagedError("a variable whose name cannot be printed")
            with damage_located(f"variable '{printable(name)}'"):
                entry = _entry(value, TEXT if name == object_graph.KEY else None)
            if entry is not None:
                if not 0 <= entry.shard < shards:
                    raise DamagedError(f"variable '{printable(name)}' lies in file {entry.shard} of {shards}")
                entries[name] = entry
    return shards, entries


def _handle(data: memoryview, position: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and the position behind them."""
    offset, position = varint(data, position)
    size, position = varint(data, position)
    return (offset, size), position


def _block(data: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a block, which is not compressed."""
    if offset + size + 1 > len(data) or size < 4:
        raise DamagedError("a block behind the end of the file")
    if data[offset + size] != 0:
        raise DamagedError("compressed")
    block = data[offset : offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end = size - 4 - 4 * restarts
    if end < 0:
        raise DamagedError("a block shorter than its own list")
    position, key = 0, b""
    while position < end:
        shared, position = varint(block, position)
        rest, position = varint(block, position)
        length, position = varint(block, position)
        if shared > len(key) or shared + rest > LONGEST_NAME or position + rest + length > end:
            raise DamagedError("an entry that leaves its block")
        key = key[:shared] + bytes(block[position : position + rest])
        position += rest
        yield key, block[position : position + length]
        position += length


def _shards(view: memoryview) -> int:
    """The number of files of values, from a BundleHeaderProto."""
    header = {key: number(value) for key, value in fields(view) if key in (1, 2)}
    if header.get(2, 0) != 0:
        raise DamagedError("big-endian")
    shards = header.get(1, 1)
    if not 1 <= shards <= MOST_SHARDS:
        raise DamagedError(f"{shards} files of values")
    return shards


def _entry(view: memoryview, further: int | None) -> Entry | None:
    """A BundleEntryProto; None for a variable in slices, and for a type that is not read and not ``further``."""
    numbers: dict[int, int] = {}
    shape: tuple[int, ...] = ()
    for key, value in fields(view):
        if key in (1, 3, 4, 5):
            numbers[key] = number(value)
        elif key == 2:
            shape = read_shape(message(value))
        elif key == 7:
            return None
    kind = numbers.get(1, 0)
    if kind not in DTYPES and kind != further:
        return None
    return Entry(DTYPES.get(kind, ""), shape, numbers.get(3, 0), numbers.get(4, 0), numbers.get(5, 0))
