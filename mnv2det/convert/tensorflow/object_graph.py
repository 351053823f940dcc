"""Reads which variable each value of a TensorFlow 2 checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mnv2det.convert.graph import DamagedError
from mnv2det.convert.tensorflow.protobuf import fields, message, text, varint
from mnv2det.convert.tensorflow.variables import LONGEST_NAME

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"  # the checkpoint's entry that holds the graph of objects
LARGEST = 2**24  # bytes of that graph
MOST_ATTRIBUTES = 200_000
CHECKSUM = 4  # bytes


def read_names(view: memoryview) -> dict[str, str]:
    """The names of variables by the keys under which a checkpoint stores their values.

    Args:
        view: A tensor with one text, the serialised TrackableObjectGraph.

    Raises:
        DamagedError: It is none.
    """
    length, position = varint(view, 0)
    graph = view[position + CHECKSUM :]
    if len(graph) != length or length > LARGEST:
        raise DamagedError(f"a graph of objects of {len(graph)} bytes, which states {length}")
    names: dict[str, str] = {}
    for number, node in fields(graph):
        if number != 1:
            continue
        for inner, attribute in fields(message(node)):
            if inner != 2:  # its children, or the optimizer's variables for it
                continue
            parts = {part: text(value) for part, value in fields(message(attribute)) if part in (2, 3)}
            name, key = parts.get(2, ""), parts.get(3, "")
            if len(name) > LONGEST_NAME or not name.isprintable() or len(names) >= MOST_ATTRIBUTES:
                raise DamagedError("a variable whose name cannot be printed, or too many of them")
            names[key] = name
    return names


def name_variables(
    arrays: Mapping[str, NDArray[np.generic]], names: Mapping[str, str]
) -> tuple[dict[str, NDArray[np.generic]], int]:
    """Gives values the names of their variables.

    Args:
        arrays: By their keys in the checkpoint.
        names: From `read_names`.

    Returns:
        The arrays by name, and how many were left out because others have the same name.
    """
    named: dict[str, NDArray[np.generic]] = {}
    ambiguous: dict[str, int] = {}
    for key, array in arrays.items():
        name = names.get(key, "")
        if not name:
            continue
        # what several objects track is stored several times
        if name in named and (named[name].shape != array.shape or named[name].tobytes() != array.tobytes()):
            ambiguous[name] = ambiguous.get(name, 1) + 1
        named.setdefault(name, array)
    for name in ambiguous:
        del named[name]
    return named, sum(ambiguous.values())
