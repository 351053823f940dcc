"""MobileNetV2 and MobileNetV1 classifiers of TensorFlow's slim (research/slim/nets)."""

from __future__ import annotations

import torch

from mnv2det.convert.labels import default_names
from mnv2det.convert.network import ImportedNetwork
from mnv2det.convert.tensorflow.named import NamedLayers
from mnv2det.convert.tensorflow.variables import Variables

SCOPES = ("MobilenetV2", "MobilenetV1")
LOGITS = "Logits/Conv2d_1c_1x1"


def map_classifier(variables: Variables, where: str) -> ImportedNetwork:
    """Takes the backbone and head ``cls``.

    Args:
        variables: From a reader.
        where: Name of the file, for messages.

    Raises:
        WeightsError: It is another network; the message names the first layer that differs.
    """
    layers = NamedLayers(variables, where=where, network="MobileNet classifier")
    scope = next(scope for scope in SCOPES if layers.names(rf"{scope}/.*"))
    backbone, backbone_args, name = layers.take_backbone(scope)
    logits = f"{scope}/{LOGITS}"
    channels, classes = backbone.features["last"].channels, layers.outputs(f"{logits}/weights")
    weight = layers.array(f"{logits}/weights", (1, 1, channels, classes))
    layers.tensors["heads.cls.linear.weight"] = torch.from_numpy(weight[0, 0].T.copy())
    layers.tensors["heads.cls.linear.bias"] = torch.from_numpy(layers.array(f"{logits}/biases", (classes,)).copy())
    layers.check_all_taken([scope])
    names = default_names(classes)
    return ImportedNetwork(layers.tensors, backbone_args, "cls", "classifier", {}, names, backbone_name=name)
