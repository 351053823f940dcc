"""Follows a TFLite graph along Mobile DeepLabv3 as its authors released it: image pooling, no ASPP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mnv2det.convert.graph import Graph
from mnv2det.convert.matching import GLOBAL_POOL, Walk, convolution, nearest, weight_and_bias, widths
from mnv2det.models.deeplab import MobileDeepLab
from mnv2det.models.mobilenet_v2 import MobileNetV2

BACKBONE_EPS, HEAD_EPS = 1e-3, 1e-5  # folded away in the file, but the imported norms need one
STRIDES = (16, 8, 32)
CHANNELS = 256
NETWORK = "Mobile DeepLabv3"


def follow_deeplab(graph: Graph, where: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Reads backbone and head ``seg``.

    Args:
        graph: From `read_tflite`.
        where: Name of the file, for messages.

    Returns:
        Tensors, arguments of the backbone and arguments of the head.

    Raises:
        MismatchError: The graph is another network; names the first operator that differs.
    """
    candidates = [(width, stride) for width in widths(graph) for stride in STRIDES]
    return nearest(candidates, lambda candidate: _follow(graph, where, *candidate))


def _follow(
    graph: Graph, where: str, width: float, stride: int
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    walk = Walk(graph, where=where, network=NETWORK)
    arguments: dict[str, Any] = {"width": width, "output_stride": stride, "padding": "same", "norm_eps": BACKBONE_EPS}
    with torch.device("meta"):  # only its shapes matter
        backbone = MobileNetV2(**arguments)
        backbone.truncate(["block17"])
        # the classes are counted from the last convolution
        head = MobileDeepLab(backbone.features, classes=1, channels=CHANNELS, norm_eps=HEAD_EPS)
    tensors = walk.backbone(backbone)
    source = walk.current
    # the branches' operators come in either order
    step = walk.peek()
    if step is not None and step.what == GLOBAL_POOL:
        walk.take(GLOBAL_POOL)
        pooled, walk.current = walk.current, source
        tensors |= walk.layer(head.branches[0], "heads.seg.branches.0")  # type: ignore[arg-type]
        branch = walk.current
    else:
        tensors |= walk.layer(head.branches[0], "heads.seg.branches.0")  # type: ignore[arg-type]
        branch = walk.current
        walk.take(GLOBAL_POOL, reads=(source,))
        pooled = walk.current
    walk.current = pooled
    tensors |= walk.layer(head.pool, "heads.seg.pool")
    walk.take("RESIZE_BILINEAR")
    walk.take("CONCATENATION, NONE", reads=(walk.current, branch))
    tensors |= walk.layer(head.join, "heads.seg.join")
    step, ones = walk.peek(), (1, 1)
    classes = len(step.operator.weight) if step is not None and step.operator.weight is not None else 21
    last = walk.take(convolution("CONV_2D", ones, ones, ones, "", (CHANNELS, classes), "NONE"))
    tensors["heads.seg.classify.weight"], tensors["heads.seg.classify.bias"] = weight_and_bias(last)
    while (step := walk.peek()) is not None and step.what == "RESIZE_BILINEAR":
        if not step.operator.attributes["align_corners"]:
            raise walk.error(f"{step.operator.place} is RESIZE_BILINEAR without aligned corners")
        walk.take("RESIZE_BILINEAR")
    walk.skip("SOFTMAX")
    walk.skip("ARG_MAX")
    walk.end()
    return tensors, arguments, {"channels": CHANNELS, "norm_eps": HEAD_EPS}
