"""Reads GraphDefs: frozen graphs, and the saved models of TensorFlow 1 that hold one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnv2det.convert.graph import DamagedError, damage_located, printable, read_bounded
from mnv2det.convert.tensorflow.protobuf import fields, message, text
from mnv2det.convert.tensorflow.variables import Variables, read_tensor
from mnv2det.errors import WeightsError

LARGEST = 2**29  # bytes
MOST_NODES = 200_000
MOST_INPUTS = 10_000  # of one node


def read_graph(path: Path) -> Variables:
    """Reads the constants of a graph by the names of their nodes.

    Args:
        path: A frozen graph, or the ``saved_model.pb`` of a saved model.

    Raises:
        WeightsError: The file is missing, damaged or no graph.
    """
    data = read_bounded(path, LARGEST, kind="frozen graph")
    try:
        view = memoryview(data)
        kind, graph = "a frozen graph", view
        # a graph begins with a node, a saved model with the number of its version
        if data[:1] == b"\x08":
            kind, graph = "a saved model", _graph_of_saved_model(view)
        variables = _read_nodes(graph)
    except DamagedError as error:
        raise WeightsError(f"{path}: damaged, or no graph of TensorFlow's ({error})") from None
    variables.format, variables.source = kind, path.name
    variables.sha256 = hashlib.sha256(data).hexdigest()
    return variables


def _graph_of_saved_model(view: memoryview) -> memoryview:
    """The GraphDef of the first of a SavedModel's meta graphs."""
    for key, value in fields(view):
        if key == 2:
            for inner, graph in fields(message(value)):
                if inner == 2:
                    return message(graph)
    raise DamagedError("a saved model without a graph")


def _read_nodes(view: memoryview) -> Variables:
    arrays: dict[str, NDArray[np.generic]] = {}
    kinds: dict[str, str] = {}
    inputs: dict[str, list[str]] = {}
    for key, value in fields(view):
        if key != 1:
            continue
        if len(kinds) >= MOST_NODES:
            raise DamagedError(f"more than {MOST_NODES} nodes")
        name, kind, constant = "", "", None
        reads: list[str] = []
        for inner, part in fields(message(value)):
            if inner == 1:
                name = text(part)
            elif inner == 2:
                kind = text(part)
            elif inner == 3 and len(reads) < MOST_INPUTS:
                reads.append(text(part))
            elif inner == 5:
                constant = _constant(message(part)) or constant
        if not name.isprintable():
            raise DamagedError("a node whose name cannot be printed")
        if kind == "Const" and constant is not None:
            with damage_located(f"node '{printable(name)}'"):
                array = read_tensor(constant)
            if array is not None:
                arrays[name] = array
        kinds[name], inputs[name] = kind, reads
    if not kinds:
        raise DamagedError("no nodes")
    return Variables(arrays, "", "", "", kinds, inputs)


def _constant(view: memoryview) -> memoryview | None:
    """The tensor of an attribute ``value``; None for other attributes."""
    name, content = "", None
    for key, value in fields(view):
        if key == 1:
            name = text(value)
        elif key == 2:
            content = message(value)
    if name != "value" or content is None:
        return None
    return next((message(value) for key, value in fields(content) if key == 8), None)
