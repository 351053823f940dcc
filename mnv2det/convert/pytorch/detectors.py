"""SSDLite detectors of pytorch-ssd and MMDetection."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mnv2det.convert.labels import COCO_IDS, default_names
from mnv2det.convert.network import IMAGENET_MEAN, IMAGENET_STD, ImportedNetwork
from mnv2det.convert.pytorch.checkpoint import Checkpoint
from mnv2det.convert.pytorch.classifiers import sequence_names
from mnv2det.convert.pytorch.named import PLACES, LayerNames, StateDictLayers
from mnv2det.errors import WeightsError
from mnv2det.models.backbone import Features
from mnv2det.models.layers import Conv, ConvNorm
from mnv2det.models.ssdlite import SSDLite
from mnv2det.ops.anchors import Shape
from mnv2det.structures import VOC_CLASSES

COCO_CLASSES = tuple(name for name in COCO_IDS if name)
# shapes of a level's anchors in both projects: two squares, then these at the scale of the smaller one
RATIOS = (2.0, 1 / 2, 3.0, 1 / 3)
SHAPES = 2 + len(RATIOS)
# least and largest side of each level's anchors in pixels, and pixels between their centres
PYTORCH_SSD_SIZE = 300
PYTORCH_SSD_SIDES = ((60, 105), (105, 150), (150, 195), (195, 240), (240, 285), (285, 330))
PYTORCH_SSD_CELLS = (16.0, 32.0, 64.0, 100.0, 150.0, 300.0)
MMDETECTION_SIZE = 320
MMDETECTION_SIDES = ((48, 100), (100, 150), (150, 202), (202, 253), (253, 304), (304, 320))
MMDETECTION_CELLS = (16.0, 32.0, 64.0, 107.0, 160.0, 320.0)
# candidates of a class that pytorch-ssd considers; it does not limit detections
MOST = 200


class HeadNames(NamedTuple):
    """Names of a head's layers in another project.

    Attributes:
        extra: Of one of the three layers of an extra level, given the numbers of both.
        predictors: Of the class and of the box predictors.
        depthwise: Of a predictor's first layer, below the predictor.
        linear: Of a predictor's second layer, below the predictor.
    """

    extra: Callable[[int, int], LayerNames]
    predictors: tuple[str, str]
    depthwise: LayerNames
    linear: str


def map_pytorch_ssd(checkpoint: Checkpoint, where: str) -> ImportedNetwork:
    """Takes pytorch-ssd's ``mb2-ssd-lite``: backbone and head ``det``.

    Args:
        checkpoint: From a reader.
        where: Name of the file, for messages.

    Raises:
        WeightsError: It is another network; the message names the first layer that differs.
    """
    layers = StateDictLayers(checkpoint.tensors, where=where, network="pytorch-ssd's mb2-ssd-lite")
    names = sequence_names("base_net", ("base_net.18.0", "base_net.18.1"))
    backbone, backbone_args = layers.take_mobilenet_v2(names, norm_eps=1e-5)
    predictors = ("classification_headers", "regression_headers")
    classes = _classes(layers, f"{predictors[0]}.0.3")
    args: dict[str, Any] = {
        "extras": [512, 256, 256, 64],
        "layout": "pytorch-ssd",
        "padding": "symmetric",
        "anchors": _anchors(PYTORCH_SSD_SIDES, PYTORCH_SSD_SIZE, clamped=True),
        "cells": list(PYTORCH_SSD_CELLS),
        "score": "softmax",
        "norm_eps": 1e-5,
        "score_threshold": 0.01,
        "nms_iou": 0.45,
        "max_detections": MOST,
        "clip_after_nms": True,
    }

    def extra(level: int, part: int) -> LayerNames:
        return f"extras.{level}.conv.{3 * part}", f"extras.{level}.conv.{3 * part + 1}"

    _take_head(layers, backbone.features, classes, args, HeadNames(extra, predictors, ("0", "1"), "3"))
    return ImportedNetwork(
        layers.taken,
        backbone_args,
        "det",
        "ssdlite",
        args,
        default_names(classes, VOC_CLASSES),
        private_background=True,
        size=(PYTORCH_SSD_SIZE, PYTORCH_SSD_SIZE),
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        provenance={"anchors": "those of pytorch-ssd's mobilenetv1_ssd_config; the file does not state them"},
    )


def map_mmdetection(checkpoint: Checkpoint, where: str) -> ImportedNetwork:
    """Takes MMDetection's ``ssdlite_mobilenetv2-scratch``; arguments and errors as those of `map_pytorch_ssd`."""
    layers = StateDictLayers(checkpoint.tensors, where=where, network="MMDetection's ssdlite_mobilenetv2")

    def module(name: str) -> LayerNames:
        return f"{name}.conv", f"{name}.bn"

    def names(part: str, number: int) -> LayerNames:
        if part in ("stem", "last"):
            return module("backbone.conv1" if part == "stem" else "backbone.conv2")
        row, place = PLACES[number]
        return module(f"backbone.layer{row + 1}.{place}.{'linear' if part == 'project' else part}_conv")

    backbone, backbone_args = layers.take_mobilenet_v2(names, norm_eps=1e-3)
    predictors = ("bbox_head.cls_convs", "bbox_head.reg_convs")
    classes = _classes(layers, f"{predictors[0]}.0.1")
    args: dict[str, Any] = {
        "taps": ["block13/16", "last/32"],
        "extras": [512, 256, 256, 128],
        "padding": "symmetric",
        "anchors": _anchors(MMDETECTION_SIDES, MMDETECTION_SIZE),
        "cells": list(MMDETECTION_CELLS),
        "score": "softmax",
        "norm_eps": 1e-3,
        "score_threshold": 0.02,
        "nms_iou": 0.45,
        "max_detections": 200,
    }

    def extra(level: int, part: int) -> LayerNames:
        return module(f"neck.extra_layers.{level}.{('0', '1.depthwise_conv', '1.pointwise_conv')[part]}")

    _take_head(layers, backbone.features, classes, args, HeadNames(extra, predictors, ("0.conv", "0.bn"), "1"))
    for level in range(len(MMDETECTION_SIDES)):
        for part in ("weight", "bias"):
            name = f"heads.det.class_predictors.{level}.1.{part}"
            layers.taken[name] = _background_first(layers.taken[name], classes)
    return ImportedNetwork(
        layers.taken,
        backbone_args,
        "det",
        "ssdlite",
        args,
        checkpoint.class_names(classes) or default_names(classes, COCO_CLASSES),
        private_background=True,
        size=(MMDETECTION_SIZE, MMDETECTION_SIZE),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"anchors": "those of MMDetection's ssdlite_mobilenetv2 config; the file does not state them"},
    )


