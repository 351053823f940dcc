"""Imports SSDLite-MobileNetV2 detectors: ncnn files of any width, as Caffe's SSD lays them out."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnv2det.convert.graph import Graph, Operator
from mnv2det.convert.labels import BACKGROUND, read_labels
from mnv2det.convert.matching import Walk, convolution, nearest, weight_and_bias, widths
from mnv2det.convert.ncnn.layers import REST
from mnv2det.convert.ncnn.reader import read_ncnn
from mnv2det.convert.tflite.classifier import NORM_EPS
from mnv2det.errors import WeightsError
from mnv2det.models.layers import Padding
from mnv2det.models.mobilenet_v2 import MobileNetV2, width_of
from mnv2det.models.ssdlite import SSDLite
from mnv2det.models.weight_file import Header
from mnv2det.ops.anchors import Shape, level_shapes
from mnv2det.ops.boxes import CENTER_SCALE, SIZE_SCALE
from mnv2det.structures import VOC_CLASSES, Preprocess

TAPS = ("block14.expand", "last")
PADDINGS: tuple[Padding, ...] = ("same", "symmetric")
# far above any detector of this family; they bound what a hostile file can cost
MAX_LEVELS, MAX_SHAPES, MAX_CLASSES = 16, 64, 10_000
LEAST, GREATEST = 1e-3, 1e4  # side in pixels, ratio or variance


def convert_ncnn(
    path: str | os.PathLike[str], *, labels: str | os.PathLike[str] | None = None
) -> tuple[dict[str, Tensor], Header]:
    """Reads a detector, float32, float16 or int8.

    The file does not say in which order it takes the colours nor how it scales them: all releases
    take BGR, as Caffe does, and (pixel - 127.5) / 127.5. Their stem is turned round to take RGB.
    NMS and the number of detections are the file's; its score threshold goes into the provenance.

    Args:
        path: The ``.param`` or the ``.bin``; the other lies beside it.
        labels: Text file with one class name per line, with or without a first ``background``. By
            default 20 classes are PASCAL VOC's in alphabetical order, others get numbers.

    Returns:
        Tensors of the backbone and of head ``det``, and the header, not trainable: batch norm was
        folded into the convolutions (see `reestimate`).

    Raises:
        WeightsError: A file is damaged, or another network; names the first operator that differs.
    """
    graph, where = read_ncnn(path), str(path)
    preprocess = _preprocess(graph, where)
    symmetric = any(operator.attributes.get("padding") == "SYMMETRIC" for operator in graph.operators)
    candidates = [(width, padding) for width in widths(graph) for padding in (PADDINGS if symmetric else PADDINGS[:1])]
    tensors, arguments, count = nearest(candidates, lambda candidate: _follow(graph, where, *candidate))
    threshold = arguments.pop("score_threshold")
    tensors["backbone.stem.conv.weight"] = tensors["backbone.stem.conv.weight"].flip(1)
    rows = [len(tensors[f"backbone.blocks.{n}.project.norm.bias"]) for n in range(17)]
    width = width_of(len(tensors["backbone.stem.norm.bias"]), rows, where=where)
    names = list(VOC_CLASSES) if count == len(VOC_CLASSES) else [str(n) for n in range(count)]
    header = Header(
        backbone={
            "name": "mobilenet_v2",
            "args": {"width": width, "padding": arguments["padding"], "norm_eps": NORM_EPS},
        },
        heads={"det": {"name": "ssdlite", "args": arguments}},
        classes={"det": names if labels is None else _read_labels(labels, count)},
        preprocess=preprocess,
        trainable=False,
        provenance={
            "source": Path(path).with_suffix(".param").name,
            "sha256": graph.sha256,
            "parts": graph.parts,
            "channels": "BGR, swapped in the stem",
            # for showing, not for measuring: below it lies recall that average precision counts
            "score_threshold": threshold,
        },
    )
    return tensors, header


def _follow(graph: Graph, where: str, width: float, padding: Padding) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """Tensors, arguments of the head, and the number of classes; the stem still takes the file's channels.

    Raises:
        MismatchError: The graph is another network.
    """
    walk = Walk(graph, where=where, network="MobileNetV2 SSDLite")
    image = walk.current
    with torch.device("meta"):  # only its shapes matter
        backbone = MobileNetV2(width=width, padding=padding, norm_eps=NORM_EPS)
    tensors = walk.backbone(backbone)
    counts, classes = _counts(graph, where)
    extras = _extras(walk, len(counts) - len(TAPS))
    with torch.device("meta"):
        head = SSDLite(
            backbone.features,
            classes=classes,
            extras=tuple(extras),
            padding=padding,
            norm_eps=NORM_EPS,
            anchors=tuple(((1.0, 1.0),) * count for count in counts),  # only how many
        )
    levels = [walk.taps[tap] for tap in TAPS]
    for number, extra in enumerate(head.extras):
        tensors |= _layers(walk, extra, f"heads.det.extras.{number}")
        levels.append(walk.current)
    shapes, ends = [], []
    for number, level in enumerate(levels):
        box, score = (f"heads.det.{branch}_predictors.{number}" for branch in ("box", "class"))
        tensors |= _predictor(walk, head.box_predictors[number], box, level)
        boxes = walk.current
        tensors |= _predictor(walk, head.class_predictors[number], score, level)
        scores = walk.current
        prior = walk.take("PriorBox", reads=(level, image))
        ends.append((boxes, scores, walk.current))
        anchors, order, factors = _anchors(walk, prior, graph.inputs[0].shape[1:3])
        shapes.append(anchors)
        for part in ("1.weight", "1.bias"):
            tensors[f"{box}.{part}"] = _arrange(tensors[f"{box}.{part}"], order, factors)
            tensors[f"{score}.{part}"] = _arrange(tensors[f"{score}.{part}"], order)
    scoring = _end(walk, ends, classes)
    spacing = _spacing(shapes)
    return tensors, {"extras": extras, "padding": padding, **spacing, "norm_eps": NORM_EPS, **scoring}, classes


def _counts(graph: Graph, where: str) -> tuple[list[int], int]:
    """Anchors per place of every level, and the number of classes; the published ones where the file has none."""
    counts = []
    for operator in graph.operators:
        if operator.kind == "PriorBox":
            known = operator.attributes
            squares = 1 + (len(known["greatest"]) > 0)
            counts.append(len(known["least"]) * (squares + len(known["ratios"]) * (1 + known["flip"])))
    outputs = [op.attributes["classes"] - 1 for op in graph.operators if op.kind == "DetectionOutput"]
    classes = outputs[0] if outputs else len(VOC_CLASSES)
    if (
        len(counts) > MAX_LEVELS
        or not all(0 < count <= MAX_SHAPES for count in counts)
        or not 0 < classes < MAX_CLASSES
    ):
        raise WeightsError(f"{where}: not a MobileNetV2 SSDLite: anchors {counts[:20]} and {classes} classes")
    return (counts if len(counts) >= len(TAPS) else [3, 6, 6, 6, 6, 6]), classes


def _extras(walk: Walk, count: int) -> list[int]:
    """Output channels of the extra levels that come next; the published ones where something else does."""
    found = [512, 256, 256, *[128] * count][:count]
    for number in range(count):
        at = walk.position + 3 * number + 2
        weight = walk.steps[at].operator.weight if at < len(walk.steps) else None
        found[number] = found[number] if weight is None else max(2, len(weight))
    return found


def _layers(walk: Walk, modules: Any, name: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for number, layer in enumerate(modules):
        tensors |= walk.layer(layer, f"{name}.{number}")
    return tensors


def _predictor(walk: Walk, module: Any, name: str, level: int) -> dict[str, Tensor]:
    """Passes a depthwise layer and its 1x1; rows of the latter stay in the file's order."""
    walk.current = level
    block, last = module
    tensors, ones = walk.layer(block, f"{name}.0"), (1, 1)
    channels = (last.in_channels, last.out_channels)
    operator = walk.take(convolution("CONV_2D", ones, ones, ones, "", channels, "NONE"))
    walk.take("Permute order 3")  # to row, column, anchor, value: the order in which the head flattens
    walk.take("Flatten")
    tensors[f"{name}.1.weight"], tensors[f"{name}.1.bias"] = weight_and_bias(operator)
    return tensors


