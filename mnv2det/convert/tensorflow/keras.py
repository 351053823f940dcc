"""MobileNetV2 of Keras applications: its variables by the names that slim gives to the same layers."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mnv2det.convert.graph import printable
from mnv2det.convert.tensorflow.classifier import LOGITS
from mnv2det.convert.tensorflow.variables import Variables
from mnv2det.errors import WeightsError

SCOPE = "MobilenetV2"
NORM_PARTS = ("gamma", "beta", "moving_mean", "moving_variance")
VARIABLE = re.compile(rf"(?:.*/)?([^/]+)/(kernel|depthwise_kernel|bias|{'|'.join(NORM_PARTS)})")
BLOCK = re.compile(r"(expanded_conv|block_(\d{1,3}))_(expand|depthwise|project)(_BN)?")
# Keras pads the layers of stride 2 itself (ZeroPadding2D, then 'valid'), by as much as 'same' does
ENDS = {"Conv1": "Conv", "bn_Conv1": "Conv", "Conv_1": "Conv_1", "Conv_1_bn": "Conv_1"}
CLASSIFIER = "predictions"  # Keras' own; a dense layer of any name if it is the only one


def is_keras(arrays: Mapping[str, NDArray[np.generic]]) -> bool:
    """Whether variables have the names of Keras' MobileNetV2."""
    return any(name.endswith("expanded_conv_project_BN/gamma") for name in arrays)


def name_as_slim(variables: Variables, where: str) -> dict[str, NDArray[np.generic]]:
    """The variables of Keras' MobileNetV2 with a dense layer behind it, by their names in slim and in its layouts.

    Args:
        variables: From a reader.
        where: Name of the file, for messages.

    Raises:
        WeightsError: It has no dense layer, or several of which none is Keras' own, or two layers of one name.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    dense: dict[str, dict[str, NDArray[np.generic]]] = {}
    for name, array in variables.arrays.items():
        if (match := VARIABLE.fullmatch(name)) is None:
            continue
        layer, part = match[1], match[2]
        if (scope := _scope(layer)) is None:
            dense.setdefault(layer, {})[part] = array
            continue
        if part in NORM_PARTS:
            ours = f"{scope}/BatchNorm/{part}"
        else:
            ours = f"{scope}/{'depthwise_weights' if scope.endswith('/depthwise') else 'weights'}"
        if ours in arrays:
            raise WeightsError(f"{where}: {variables.format} with two layers '{printable(layer)}'")
        arrays[ours] = array
    layers = [name for name, parts in dense.items() if "kernel" in parts and parts["kernel"].ndim == 2]
    if CLASSIFIER not in layers and len(layers) != 1:
        found = f"dense layers {', '.join(map(printable, layers[:4]))}" if layers else "none"
        raise WeightsError(
            f"{where}: {variables.format}, a MobileNetV2 of Keras; its classifier should be one dense layer, found"
            f" {found}"
        )
    last = dense[CLASSIFIER if CLASSIFIER in layers else layers[0]]
    arrays[f"{SCOPE}/{LOGITS}/weights"] = last["kernel"][None, None]
    if "bias" in last:
        arrays[f"{SCOPE}/{LOGITS}/biases"] = last["bias"]
    return arrays


def _scope(layer: str) -> str | None:
    """Slim's scope of a layer of the backbone; None for others."""
    if layer in ENDS:
        return f"{SCOPE}/{ENDS[layer]}"
    if (match := BLOCK.fullmatch(layer)) is None:
        return None
    number = f"_{match[2]}" if match[2] else ""
    return f"{SCOPE}/expanded_conv{number}/{match[3]}"
