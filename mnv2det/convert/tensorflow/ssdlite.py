"""SSD and SSDLite detectors of TensorFlow's Object Detection API, on MobileNetV2 and MobileNetV1."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnv2det.convert.labels import default_names
from mnv2det.convert.network import ImportedNetwork, anchor_args
from mnv2det.convert.tensorflow.anchors import anchors_of_boxes, default_anchors
from mnv2det.convert.tensorflow.named import NORM_EPS, NamedLayers
from mnv2det.convert.tensorflow.pipeline import NAME
from mnv2det.convert.tensorflow.variables import Variables
from mnv2det.errors import WeightsError
from mnv2det.models.layers import Conv, ConvNorm
from mnv2det.models.ssdlite import SSDLite
from mnv2det.ops.anchors import Shape

# a backbone's scope, and what the names of the levels behind it begin with
SCOPES = {"FeatureExtractor/MobilenetV2": "layer_19", "FeatureExtractor/MobilenetV1": "Conv2d_13_pointwise"}
TAPS = {"mobilenet_v2": ["block14.expand/16", "last/32"], "mobilenet_v1": ["block11/16", "last/32"]}
MOST_LEVELS = 20
GENERATOR = "MultipleGridAnchorGenerator"
SUPPRESSION = re.compile(r"Postprocessor/.*/(iou_threshold|score_threshold)")
# the box code of the API is y, x, height, width; ours x, y, width, height
CODE_ORDER = [1, 0, 3, 2]


def map_ssdlite(variables: Variables, where: str) -> ImportedNetwork:
    """Takes the backbone and head ``det``.

    Args:
        variables: From a reader.
        where: Name of the file, for messages.

    Raises:
        WeightsError: It is another network; the message names the first layer that differs.
    """
    layers = NamedLayers(variables, where=where, network="MobileNet SSD")
    scope = next(scope for scope in SCOPES if layers.names(rf"{scope}/.*"))
    backbone, backbone_args, name = layers.take_backbone(scope)
    beginning = f"{scope}/{SCOPES[scope]}"
    pattern = rf"{beginning}_2_Conv2d_(\d{{1,6}})_3x3_s2_(\d{{1,6}})/weights"
    extras = sorted((int(match[1]), int(match[2])) for match in layers.names(pattern))
    levels = 2 + len(extras)
    lite = bool(layers.names(r"BoxPredictor_0/BoxEncodingPredictor_depthwise/.*"))
    if levels > MOST_LEVELS:
        raise WeightsError(f"{layers.error_prefix} {levels} levels")
    counts, classes = _counts(layers, levels)
    shapes, stated = _anchors(variables, counts)
    scopes = [_extra(beginning, *extra) for extra in extras]
    args: dict[str, Any] = {"taps": TAPS[name], "extras": [max(2, layers.outputs(f"{w}/weights")) for _, w in scopes]}
    args |= {"padding": "same", "norm_eps": NORM_EPS, **anchor_args(shapes), "score": _score(variables)}
    if not lite:
        args |= {"lite": False, "predictor_kernel": layers.kernel("BoxPredictor_0/BoxEncodingPredictor/weights")}
    with torch.device("meta"):  # only the shapes matter
        head = SSDLite(backbone.features, classes=classes, **args)
    for number, ((narrow, wide), level) in enumerate(zip(scopes, head.extras, strict=True)):
        theirs = (narrow, f"{wide}_depthwise", wide) if lite else (narrow, wide)
        for index, (layer, their_scope) in enumerate(zip(level.children(), theirs, strict=True)):
            assert isinstance(layer, ConvNorm)
            layers.take_layer(layer, f"heads.det.extras.{number}.{index}", their_scope)
    for number in range(levels):
        for branch, kind in (("box", "BoxEncodingPredictor"), ("class", "ClassPredictor")):
            linear: nn.Module = getattr(head, f"{branch}_predictors")[number]
            ours, theirs_scope = f"heads.det.{branch}_predictors.{number}", f"BoxPredictor_{number}/{kind}"
            if isinstance(linear, nn.Sequential):
                depthwise, linear = linear
                assert isinstance(depthwise, ConvNorm)
                layers.take_layer(depthwise, f"{ours}.0", f"{theirs_scope}_depthwise")
                ours += ".1"
            assert isinstance(linear, Conv)
            layers.take_linear(linear, ours, theirs_scope)
            if branch == "box":
                for key in (f"{ours}.weight", f"{ours}.bias"):
                    layers.tensors[key] = _reorder(layers.tensors[key])
    layers.check_all_taken([scope, *(f"BoxPredictor_{number}" for number in range(levels + 1))])
    provenance = {} if stated else {"anchors": "the Object Detection API's defaults; the file does not state them"}
    return ImportedNetwork(
        layers.tensors,
        backbone_args,
        "det",
        "ssdlite",
        {**args, **_suppression(variables), "clip_after_nms": True},
        default_names(classes),
        private_background=True,
        sampling="corners",  # TensorFlow 1's ResizeBilinear
        provenance=provenance,
        backbone_name=name,
    )


def _extra(beginning: str, number: int, channels: int) -> tuple[str, str]:
    """The scopes of an extra level: its 1x1 convolution, and its 3x3 of stride 2."""
    return f"{beginning}_1_Conv2d_{number}_1x1_{channels // 2}", f"{beginning}_2_Conv2d_{number}_3x3_s2_{channels}"


def _counts(layers: NamedLayers, levels: int) -> tuple[list[int], int]:
    """Anchors per cell of every level, and the number of classes without the background."""
    counts, classes = [], 0
    for number in range(levels):
        codes = layers.outputs(f"BoxPredictor_{number}/BoxEncodingPredictor/weights")
        logits = layers.outputs(f"BoxPredictor_{number}/ClassPredictor/weights")
        if codes < 4 or codes % 4 or logits % (codes // 4):
            raise WeightsError(
                f"{layers.error_prefix} BoxPredictor_{number} has {codes} box codes and {logits} logits of a cell"
            )
        counts.append(codes // 4)
        classes = logits * 4 // codes - 1
    if classes < 1:
        raise WeightsError(f"{layers.error_prefix} no class but the background")
    return counts, classes


def _anchors(variables: Variables, counts: list[int]) -> tuple[list[list[Shape]], bool]:
    """The (scale, ratio) pairs of every level, and whether the file or the configuration beside it states them.

    A graph holds both lists for each level, as its anchor generator computed them, or the boxes made from them.
    """
    ratios: list[NDArray[np.generic]] = []
    scales: list[NDArray[np.generic]] = []
    for name, array in variables.arrays.items():
        if not name.startswith(f"{GENERATOR}/") or array.dtype.kind != "f" or array.ndim != 1:
            continue
        if name.partition("/")[2].startswith("Sqrt"):
            ratios.append(array)
        elif len(scales) < len(ratios) and len(array) == len(ratios[-1]):
            scales.append(array)
    if [len(array) for array in ratios] == counts == [len(array) for array in scales]:
        levels = [
            [(_number(scale), _number(ratio)) for scale, ratio in zip(*level, strict=True)]
            for level in zip(scales, ratios, strict=True)
        ]
        if all(1e-4 < value < 1e3 for level in levels for shape in level for value in shape):
            return levels, True
    if (computed := anchors_of_boxes(variables, counts)) is not None:
        return computed, True
    if variables.pipeline is not None and (configured := variables.pipeline.levels) is not None:
        if [len(level) for level in configured] != counts:
            raise WeightsError(
                f"{variables.source}: {counts} anchors of the levels, but its {NAME} says"
                f" {[len(level) for level in configured]}"
            )
        return configured, True
    published = default_anchors(len(counts))
    if [len(level) for level in published] != counts:
        raise WeightsError(
            f"{variables.source}: {counts} anchors of the levels; the file does not state them, and the Object"
            f" Detection API's defaults are {[len(level) for level in published]}"
        )
    return published, False


def _number(value: Any) -> float:
    """A float32 as it was written."""
    return float(f"{float(value):.7g}")


def _score(variables: Variables) -> str:
    """How logits become scores; the API's SSDs have sigmoids where nothing says."""
    if variables.pipeline is not None and variables.pipeline.score is not None:
        return variables.pipeline.score
    return "softmax" if variables.kinds.get("Postprocessor/convert_scores") == "Softmax" else "sigmoid"


def _suppression(variables: Variables) -> dict[str, float]:
    """IoU and score thresholds, where the file or the configuration beside it states them."""
    keys = {"iou_threshold": "nms_iou", "score_threshold": "score_threshold"}
    stated = dict(variables.pipeline.suppression) if variables.pipeline else {}
    for name, array in variables.arrays.items():
        match = SUPPRESSION.fullmatch(name)
        if match and array.size == 1 and 0 <= (value := float(array.ravel()[0])) <= 1 and math.isfinite(value):
            stated[keys[match[1]]] = float(f"{value:.6g}")
    return stated


def _reorder(rows: Tensor) -> Tensor:
    """Brings the rows of box codes, (anchor, value) along the first axis, into our order of values."""
    return rows.view(-1, 4, *rows.shape[1:])[:, CODE_ORDER].flatten(0, 1)
