"""Converts ncnn files: SSDLite detectors of any width."""

from __future__ import annotations

import os

from torch import Tensor

from mnv2det.convert.ncnn.reader import read_ncnn
from mnv2det.convert.ncnn.ssdlite import match_ssdlite
from mnv2det.convert.network import convert_graph
from mnv2det.models.weight_file import Header

MAPPERS = (match_ssdlite,)


def convert_ncnn(
    path: str | os.PathLike[str], *, labels: str | os.PathLike[str] | None = None
) -> tuple[dict[str, Tensor], Header]:
    """Reads a detector, float32, float16 or int8.

    Args:
        path: The ``.param`` or the ``.bin``; the other one lies beside it.
        labels: Text file of class names, with or without a first ``background``. By default 20 classes are PASCAL
            VOC's in alphabetical order, and others are named by their numbers.

    Returns:
        Tensors of the backbone and of head ``det``, and the header; see `convert_graph`.

    Raises:
        WeightsError: A file is damaged or holds another network; the message names the first operator that differs.
    """
    return convert_graph(read_ncnn(path), MAPPERS, where=str(path), network="MobileNetV2 SSDLite", labels=labels)
