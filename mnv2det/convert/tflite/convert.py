"""Converts TFLite files: released ImageNet classifiers and Mobile DeepLabv3, of any width."""

from __future__ import annotations

import os

from torch import Tensor

from mnv2det.convert.network import convert_graph
from mnv2det.convert.tflite.classifier import match_classifier
from mnv2det.convert.tflite.deeplab import match_deeplab
from mnv2det.convert.tflite.reader import read_tflite
from mnv2det.models.weight_file import Header

MAPPERS = (match_classifier, match_deeplab)


def convert_tflite(
    path: str | os.PathLike[str], *, labels: str | os.PathLike[str] | None = None
) -> tuple[dict[str, Tensor], Header]:
    """Reads a MobileNetV2 classifier or a Mobile DeepLabv3, quantised or float32.

    Args:
        path: The TFLite file.
        labels: Text file of class names, see `read_labels`. By default a classifier's classes are named by their
            numbers, and 21 classes of a segmenter are PASCAL VOC's.

    Returns:
        Tensors of the backbone and of head ``cls`` or ``seg``, and the header; see `convert_graph`.

    Raises:
        WeightsError: The file is damaged or holds another network; the message names the first operator that differs.
    """
    return convert_graph(read_tflite(path), MAPPERS, where=str(path), network="MobileNetV2", labels=labels)
