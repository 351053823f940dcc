"""Converts files of torch.save that hold the state dict of torchvision's ``mobilenet_v2``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mnv2det.convert.labels import read_labels
from mnv2det.errors import WeightsError
from mnv2det.models.loading import open_weights
from mnv2det.models.torchvision_weights import convert_torchvision
from mnv2det.models.weight_file import Header
from mnv2det.schema import is_download

WRAPPERS = ("model", "state_dict")  # keys under which training scripts keep the state dict


def convert_state_dict(
    source: str | os.PathLike[str], *, labels: str | os.PathLike[str] | None = None
) -> tuple[dict[str, Tensor], Header]:
    """Reads a MobileNetV2 with or without classifier, of any width and floating-point type.

    Args:
        source: A file of torch.save, or a name as in ``model.weights``.
        labels: Text file of class names, see `read_labels`.

    Returns:
        Tensors of the backbone and, with a classifier, of head ``cls``, all float32; and the header.

    Raises:
        WeightsError: The file is damaged or holds another network, or has no classifier to name the classes of.
    """
    where = str(source)
    if is_download(where):
        tensors, header = open_weights(where)
    else:
        try:
            tensors, header = convert_torchvision(_load(where), where=Path(where).name)
        except (KeyError, IndexError) as error:
            raise WeightsError(f"{where}: not a torchvision mobilenet_v2 ({error})") from None
    if labels is not None:
        if not header.classes:
            raise WeightsError(f"{where}: has no classifier that {labels} could name the classes of")
        header.classes = {task: read_labels(labels, len(names)) for task, names in header.classes.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, header


def _load(path: str) -> Mapping[str, Tensor]:
    """Loads a state dict, also one that a training script wrapped."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged pickle makes torch raise
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: damaged, or not a plain state dict of torch.save ({reason})") from None
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{path}: expected a state dict of names and tensors")
    return state