def _classes(layers: StateDictLayers, predictor: str) -> int:
    """The number of classes without the background, from the finest level's class predictor."""
    rows = layers.outputs(predictor)
    if rows % SHAPES or rows < 2 * SHAPES:
        raise WeightsError(
            f"{layers.error_prefix} '{predictor}.weight' has {rows} outputs, expected {SHAPES} for each class and the"
            " background"
        )
    return rows // SHAPES - 1


def _anchors(sides: tuple[tuple[int, int], ...], size: int, *, clamped: bool = False) -> list[list[list[float]]]:
    """(scale, ratio) of all anchors.

    Args:
        sides: Least and largest side of each level's anchors.
        size: Of the input, in the same unit.
        clamped: Whether no side is longer than the input, as pytorch-ssd has it.
    """

    def shape(side: float, ratio: float) -> Shape:
        width, height = side / size * math.sqrt(ratio), side / size / math.sqrt(ratio)
        if clamped:
            width, height = min(width, 1.0), min(height, 1.0)
        return math.sqrt(width * height), width / height

    return [
        [list(shape(least, 1.0)), list(shape(math.sqrt(least * largest), 1.0))]
        + [list(shape(least, ratio)) for ratio in RATIOS]
        for least, largest in sides
    ]


def _take_head(
    layers: StateDictLayers, features: Features, classes: int, args: dict[str, Any], names: HeadNames
) -> None:
    """Takes a whole SSDLite with these arguments, and checks that nothing is left."""
    with torch.device("meta"):  # only the shapes matter
        head = SSDLite(features, classes=classes, **args)
    for level, parts in enumerate(head.extras):
        for number, layer in enumerate(parts.children()):
            assert isinstance(layer, ConvNorm)
            layers.take_layer(layer, f"heads.det.extras.{level}.{number}", names.extra(level, number))
    for ours, theirs in zip(("class_predictors", "box_predictors"), names.predictors, strict=True):
        for level, predictor in enumerate(getattr(head, ours)):
            name, their_name = f"heads.det.{ours}.{level}", f"{theirs}.{level}"
            if isinstance(predictor, Conv):
                layers.take_linear(predictor, name, their_name)
                continue
            depthwise, linear = predictor
            conv, norm = names.depthwise
            layers.take_layer(depthwise, f"{name}.0", (f"{their_name}.{conv}", f"{their_name}.{norm}"))
            layers.take_linear(linear, f"{name}.1", f"{their_name}.{names.linear}")
    layers.check_all_taken()


def _background_first(rows: Tensor, classes: int) -> Tensor:
    """Brings the background's row of each anchor from the end to the beginning."""
    return rows.unflatten(0, (-1, classes + 1)).roll(1, dims=1).flatten(0, 1)
