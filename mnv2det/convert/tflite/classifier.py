"""Imports TensorFlow's TFLite releases: ImageNet classifiers and Mobile DeepLabv3, of any width."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnv2det.convert.graph import Graph, TensorInfo
from mnv2det.convert.labels import read_labels
from mnv2det.convert.matching import GLOBAL_POOL, Walk, convolution, nearest, weight_and_bias, widths
from mnv2det.convert.tflite.deeplab import follow_deeplab
from mnv2det.convert.tflite.reader import read_tflite
from mnv2det.errors import WeightsError
from mnv2det.models.mobilenet_v2 import MobileNetV2, width_of
from mnv2det.models.weight_file import Header
from mnv2det.structures import VOC_MASK_CLASSES, Preprocess

NORM_EPS = 1e-3  # TensorFlow's; folded away in the file, but the imported norms need one
LAST_BIAS = {"cls": "heads.cls.linear.bias", "seg": "heads.seg.classify.bias"}
Found = tuple[dict[str, Tensor], dict[str, Any], str, dict[str, Any]]  # tensors, backbone's arguments, task, head


def convert_tflite(
    path: str | os.PathLike[str], *, labels: str | os.PathLike[str] | None = None
) -> tuple[dict[str, Tensor], Header]:
    """Reads a MobileNetV2 classifier or a Mobile DeepLabv3, quantised or float32, of any width.

    Args:
        path: The TFLite file.
        labels: Text file of class names, see `read_labels`. By default a classifier's are named by
            their numbers, and 21 classes of a segmenter are PASCAL VOC's.

    Returns:
        Tensors of the backbone and of head ``cls`` or ``seg``, and the header, not trainable: batch
        norm was folded into the convolutions (see `reestimate`).

    Raises:
        WeightsError: The file is damaged, or another network; names the first operator that differs.
    """
    graph, where = read_tflite(path), str(path)
    preprocess = _preprocess(graph, where)
    tensors, backbone, task, head = nearest([_classifier, _segmenter], lambda reader: reader(graph, where))
    count = len(tensors[LAST_BIAS[task]])
    names = list(VOC_MASK_CLASSES) if task == "seg" and count == 21 else [str(n) for n in range(count)]
    header = Header(
        backbone={"name": "mobilenet_v2", "args": backbone},
        heads={task: head},
        classes={task: names if labels is None else read_labels(labels, count)},
        preprocess=dataclasses.replace(preprocess, fit="pad" if task == "seg" else "stretch"),
        trainable=False,
        provenance={"source": Path(path).name, "sha256": graph.sha256},
    )
    return tensors, header


def _classifier(graph: Graph, where: str) -> Found:
    tensors = nearest(widths(graph), lambda width: _follow(Walk(graph, where=where), width))
    stem = len(tensors["backbone.stem.norm.bias"])
    rows = [len(tensors[f"backbone.blocks.{n}.project.norm.bias"]) for n in range(17)]
    backbone = {"width": width_of(stem, rows, where=where), "padding": "same", "norm_eps": NORM_EPS}
    return tensors, backbone, "cls", {"name": "classifier", "args": {}}


def _segmenter(graph: Graph, where: str) -> Found:
    tensors, backbone, head = follow_deeplab(graph, where)
    return tensors, backbone, "seg", {"name": "mobile_deeplab", "args": head}


def _follow(walk: Walk, width: float) -> dict[str, Tensor]:
    with torch.device("meta"):  # only its shapes matter
        backbone = MobileNetV2(width=width, padding="same", norm_eps=NORM_EPS)
    tensors = walk.backbone(backbone)
    walk.take(GLOBAL_POOL)
    walk.skip("RESHAPE", "SQUEEZE")
    step, inputs = walk.peek(), backbone.features["last"].channels
    outputs = len(step.operator.weight) if step is not None and step.operator.weight is not None else 1001
    head = walk.take(
        convolution("CONV_2D", (1, 1), (1, 1), (1, 1), "", (inputs, outputs), "NONE"),
        f"FULLY_CONNECTED {inputs} to {outputs} channels, NONE",
    )
    weight, bias = weight_and_bias(head)
    walk.skip("RESHAPE", "SQUEEZE")
    walk.skip("SOFTMAX")
    walk.end()
    return {**tensors, "heads.cls.linear.weight": weight.flatten(1), "heads.cls.linear.bias": bias}


def _preprocess(graph: Graph, where: str) -> Preprocess:
    """Input size of the graph; mean and std are those of all releases, x / 127.5 - 1."""
    info = graph.inputs[0] if graph.inputs else None
    if info is None or len(info.shape) != 4 or info.shape[3] != 3 or not all(32 <= n <= 1024 for n in info.shape[1:3]):
        found = "none" if info is None else list(info.shape)
        raise WeightsError(f"{where}: not a MobileNetV2: its input is {found}, expected [1, height, width, 3]")
    low, high = _range(info)
    if not (abs(low + 1) < 0.02 and abs(high - 1) < 0.02):  # also true of a NaN
        raise WeightsError(f"{where}: its input ranges from {low:.3g} to {high:.3g}, expected -1 to 1")
    return Preprocess((info.shape[1], info.shape[2]), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _range(info: TensorInfo) -> tuple[float, float]:
    """Least and greatest input value; a float input does not say."""
    if info.scale is None or info.zero_point is None or info.kind not in ("UINT8", "INT8"):
        return -1.0, 1.0
    least, scale, zero = 0 if info.kind == "UINT8" else -128, float(info.scale[0]), int(info.zero_point[0])
    return (least - zero) * scale, (least + 255 - zero) * scale