def _anchors(walk: Walk, prior: Operator, size: tuple[int, ...]) -> tuple[list[Shape], list[int], Tensor]:
    """What a ``PriorBox`` stands for on an input of ``size`` (H, W).

    Returns:
        Its (scale, ratio) pairs in our order, with the squares of side sqrt(least * greatest) last;
        the place of each in the file's; and factors (4,) that turn the file's box code into ours.

    Raises:
        MismatchError: SSDLite has no such anchors.
    """
    known, cells = prior.attributes, prior.inputs[0].shape[1:3]
    least, greatest, ratios = known["least"], known["greatest"], known["ratios"]
    image = tuple(n if given == REST else given for n, given in zip(size, known["image"], strict=True))
    span = tuple(n if step == REST else step * c for n, step, c in zip(size, known["step"], cells, strict=True))
    if known["offset"] != 0.5 or known["clip"]:
        raise walk.error(f"{prior.place} has offset {known['offset']:g}, clip {known['clip']}, expected 0.5 and False")
    if image != size or max(abs(a - b) / b for a, b in zip(span, size, strict=True)) > 1e-5:
        raise walk.error(f"{prior.place} spreads its anchors over {span} of {image}, expected {size}")
    numbers = (*least, *greatest, *ratios, *known["variances"])
    if min(numbers) < LEAST or max(numbers) > GREATEST or len(greatest) not in (0, len(least)):
        raise walk.error(f"{prior.place} has sizes {least}, {greatest} and ratios {ratios}, expected believable ones")
    shapes, squares, side = [], [], min(size)
    for number, low in enumerate(least):
        scale = round(low / side, 8)
        shapes.append((scale, 1.0))
        if greatest:
            squares.append(len(shapes))
            shapes.append((round(math.sqrt(low * greatest[number]) / side, 8), 1.0))
        for ratio in ratios:
            shapes += [(scale, ratio), (scale, 1 / ratio)] if known["flip"] else [(scale, ratio)]
    order = [n for n in range(len(shapes)) if n not in squares] + squares
    ours = torch.tensor([CENTER_SCALE, CENTER_SCALE, SIZE_SCALE, SIZE_SCALE], dtype=torch.float64)
    return [shapes[n] for n in order], order, torch.tensor(known["variances"], dtype=torch.float64) * ours


