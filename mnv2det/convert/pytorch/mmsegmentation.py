"""MMSegmentation's DeepLabv3 on MobileNetV2."""

from __future__ import annotations

from typing import Any

import torch

from mnv2det.convert.labels import default_names
from mnv2det.convert.network import IMAGENET_MEAN, IMAGENET_STD, ImportedNetwork
from mnv2det.convert.pytorch.checkpoint import Checkpoint
from mnv2det.convert.pytorch.named import PLACES, LayerNames, StateDictLayers
from mnv2det.errors import WeightsError
from mnv2det.models.deeplab import MobileDeepLab
from mnv2det.structures import CITYSCAPES_CLASSES, Fit

NORM_EPS = 1e-5
HEAD = "decode_head"
AUXILIARY = "auxiliary_head."
# what tells other heads of the project from DeepLabv3's
OTHER_HEADS = {
    "sep_bottleneck": "the decoder of DeepLabv3+",
    "c1_bottleneck": "the decoder of DeepLabv3+",
    "psp_modules": "PSPNet's head",
    "convs": "FCN's head",
}
# Cityscapes' pictures have one size: unscaled, in windows of the size of the crops in training, they look as trained.
# Those of other data sets have any size, and are scaled to be seen whole.
CITYSCAPES_SIZE, OTHER_SIZE = (512, 1024), (512, 512)


def map_mmsegmentation(checkpoint: Checkpoint, where: str) -> ImportedNetwork:
    """Takes the backbone and head ``seg``; the auxiliary head, which serves training, is left out.

    Args:
        checkpoint: From a reader.
        where: Name of the file, for messages.

    Raises:
        WeightsError: It is another network; the message names the first layer that differs.
    """
    layers = StateDictLayers(checkpoint.tensors, where=where, network="MMSegmentation's deeplabv3 on MobileNetV2")
    for name in checkpoint.tensors:
        head, _, rest = name.partition(".")
        if head == HEAD and (other := OTHER_HEADS.get(rest.partition(".")[0])):
            raise WeightsError(f"{layers.error_prefix} '{name}' is of {other}, which cannot be imported")

    def names(part: str, number: int) -> LayerNames:
        if part == "stem":
            return "backbone.conv1.conv", "backbone.conv1.bn"
        row, place = PLACES[number]
        step = ("expand", "depthwise", "project").index(part) - (0 if number else 1)
        return f"backbone.layer{row + 1}.{place}.conv.{step}.conv", f"backbone.layer{row + 1}.{place}.conv.{step}.bn"

    backbone, backbone_args = layers.take_mobilenet_v2(
        names, norm_eps=NORM_EPS, last=False, output_stride=8, dilate="first"
    )
    channels, classes = layers.outputs(f"{HEAD}.bottleneck.conv"), layers.outputs(f"{HEAD}.conv_seg")
    args: dict[str, Any] = {"channels": channels, "aspp": True, "join_kernel": 3, "norm_eps": NORM_EPS}
    with torch.device("meta"):  # only the shapes matter
        head_layers = MobileDeepLab(backbone.features, classes=classes, **args)
    parts: dict[str, Any] = {"image_pool.1": ("pool", head_layers.pool), "bottleneck": ("join", head_layers.join)}
    parts |= {f"aspp_modules.{n}": (f"branches.{n}", branch) for n, branch in enumerate(head_layers.branches)}
    for theirs, (ours, layer) in parts.items():
        layers.take_layer(layer, f"heads.seg.{ours}", (f"{HEAD}.{theirs}.conv", f"{HEAD}.{theirs}.bn"))
    layers.take_linear(head_layers.classify, "heads.seg.classify", f"{HEAD}.conv_seg")
    layers.check_all_taken(AUXILIARY)
    city = classes == len(CITYSCAPES_CLASSES)
    fit: Fit = "pad" if city else "letterbox"
    left_out = any(name.startswith(AUXILIARY) for name in checkpoint.tensors)
    return ImportedNetwork(
        layers.taken,
        backbone_args,
        "seg",
        "mobile_deeplab",
        args,
        checkpoint.class_names(classes) or default_names(classes, CITYSCAPES_CLASSES),
        fit=fit,
        size=CITYSCAPES_SIZE if city else OTHER_SIZE,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={
            "output_stride": "8, as in MMSegmentation's m-v2-d8 configs; the file does not state it",
            **({"left_out": "the auxiliary head, which serves training alone"} if left_out else {}),
        },
    )
