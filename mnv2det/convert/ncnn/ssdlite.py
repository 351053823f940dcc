"""Matches an ncnn graph with MobileNetV2 and SSDLite, laid out as Caffe's SSD does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mnv2det.convert.graph import Graph, Operator
from mnv2det.convert.labels import default_names
from mnv2det.convert.matching import NORM_EPS, GraphMatcher, candidate_widths, first_match, weight_and_bias
from mnv2det.convert.ncnn.layers import REST
from mnv2det.convert.network import ImportedNetwork, anchor_args
from mnv2det.convert.operators import describe_linear
from mnv2det.errors import WeightsError
from mnv2det.models.layers import ConvNorm, Padding
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.models.ssdlite import SSDLite
from mnv2det.ops.anchors import Shape
from mnv2det.ops.boxes import CENTER_SCALE, SIZE_SCALE
from mnv2det.structures import VOC_CLASSES

NETWORK = "MobileNetV2 SSDLite"
TAPS = ("block14.expand", "last")
# far above any detector of this family; they bound what a hostile file can cost
MAX_LEVELS, MAX_SHAPES, MAX_CLASSES = 16, 64, 10_000
MIN_NUMBER, MAX_NUMBER = 1e-3, 1e4  # of a side in pixels, a ratio or a variance
# of the published detector: what is expected where the graph does not tell
ANCHOR_COUNTS, EXTRAS, EXTRA = (3, 6, 6, 6, 6, 6), (512, 256, 256), 128


def match_ssdlite(graph: Graph, where: str) -> ImportedNetwork:
    """Reads the backbone and head ``det``.

    The file does not say in which order it takes the colours nor how it scales them. All releases take BGR, as Caffe
    does, and (pixel - 127.5) / 127.5; their stem is reordered to take RGB. NMS and the number of detections are the
    file's; its score threshold goes into the provenance.

    Args:
        graph: From `read_ncnn`.
        where: Name of the file, for messages.

    Raises:
        MismatchError: The graph is another network; the message names the first operator that differs.
    """
    symmetric = any(operator.attributes.get("padding") == "SYMMETRIC" for operator in graph.operators)
    paddings: tuple[Padding, ...] = ("same", "symmetric") if symmetric else ("same",)
    candidates = list(product(candidate_widths(graph), paddings))
    return first_match(candidates, lambda candidate: _match(graph, where, *candidate))


def _match(graph: Graph, where: str, width: dict[str, Any], padding: Padding) -> ImportedNetwork:
    matcher = GraphMatcher(graph, where=where, network=NETWORK)
    image = matcher.current
    with torch.device("meta"):  # only the shapes matter
        backbone = MobileNetV2(**width, padding=padding, norm_eps=NORM_EPS)
    tensors = matcher.match_backbone(backbone)
    tensors["backbone.stem.conv.weight"] = tensors["backbone.stem.conv.weight"].flip(1)
    counts, classes = _anchor_counts(graph), _class_count(graph)
    if len(counts) > MAX_LEVELS or not all(0 < n <= MAX_SHAPES for n in counts) or not 0 < classes < MAX_CLASSES:
        raise WeightsError(f"{matcher.error_prefix} anchors {counts[:20]} and {classes} classes")
    if len(counts) < len(TAPS):
        counts = list(ANCHOR_COUNTS)
    extras = _extra_channels(matcher, len(counts) - len(TAPS))
    with torch.device("meta"):
        head = SSDLite(
            backbone.features,
            classes=classes,
            extras=tuple(extras),
            padding=padding,
            norm_eps=NORM_EPS,
            anchors=tuple(((1.0, 1.0),) * count for count in counts),  # only their number matters
        )
    levels = [matcher.features[tap] for tap in TAPS]
    for number, extra in enumerate(head.extras):
        for index, layer in enumerate(extra.children()):
            assert isinstance(layer, ConvNorm)
            tensors |= matcher.match_layer(layer, f"heads.det.extras.{number}.{index}")
        levels.append(matcher.current)
    shapes, outputs = [], []
    for number, level in enumerate(levels):
        box, score = (f"heads.det.{branch}_predictors.{number}" for branch in ("box", "class"))
        tensors |= _match_predictor(matcher, head.box_predictors[number], box, level)
        codes = matcher.current
        tensors |= _match_predictor(matcher, head.class_predictors[number], score, level)
        logits = matcher.current
        prior = matcher.match("PriorBox", reads=(level, image))
        outputs.append((codes, logits, matcher.current))
        anchors, order, factors = _anchors(matcher, prior, graph.inputs[0].shape[1:3])
        shapes.append(anchors)
        for name in ("1.weight", "1.bias"):
            tensors[f"{box}.{name}"] = _reorder(tensors[f"{box}.{name}"], order, factors)
            tensors[f"{score}.{name}"] = _reorder(tensors[f"{score}.{name}"], order)
    decoding = _match_decoding(matcher, outputs, classes)
    # for showing, not for measuring: average precision counts recall below this threshold
    provenance = {"channels": "BGR, swapped in the stem", "score_threshold": decoding.pop("score_threshold")}
    return ImportedNetwork(
        tensors,
        {**width, "padding": padding, "norm_eps": NORM_EPS},
        "det",
        "ssdlite",
        {"extras": extras, "padding": padding, **anchor_args(shapes), "norm_eps": NORM_EPS, **decoding},
        default_names(classes, VOC_CLASSES),
        private_background=True,
        provenance=provenance,
    )


def _anchor_counts(graph: Graph) -> list[int]:
    """Anchors per cell of every level that has a ``PriorBox``."""
    counts = []
    for operator in graph.operators:
        if operator.kind == "PriorBox":
            prior = operator.attributes
            squares = 1 + (len(prior["max_sizes"]) > 0)
            counts.append(len(prior["min_sizes"]) * (squares + len(prior["ratios"]) * (1 + prior["flip"])))
    return counts


def _class_count(graph: Graph) -> int:
    """Number of classes, without the background; the published one where the file has no ``DetectionOutput``."""
    stated = (op.attributes["classes"] - 1 for op in graph.operators if op.kind == "DetectionOutput")
    return next(stated, len(VOC_CLASSES))


def _extra_channels(matcher: GraphMatcher, count: int) -> list[int]:
    """Output channels of the extra levels that come next, each of which ends in its third step."""
    published = [*EXTRAS, *[EXTRA] * count][:count]
    return [max(2, matcher.output_channels(default, ahead=3 * n + 2)) for n, default in enumerate(published)]


def _match_predictor(matcher: GraphMatcher, predictor: Any, name: str, level: int) -> dict[str, Tensor]:
    """Matches a depthwise layer and its 1x1 convolution, whose rows stay in the file's order."""
    matcher.current = level
    depthwise, linear = predictor
    tensors = matcher.match_layer(depthwise, f"{name}.0")
    operator = matcher.match(describe_linear(linear.in_channels, linear.out_channels))
    matcher.match("Permute order 3")  # to row, column, anchor, value: the order in which the head flattens
    matcher.match("Flatten")
    tensors[f"{name}.1.weight"], tensors[f"{name}.1.bias"] = weight_and_bias(operator)
    return tensors


