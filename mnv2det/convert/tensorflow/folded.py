"""Gives tensors of graphs whose batch norm was folded away the names of the layers that they belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mnv2det.errors import WeightsError

# What TensorFlow's optimizers leave of a batch norm, by the name of the node that computed it: a factor and an offset,
# or the offset alone where the weights were multiplied by the factor.
NORM = re.compile(r"(.+)/BatchNorm/batchnorm/(mul|sub)")
CONVOLUTION = re.compile(r"(.+)/(Conv2D|depthwise)(/merged_input|_weights|_bn_offset)")
WEIGHT = {"Conv2D": "weights", "depthwise": "depthwise_weights"}
SCALE, OFFSET = "BatchNorm/folded_scale", "BatchNorm/folded_offset"
# operators lie in a scope within that of the variables, of the same name
REPEATED = re.compile(r"(^|/)(MobilenetV\d)/\2/")


def name_folded(arrays: Mapping[str, NDArray[np.generic]], where: str) -> dict[str, NDArray[np.generic]]:
    """Renames what is left of folded batch norms: ``scope/weights``, ``scope/BatchNorm/folded_offset``.

    Args:
        arrays: By their names in TensorFlow; other names stay.
        where: Name of the file, for messages.

    Raises:
        WeightsError: Two tensors are the weights, or the offset, of the same layer.
    """
    renamed: dict[str, NDArray[np.generic]] = {}
    for name, array in arrays.items():
        ours = _name(name)
        if ours in renamed:
            raise WeightsError(f"{where}: two tensors for '{ours}', of which one is '{name}'")
        renamed[ours] = array
    return renamed


def _name(name: str) -> str:
    if match := NORM.fullmatch(name):
        scope, part = match[1], SCALE if match[2] == "mul" else OFFSET
    elif match := CONVOLUTION.fullmatch(name):
        scope, part = match[1], OFFSET if match[3] == "_bn_offset" else WEIGHT[match[2]]
    else:
        return name
    return REPEATED.sub(r"\1\2/", f"{scope}/{part}")
