"""Mobile DeepLabv3 as its authors released it: image pooling, no ASPP (research/deeplab)."""

from __future__ import annotations

from typing import Any

import torch

from mnv2det.convert.labels import default_names
from mnv2det.convert.network import ImportedNetwork
from mnv2det.convert.tensorflow.named import NamedLayers
from mnv2det.convert.tensorflow.variables import Variables
from mnv2det.errors import WeightsError
from mnv2det.models.deeplab import MobileDeepLab
from mnv2det.models.layers import ConvNorm
from mnv2det.structures import VOC_MASK_CLASSES

SCOPE = "MobilenetV2"
LOGITS = "logits/semantic"
HEADS = ("image_pooling", "aspp0", "concat_projection")
HEAD_EPS = 1e-5
OUTPUT_STRIDE = 16  # as the authors' evaluation has it; variables do not tell


def map_deeplab(variables: Variables, where: str) -> ImportedNetwork:
    """Takes the backbone and head ``seg``.

    Args:
        variables: From a reader.
        where: Name of the file, for messages.

    Raises:
        WeightsError: It is another network; the message names the first layer that differs.
    """
    layers = NamedLayers(variables, where=where, network="Mobile DeepLabv3")
    further = [match[0] for match in layers.names(r"aspp[1-9]\d*(_depthwise)?/(depthwise_)?weights")]
    further += [match[0] for match in layers.names(r"decoder/.*weights")]
    if further:
        raise WeightsError(f"{layers.error_prefix} it has '{further[0]}'; ASPP and decoders cannot be imported")
    backbone, backbone_args = layers.take_mobilenet_v2(SCOPE, last=False, output_stride=OUTPUT_STRIDE)
    channels, classes = layers.outputs("aspp0/weights"), layers.outputs(f"{LOGITS}/weights")
    args: dict[str, Any] = {"channels": channels, "norm_eps": HEAD_EPS}
    with torch.device("meta"):
        head = MobileDeepLab(backbone.features, classes=classes, **args)
    (projection,) = head.branches
    parts = {"pool": head.pool, "branches.0": projection, "join": head.join}
    for (ours, layer), theirs in zip(parts.items(), HEADS, strict=True):
        assert isinstance(layer, ConvNorm)
        layers.take_layer(layer, f"heads.seg.{ours}", theirs)
    layers.take_linear(head.classify, "heads.seg.classify", LOGITS)
    layers.check_all_taken([SCOPE, *HEADS])
    names = default_names(classes, VOC_MASK_CLASSES)
    return ImportedNetwork(layers.tensors, backbone_args, "seg", "mobile_deeplab", args, names, fit="pad")
