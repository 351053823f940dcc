"""Matches a TFLite graph with Mobile DeepLabv3 as its authors released it: image pooling, no ASPP."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from mnv2det.convert.graph import Graph
from mnv2det.convert.labels import default_names
from mnv2det.convert.matching import NORM_EPS, GraphMatcher, candidate_widths, first_match, weight_and_bias
from mnv2det.convert.network import ImportedNetwork
from mnv2det.convert.operators import GLOBAL_POOL, describe_linear
from mnv2det.models.deeplab import MobileDeepLab
from mnv2det.models.layers import ConvNorm
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.structures import VOC_MASK_CLASSES

HEAD_EPS = 1e-5  # of the head's norms in the authors' code; the backbone's have `NORM_EPS`
OUTPUT_STRIDES = (16, 8, 32)
CHANNELS = 256


def match_deeplab(graph: Graph, where: str) -> ImportedNetwork:
    """Reads the backbone and head ``seg``.

    Args:
        graph: From `read_tflite`.
        where: Name of the file, for messages.

    Raises:
        MismatchError: The graph is another network; the message names the first operator that differs.
    """
    candidates = list(product(candidate_widths(graph), OUTPUT_STRIDES))
    return first_match(candidates, lambda candidate: _match(graph, where, *candidate))


def _match(graph: Graph, where: str, width: float, stride: int) -> ImportedNetwork:
    matcher = GraphMatcher(graph, where=where, network="Mobile DeepLabv3")
    arguments: dict[str, Any] = {"width": width, "output_stride": stride, "padding": "same", "norm_eps": NORM_EPS}
    with torch.device("meta"):  # only the shapes matter
        backbone = MobileNetV2(**arguments)
        backbone.truncate(["block17"])
        # the number of classes follows from the last convolution
        head = MobileDeepLab(backbone.features, classes=1, channels=CHANNELS, norm_eps=HEAD_EPS)
    (projection,) = head.branches
    assert isinstance(projection, ConvNorm)
    tensors = matcher.match_backbone(backbone)
    feature, step = matcher.current, matcher.next_step
    # files have the image pooling before the projection or behind it
    pooling_first = step is not None and step.description == GLOBAL_POOL
    for pooling in (pooling_first, not pooling_first):
        matcher.current = feature
        if pooling:
            matcher.match(GLOBAL_POOL)
            pooled = matcher.current
        else:
            tensors |= matcher.match_layer(projection, "heads.seg.branches.0")
            projected = matcher.current
    matcher.current = pooled
    tensors |= matcher.match_layer(head.pool, "heads.seg.pool")
    matcher.match("RESIZE_BILINEAR")
    matcher.match("CONCATENATION, NONE", reads=(matcher.current, projected))
    tensors |= matcher.match_layer(head.join, "heads.seg.join")
    classes = matcher.output_channels(len(VOC_MASK_CLASSES))
    classify = matcher.match(describe_linear(CHANNELS, classes))
    tensors["heads.seg.classify.weight"], tensors["heads.seg.classify.bias"] = weight_and_bias(classify)
    while (step := matcher.next_step) is not None and step.description == "RESIZE_BILINEAR":
        if not step.operator.attributes["align_corners"]:
            raise matcher.mismatch(f"{step.operator.display_name} is RESIZE_BILINEAR without aligned corners")
        matcher.match("RESIZE_BILINEAR")
    matcher.skip("SOFTMAX")
    matcher.skip("ARG_MAX")
    matcher.match_end()
    names = default_names(classes, VOC_MASK_CLASSES)
    head_args = {"channels": CHANNELS, "norm_eps": HEAD_EPS}
    return ImportedNetwork(tensors, arguments, "seg", "mobile_deeplab", head_args, names, fit="pad")
