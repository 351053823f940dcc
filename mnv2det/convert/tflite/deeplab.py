"""Matches a TFLite graph with Mobile DeepLabv3 as its authors released it: image pooling, no ASPP."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mnv2det.convert.graph import Graph
from mnv2det.convert.labels import default_names
from mnv2det.convert.matching import NORM_EPS, GraphMatcher, candidate_widths, first_match, weight_and_bias
from mnv2det.convert.network import ImportedNetwork
from mnv2det.convert.operators import GLOBAL_POOL, describe_linear
from mnv2det.models.deeplab import MobileDeepLab
from mnv2det.models.layers import ConvNorm
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.structures import VOC_MASK_CLASSES, Fit

HEAD_EPS = 1e-5  # of the head's norms in the authors' code; the backbone's have `NORM_EPS`
OUTPUT_STRIDES = (16, 8, 32)
CHANNELS = 256
PUBLISHED_SIZE = (513, 513)
RESIZE = "RESIZE_BILINEAR"


def match_deeplab(graph: Graph, where: str) -> ImportedNetwork:
    """Reads the backbone and head ``seg``.

    Args:
        graph: From `read_tflite`.
        where: Name of the file, for messages.

    Raises:
        MismatchError: The graph is another network; the message names the first operator that differs.
    """
    candidates = list(product(candidate_widths(graph, (8, 1)), OUTPUT_STRIDES))
    return first_match(candidates, lambda candidate: _match(graph, where, *candidate))


def _match(graph: Graph, where: str, width: dict[str, Any], stride: int) -> ImportedNetwork:
    matcher = GraphMatcher(graph, where=where, network="Mobile DeepLabv3")
    arguments: dict[str, Any] = {**width, "output_stride": stride, "padding": "same", "norm_eps": NORM_EPS}
    with torch.device("meta"):  # only the shapes matter
        backbone = MobileNetV2(**arguments)
        backbone.truncate(["block17"])
        # the number of classes follows from the last convolution
        head = MobileDeepLab(backbone.features, classes=1, channels=CHANNELS, norm_eps=HEAD_EPS)
    (projection,) = head.branches
    assert isinstance(projection, ConvNorm)
    tensors = matcher.match_backbone(backbone)
    pooled, projected = _match_branches(matcher, head.pool, projection, tensors)
    matcher.match("CONCATENATION, NONE", reads=(pooled, projected))
    tensors |= matcher.match_layer(head.join, "heads.seg.join")
    classes = matcher.output_channels(len(VOC_MASK_CLASSES))
    classify = matcher.match(describe_linear(CHANNELS, classes))
    tensors["heads.seg.classify.weight"], tensors["heads.seg.classify.bias"] = weight_and_bias(classify)
    while (step := matcher.next_step) is not None and step.description == RESIZE:
        if not step.operator.attributes["align_corners"]:
            raise matcher.mismatch(f"{step.operator.display_name} is RESIZE_BILINEAR without aligned corners")
        matcher.match(RESIZE)
    matcher.skip("SOFTMAX")
    matcher.skip("ARG_MAX")
    matcher.match_end()
    names = default_names(classes, VOC_MASK_CLASSES)
    head_args = {"channels": CHANNELS, "norm_eps": HEAD_EPS}
    # the authors measure with pictures filled up to this size; smaller networks are for apps, which stretch theirs
    published = width == {"width": 1.0} and graph.inputs[0].shape[1:3] == PUBLISHED_SIZE
    fit: Fit = "pad" if published else "stretch"
    return ImportedNetwork(tensors, arguments, "seg", "mobile_deeplab", head_args, names, fit=fit)


def _match_branches(
    matcher: GraphMatcher, pool: ConvNorm, projection: ConvNorm, tensors: dict[str, Tensor]
) -> tuple[int, int]:
    """Matches the image pooling and the projection, which files have one after the other or one within the other.

    Returns:
        The tensors that they end with.
    """
    branches: list[list[Callable[[], object]]] = [
        [
            lambda: matcher.match(GLOBAL_POOL),
            lambda: tensors.update(matcher.match_layer(pool, "heads.seg.pool")),
            lambda: matcher.match(RESIZE),
        ],
        [lambda: tensors.update(matcher.match_layer(projection, "heads.seg.branches.0"))],
    ]
    ends = [matcher.current] * 2
    while any(branches):
        step = matcher.next_step
        # both begin at the same tensor; the pooling is told by what it is
        first = step is not None and (step.description == GLOBAL_POOL or step.reads != (ends[1],))
        number = 0 if branches[0] and (first or not branches[1]) else 1
        matcher.current = ends[number]
        (branches[number] or branches[1 - number]).pop(0)()
        ends[number] = matcher.current
    return ends[0], ends[1]
