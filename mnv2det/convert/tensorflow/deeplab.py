"""Mobile DeepLabv3 as its authors released it: image pooling, with or without ASPP (research/deeplab)."""

from __future__ import annotations

import re
from typing import Any

import torch

from mnv2det.convert.labels import default_names
from mnv2det.convert.network import ImportedNetwork
from mnv2det.convert.tensorflow.named import NamedLayers
from mnv2det.convert.tensorflow.variables import Variables
from mnv2det.errors import WeightsError
from mnv2det.models.deeplab import MobileDeepLab
from mnv2det.models.layers import ConvNorm, Separable
from mnv2det.structures import VOC_MASK_CLASSES

SCOPE = "MobilenetV2"
LOGITS = "logits/semantic"
ASPP = r"aspp[1-9]\d{0,5}(?:_depthwise|_pointwise)?"
HEAD_EPS = 1e-5
OUTPUT_STRIDE = 16  # as the authors' evaluation has it, where the file does not tell
DILATED = re.compile(rf"{SCOPE}/expanded_conv_(\d{{1,6}})/.*")
FIRST_AT_16 = 14  # number of the first block that is dilated at output stride 16


def map_deeplab(variables: Variables, where: str) -> ImportedNetwork:
    """Takes the backbone and head ``seg``.

    Args:
        variables: From a reader.
        where: Name of the file, for messages.

    Raises:
        WeightsError: It is another network; the message names the first layer that differs.
    """
    layers = NamedLayers(variables, where=where, network="Mobile DeepLabv3")
    if decoder := layers.names(r"decoder/.*weights"):
        raise WeightsError(f"{layers.error_prefix} it has '{decoder[0][0]}'; decoders cannot be imported")
    backbone, backbone_args = layers.take_mobilenet_v2(SCOPE, last=False, output_stride=_output_stride(variables))
    channels, classes = layers.outputs("aspp0/weights"), layers.outputs(f"{LOGITS}/weights")
    args: dict[str, Any] = {"channels": channels, "norm_eps": HEAD_EPS}
    if layers.names(rf"{ASPP}/.*"):
        args |= {"aspp": True, "aspp_separable": bool(layers.names(rf"{ASPP}_depthwise/.*"))}
    with torch.device("meta"):
        head = MobileDeepLab(backbone.features, classes=classes, **args)
    for ours, theirs in {"pool": "image_pooling", "join": "concat_projection"}.items():
        layers.take_layer(getattr(head, ours), f"heads.seg.{ours}", theirs)
    for number, branch in enumerate(head.branches):
        ours, theirs = f"heads.seg.branches.{number}", f"aspp{number}"
        if isinstance(branch, Separable):
            layers.take_layer(branch.depthwise, f"{ours}.depthwise", f"{theirs}_depthwise")
            layers.take_layer(branch.pointwise, f"{ours}.pointwise", f"{theirs}_pointwise")
        else:
            assert isinstance(branch, ConvNorm)
            layers.take_layer(branch, ours, theirs)
    layers.take_linear(head.classify, "heads.seg.classify", LOGITS)
    further = {match[1] for match in layers.names(r"(aspp\d{1,6}(?:_depthwise|_pointwise)?)/.*")}
    layers.check_all_taken([SCOPE, "image_pooling", "concat_projection", *sorted(further)])
    names = default_names(classes, VOC_MASK_CLASSES)
    return ImportedNetwork(layers.tensors, backbone_args, "seg", "mobile_deeplab", args, names, fit="pad")


def _output_stride(variables: Variables) -> int:
    """What a graph was frozen with: its dilated convolutions read what SpaceToBatchND made."""
    matches = [DILATED.fullmatch(name) for name, kind in variables.kinds.items() if kind == "SpaceToBatchND"]
    blocks = [int(match[1]) for match in matches if match]
    return 8 if blocks and min(blocks) < FIRST_AT_16 else OUTPUT_STRIDE