def _arrange(rows: Tensor, order: list[int], factors: Tensor | None = None) -> Tensor:
    """A predictor's rows, (anchor, value) along the first axis, in our order of anchors."""
    groups = rows.view(len(order), -1, *rows.shape[1:])[order]
    if factors is not None:
        groups = (groups * factors.view(-1, *[1] * (rows.dim() - 1))).float()
    return groups.flatten(0, 1)


def _spacing(levels: Sequence[list[Shape]]) -> dict[str, Any]:
    """The head's arguments for these anchors: evenly spaced scales where that gives them, else every one."""
    even: dict[str, Any] = {
        "min_scale": levels[0][0][0],
        "max_scale": levels[-1][0][0],
        "ratios": [ratio for _, ratio in levels[-1][:-1]],
        "lowest": [list(shape) for shape in levels[0]],
    }
    made = level_shapes(len(levels), **even)
    alike = [len(level) for level in levels] == [len(level) for level in made]
    if alike and even["ratios"] and even["min_scale"] <= even["max_scale"]:
        pairs = zip(itertools.chain(*levels), itertools.chain(*made), strict=True)
        if all(math.isclose(a, b, rel_tol=1e-6) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)):
            return even
    return {"anchors": [[list(shape) for shape in level] for level in levels]}


def _end(walk: Walk, ends: Sequence[tuple[int, int, int]], classes: int) -> dict[str, Any]:
    """Passes what joins the levels; the head's arguments for it."""
    boxes, scores, priors = zip(*ends, strict=True)
    joined = []
    for branch, axis in ((boxes, 0), (scores, 0), (priors, 1)):
        walk.take(f"CONCATENATION over {axis}", reads=branch)
        joined.append(walk.current)
    walk.current = joined[1]
    walk.skip(f"RESHAPE rows {classes + 1}")
    score = "sigmoid" if walk.take("LOGISTIC", "SOFTMAX").kind == "LOGISTIC" else "softmax"
    walk.skip("Flatten")
    output = walk.take("DetectionOutput", reads=(joined[0], walk.current, joined[2]))
    walk.end()
    known = output.attributes
    if not (0 <= known["threshold"] < 1 and 0 < known["nms_iou"] <= 1 and known["keep"] > 0):
        raise walk.error(f"{output.place} has {known}, expected a threshold, an IoU and a count to keep")
    return {
        "score": score,
        "score_threshold": known["threshold"],
        "nms_iou": known["nms_iou"],
        "max_detections": known["keep"],
    }


def _read_labels(path: str | os.PathLike[str], classes: int) -> list[str]:
    """Class names without ``background``."""
    names = read_labels(path, classes + 1)
    if names[0] != BACKGROUND:
        raise WeightsError(f"{path}: {len(names)} class names, but the network has {classes} classes")
    return names[1:]


def _preprocess(graph: Graph, where: str) -> Preprocess:
    shape = graph.inputs[0].shape if graph.inputs else ()
    if len(shape) != 4 or shape[3] != 3 or not all(32 <= n <= 1024 for n in shape[1:3]):
        raise WeightsError(
            f"{where}: not a MobileNetV2 SSDLite: its input is {list(shape)}, expected [1, height, width, 3]"
        )
    return Preprocess((shape[1], shape[2]), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
