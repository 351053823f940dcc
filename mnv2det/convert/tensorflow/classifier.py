"""MobileNetV2 classifiers of TensorFlow's slim (research/slim/nets/mobilenet)."""

from __future__ import annotations

import torch

from mnv2det.convert.labels import default_names
from mnv2det.convert.network import ImportedNetwork
from mnv2det.convert.tensorflow.named import NamedLayers
from mnv2det.convert.tensorflow.variables import Variables

SCOPE = "MobilenetV2"
LOGITS = f"{SCOPE}/Logits/Conv2d_1c_1x1"


def map_classifier(variables: Variables, where: str) -> ImportedNetwork:
    """Takes the backbone and head ``cls``.

    Args:
        variables: From a reader.
        where: Name of the file, for messages.

    Raises:
        WeightsError: It is another network; the message names the first layer that differs.
    """
    layers = NamedLayers(variables, where=where, network="MobileNetV2 classifier")
    _, backbone_args = layers.take_mobilenet_v2(SCOPE)
    channels, classes = layers.tensors["backbone.last.conv.weight"].shape[0], layers.outputs(f"{LOGITS}/weights")
    weight = layers.array(f"{LOGITS}/weights", (1, 1, channels, classes))
    layers.tensors["heads.cls.linear.weight"] = torch.from_numpy(weight[0, 0].T.copy())
    layers.tensors["heads.cls.linear.bias"] = torch.from_numpy(layers.array(f"{LOGITS}/biases", (classes,)).copy())
    layers.check_all_taken([SCOPE])
    return ImportedNetwork(layers.tensors, backbone_args, "cls", "classifier", {}, default_names(classes))
