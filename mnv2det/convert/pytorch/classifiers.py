"""MobileNetV2 classifiers of other projects than torchvision."""

from __future__ import annotations

import torch
from torch import nn

from mnv2det.convert.labels import default_names
from mnv2det.convert.network import IMAGENET_MEAN, IMAGENET_STD, ImportedNetwork
from mnv2det.convert.pytorch.checkpoint import Checkpoint
from mnv2det.convert.pytorch.named import PLACES, LayerNames, Naming, StateDictLayers
from mnv2det.errors import WeightsError

SIZE = (224, 224)
NORM_EPS = 1e-5  # PyTorch's own
# by position in the sequence of a bottleneck's layers; the first bottleneck of the network expands nothing
SEQUENCE = {"expand": (0, 1), "depthwise": (3, 4), "project": (6, 7)}
FIRST_SEQUENCE = {"depthwise": (0, 1), "project": (3, 4)}
TIMM = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}
FIRST_TIMM = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}


def sequence_names(root: str, last: LayerNames) -> Naming:
    """Names of a backbone that is one sequence of layers, as pytorch-mobilenet-v2 has it.

    Args:
        root: Name of the sequence.
        last: Names of the last convolution and its norm.
    """

    def names(part: str, number: int) -> LayerNames:
        if part == "last":
            return last
        if part == "stem":
            return f"{root}.0.0", f"{root}.0.1"
        conv, norm = (SEQUENCE if number else FIRST_SEQUENCE)[part]
        return f"{root}.{number + 1}.conv.{conv}", f"{root}.{number + 1}.conv.{norm}"

    return names


def map_pytorch_mobilenet_v2(checkpoint: Checkpoint, where: str) -> ImportedNetwork:
    """Takes a classifier of pytorch-mobilenet-v2, or of mobilenetv2.pytorch, which began as a copy of it.

    Args:
        checkpoint: From a reader.
        where: Name of the file, for messages.

    Raises:
        WeightsError: It is another network; the message names the first layer that differs.
    """
    layers = StateDictLayers(checkpoint.tensors, where=where, network="the classifier of pytorch-mobilenet-v2")
    if "features.1.conv.6.weight" in checkpoint.tensors:
        raise WeightsError(
            f"{layers.error_prefix} it has 'features.1.conv.6.weight': the first bottleneck of its first version, which"
            " is none of MobileNetV2's"
        )
    separate = "conv.0.weight" in checkpoint.tensors
    last = ("conv.0", "conv.1") if separate else ("features.18.0", "features.18.1")
    nested = "classifier.1.weight" in checkpoint.tensors  # behind a dropout
    return _take(layers, sequence_names("features", last), "classifier.1" if nested else "classifier")


def map_timm(checkpoint: Checkpoint, where: str) -> ImportedNetwork:
    """Takes timm's ``mobilenetv2_100`` or one of another width; arguments as `map_pytorch_mobilenet_v2`."""

    def names(part: str, number: int) -> LayerNames:
        if part in ("stem", "last"):
            return ("conv_stem", "bn1") if part == "stem" else ("conv_head", "bn2")
        row, place = PLACES[number]
        conv, norm = (TIMM if number else FIRST_TIMM)[part]
        return f"blocks.{row}.{place}.{conv}", f"blocks.{row}.{place}.{norm}"

    return _take(StateDictLayers(checkpoint.tensors, where=where, network="timm's mobilenetv2"), names, "classifier")


def _take(layers: StateDictLayers, names: Naming, linear: str) -> ImportedNetwork:
    backbone, args = layers.take_mobilenet_v2(names, norm_eps=NORM_EPS)
    classes = layers.outputs(linear)
    with torch.device("meta"):
        expected = nn.Linear(backbone.features["last"].channels, classes)
    layers.take_linear(expected, "heads.cls.linear", linear)
    layers.check_all_taken()
    return ImportedNetwork(
        layers.taken, args, "cls", "classifier", {}, default_names(classes),
        fit="crop", size=SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD,
    )  # fmt: skip