def _anchors(matcher: GraphMatcher, prior: Operator, size: tuple[int, ...]) -> tuple[list[Shape], list[int], Tensor]:
    """What a ``PriorBox`` means for an input of ``size`` (H, W).

    Returns:
        The (scale, ratio) pairs in our order, with the squares of side sqrt(min_size * max_size) last; the position of
        each in the file's order; and factors (4,) that turn the file's box codes into ours.

    Raises:
        MismatchError: SSDLite has no such anchors.
    """
    attributes, cells, name = prior.attributes, prior.inputs[0].shape[1:3], prior.display_name
    min_sizes, max_sizes, ratios = attributes["min_sizes"], attributes["max_sizes"], attributes["ratios"]
    image = tuple(n if stated == REST else stated for n, stated in zip(size, attributes["image"], strict=True))
    span = tuple(n if step == REST else step * c for n, step, c in zip(size, attributes["step"], cells, strict=True))
    offset, clip = attributes["offset"], attributes["clip"]
    if offset != 0.5 or clip:
        raise matcher.mismatch(f"{name} has offset {offset:g}, clip {clip}, expected 0.5 and False")
    if image != size or max(abs(a - b) / b for a, b in zip(span, size, strict=True)) > 1e-5:
        raise matcher.mismatch(f"{name} spreads its anchors over {span} of {image}, expected {size}")
    numbers = (*min_sizes, *max_sizes, *ratios, *attributes["variances"])
    if min(numbers) < MIN_NUMBER or max(numbers) > MAX_NUMBER or len(max_sizes) not in (0, len(min_sizes)):
        raise matcher.mismatch(
            f"{name} has sizes {min_sizes}, {max_sizes} and ratios {ratios}, expected believable ones"
        )
    shapes, squares, side = [], [], min(size)
    for number, min_size in enumerate(min_sizes):
        scale = round(min_size / side, 8)
        shapes.append((scale, 1.0))
        if max_sizes:
            squares.append(len(shapes))
            shapes.append((round(math.sqrt(min_size * max_sizes[number]) / side, 8), 1.0))
        for ratio in ratios:
            shapes += [(scale, ratio), (scale, 1 / ratio)] if attributes["flip"] else [(scale, ratio)]
    order = [n for n in range(len(shapes)) if n not in squares] + squares
    ours = torch.tensor([CENTER_SCALE, CENTER_SCALE, SIZE_SCALE, SIZE_SCALE], dtype=torch.float64)
    return [shapes[n] for n in order], order, torch.tensor(attributes["variances"], dtype=torch.float64) * ours


def _reorder(rows: Tensor, order: list[int], factors: Tensor | None = None) -> Tensor:
    """Brings a predictor's rows, (anchor, value) along the first axis, into our order of anchors."""
    groups = rows.view(len(order), -1, *rows.shape[1:])[order]
    if factors is not None:
        groups = (groups * factors.view(-1, *[1] * (rows.dim() - 1))).float()
    return groups.flatten(0, 1)


def _match_decoding(matcher: GraphMatcher, outputs: Sequence[tuple[int, int, int]], classes: int) -> dict[str, Any]:
    """Matches what joins the levels and decodes boxes; returns the head's arguments for it."""
    joined = []
    for tensors, axis in zip(zip(*outputs, strict=True), (0, 0, 1), strict=True):  # box codes, logits, anchors
        matcher.match(f"CONCATENATION over {axis}", reads=tensors)
        joined.append(matcher.current)
    codes, matcher.current, anchors = joined
    matcher.skip(f"RESHAPE rows {classes + 1}")
    score = "sigmoid" if matcher.match("LOGISTIC", "SOFTMAX").kind == "LOGISTIC" else "softmax"
    matcher.skip("Flatten")
    output = matcher.match("DetectionOutput", reads=(codes, matcher.current, anchors))
    matcher.match_end()
    stated = output.attributes
    if not (0 <= stated["threshold"] < 1 and 0 < stated["nms_iou"] <= 1 and stated["keep"] > 0):
        raise matcher.mismatch(f"{output.display_name} has {stated}, expected a threshold, an IoU and a count to keep")
    return {
        "score": score,
        "score_threshold": stated["threshold"],
        "nms_iou": stated["nms_iou"],
        "max_detections": stated["keep"],
    }
