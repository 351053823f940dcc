"""A foreign network in our terms: what a mapper returns, and how it becomes the contents of a weight file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import Tensor

from mnv2det.convert.graph import Graph, TensorInfo
from mnv2det.convert.labels import read_labels
from mnv2det.convert.matching import first_match
from mnv2det.errors import WeightsError
from mnv2det.models.weight_file import Header
from mnv2det.ops.anchors import Shape, level_shapes
from mnv2det.structures import Fit, Preprocess, Sampling

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class ImportedNetwork:
    """A backbone with one head, as a mapper found it in a foreign graph.

    Attributes:
        tensors: By their names in a weight file.
        backbone: Arguments of the backbone.
        task: Name of the task, which the tensors' names contain.
        head: Registered name of the head.
        head_args: Arguments of the head.
        classes: Class names for want of a label file.
        private_background: Whether the head has a background that is none of these classes.
        fit: How pictures come to the input's size.
        sampling: Which place of a picture a pixel of the resized one shows, see `Preprocess`.
        provenance: What else should be known of the weights.
        backbone_name: Registered name of the backbone.
        size: (H, W) of the input, where the kind of network says it and not the file.
        mean: Of the input, see `Preprocess`; by default that of all of TensorFlow's releases, x / 127.5 - 1.
        std: Likewise.
    """

    tensors: dict[str, Tensor]
    backbone: dict[str, Any]
    task: str
    head: str
    head_args: dict[str, Any]
    classes: list[str]
    private_background: bool = False
    fit: Fit = "stretch"
    sampling: Sampling = "centers"
    provenance: dict[str, Any] = field(default_factory=dict)
    backbone_name: str = "mobilenet_v2"
    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF


Mapper = Callable[[Graph, str], ImportedNetwork]


def convert_graph(
    graph: Graph,
    mappers: Sequence[Mapper],
    *,
    where: str,
    network: str,
    labels: str | os.PathLike[str] | None = None,
) -> tuple[dict[str, Tensor], Header]:
    """Converts a graph by the first mapper that matches it.

    Args:
        graph: From a reader.
        mappers: Functions of a graph and the name of its file, one per kind of network.
        where: Name of the file, for messages.
        network: What the graph should be, for messages.
        labels: Text file of class names, see `read_labels`; by default the mapper names the classes.

    Returns:
        Tensors of the backbone and the head, and the header. It says that the weights are not trainable, since batch
        norm was folded into the convolutions (see `reestimate`).

    Raises:
        WeightsError: It is another network; the message names the first operator that differs.
    """
    size = _input_size(graph, where, network)
    imported = first_match(mappers, lambda mapper: mapper(graph, where))
    classes = imported.classes
    if labels is not None:
        classes = read_labels(labels, len(classes), private_background=imported.private_background)
    return imported.tensors, make_header(
        imported, classes, size, source=graph.source, sha256=graph.sha256, parts=graph.parts, trainable=False
    )


def make_header(
    imported: ImportedNetwork,
    classes: list[str],
    size: tuple[int, int],
    *,
    source: str,
    sha256: str,
    parts: Mapping[str, str],
    trainable: bool,
) -> Header:
    """The header of imported weights.

    Args:
        imported: From a mapper.
        classes: Class names.
        size: (H, W) of the input.
        source: Name of the file.
        sha256: Its checksum.
        parts: Further files, with theirs.
        trainable: Whether batch norm is as it was trained.
    """
    return Header(
        backbone={"name": imported.backbone_name, "args": imported.backbone},
        heads={imported.task: {"name": imported.head, "args": imported.head_args}},
        classes={imported.task: classes},
        preprocess=Preprocess(size, imported.mean, imported.std, imported.fit, imported.sampling),
        trainable=trainable,
        provenance={
            "source": source,
            "sha256": sha256,
            **({"parts": dict(parts)} if parts else {}),
            **imported.provenance,
        },
    )


def _input_size(graph: Graph, where: str, network: str) -> tuple[int, int]:
    """(H, W) of the graph's input, which must be an RGB or BGR picture from -1 to 1."""
    info = graph.inputs[0] if graph.inputs else None
    if info is None or len(info.shape) != 4 or info.shape[3] != 3 or not all(32 <= n <= 1024 for n in info.shape[1:3]):
        actual = "none" if info is None else list(info.shape)
        raise WeightsError(
            f"{where}: {graph.format}, but not a {network}: its input is {actual}, expected [1, height, width, 3]"
        )
    low, high = _input_range(info)
    if not (abs(low + 1) < 0.02 and abs(high - 1) < 0.02):  # also true of a NaN
        raise WeightsError(f"{where}: its input ranges from {low:.3g} to {high:.3g}, expected -1 to 1")
    return info.shape[1], info.shape[2]


def _input_range(info: TensorInfo) -> tuple[float, float]:
    """Smallest and largest value that a quantised input can have; a float input does not say."""
    if info.scale is None or info.zero_point is None or info.kind not in ("UINT8", "INT8"):
        return -1.0, 1.0
    lowest, scale, zero = 0 if info.kind == "UINT8" else -128, float(info.scale[0]), int(info.zero_point[0])
    return (lowest - zero) * scale, (lowest + 255 - zero) * scale


def anchor_args(levels: Sequence[list[Shape]]) -> dict[str, Any]:
    """The head's arguments for these anchors: evenly spaced scales if they make them, else a list of all."""
    even: dict[str, Any] = {
        "min_scale": levels[0][0][0],
        "max_scale": levels[-1][0][0],
        "ratios": [ratio for _, ratio in levels[-1][:-1]],
        "lowest": [list(shape) for shape in levels[0]],
    }
    spaced = level_shapes(len(levels), **even)
    if even["ratios"] and even["min_scale"] <= even["max_scale"] and list(map(len, levels)) == list(map(len, spaced)):
        numbers, wanted = ([*chain(*chain(*shapes))] for shapes in (levels, spaced))
        if all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(numbers, wanted, strict=True)):
            return even
    return {"anchors": [[list(shape) for shape in level] for level in levels]}
