"""Matches a TFLite graph with MobileNetV2 and a classifier, as TensorFlow's slim and Keras export it."""

from __future__ import annotations

from typing import Any

import torch

from mnv2det.convert.graph import Graph
from mnv2det.convert.labels import default_names
from mnv2det.convert.matching import NORM_EPS, GraphMatcher, candidate_widths, first_match, weight_and_bias
from mnv2det.convert.network import ImportedNetwork
from mnv2det.convert.operators import GLOBAL_POOL, describe_linear
from mnv2det.models.mobilenet_v2 import MobileNetV2

CLASSES = 1001  # ImageNet's and a background: what is expected where the graph does not tell


def match_classifier(graph: Graph, where: str) -> ImportedNetwork:
    """Reads the backbone and head ``cls``.

    Args:
        graph: From `read_tflite`.
        where: Name of the file, for messages.

    Raises:
        MismatchError: The graph is another network; the message names the first operator that differs.
    """
    return first_match(candidate_widths(graph), lambda width: _match(graph, where, width))


def _match(graph: Graph, where: str, width: dict[str, Any]) -> ImportedNetwork:
    matcher = GraphMatcher(graph, where=where)
    arguments = {**width, "padding": "same", "norm_eps": NORM_EPS}
    with torch.device("meta"):  # only the shapes matter
        backbone = MobileNetV2(**arguments)
    tensors = matcher.match_backbone(backbone)
    matcher.match(GLOBAL_POOL)
    matcher.skip("RESHAPE", "SQUEEZE")
    inputs, outputs = backbone.features["last"].channels, matcher.output_channels(CLASSES)
    linear = matcher.match(describe_linear(inputs, outputs), f"FULLY_CONNECTED {inputs} to {outputs} channels, NONE")
    matcher.skip("RESHAPE", "SQUEEZE")
    matcher.skip("SOFTMAX")
    matcher.match_end()
    weight, bias = weight_and_bias(linear)
    tensors |= {"heads.cls.linear.weight": weight.flatten(1), "heads.cls.linear.bias": bias}
    return ImportedNetwork(tensors, arguments, "cls", "classifier", {}, default_names(outputs))
