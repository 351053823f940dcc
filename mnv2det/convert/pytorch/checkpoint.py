"""Reads a file of torch.save without running any code of it."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mnv2det.errors import WeightsError

WRAPPERS = ("model", "state_dict")  # keys under which training scripts keep the state dict
PARALLEL = "module."  # what DataParallel puts before every name
MOST_VALUES = 2**27  # of a tensor; the largest of any width has 2**25
MOST_NAMES = 10_000
UNSUPPORTED = re.compile(r"GLOBAL (\S+)")
CLASS_KEYS = ("CLASSES", "classes")


@dataclass
class Checkpoint:
    """What a file holds.

    Attributes:
        tensors: The state dict; values with a fraction are finite float32.
        meta: What OpenMMLab's checkpoints say of themselves; empty for others.
        sha256: Of the file.
    """

    tensors: dict[str, Tensor]
    meta: Mapping[Any, Any] = field(default_factory=dict)
    sha256: str = ""

    def class_names(self, count: int) -> list[str] | None:
        """The class names that the file states, if there are this many and each is text of its own."""
        stated = self.meta.get("dataset_meta")
        for source in (stated, self.meta):
            for key in CLASS_KEYS:
                names = source.get(key) if isinstance(source, Mapping) else None
                if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != count:
                    continue
                if all(isinstance(name, str) and name.strip() and name.isprintable() for name in names):
                    return list(names) if len(set(names)) == count else None
        return None


def read_checkpoint(path: str) -> Checkpoint:
    """Reads a state dict, also one that a training script wrapped or that DataParallel named.

    Args:
        path: A file of torch.save.

    Raises:
        WeightsError: It cannot be read, is damaged, holds objects that are neither tensors nor plain values, or
            tensors that are no weights.
    """
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot read the weight file ({error.strerror or error})") from None
    except Exception as error:  # whatever a damaged pickle makes torch raise
        raise WeightsError(f"{path}: {_reason(error)}") from None
    meta = state.get("meta") if isinstance(state, dict) else None
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items())
    ):
        raise WeightsError(f"{path}: expected a state dict of names and tensors")
    if len(state) > MOST_NAMES:
        raise WeightsError(f"{path}: {len(state)} tensors, which no MobileNetV2 has")
    if all(name.startswith(PARALLEL) for name in state):
        state = {name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}
    tensors = {name: _checked(path, name, tensor) for name, tensor in state.items()}
    return Checkpoint(tensors, meta if isinstance(meta, dict) else {}, sha256)


def _reason(error: Exception) -> str:
    """Why a file could not be loaded."""
    text = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError) and (name := UNSUPPORTED.search(text)):
        return (
            f"holds an object '{name[1][:100]}', which cannot be loaded safely; if you trust the file, load it where it"
            " was made and save its state dict alone, by torch.save({'state_dict': checkpoint['state_dict']}, path)"
        )
    return f"damaged, or not a plain state dict of torch.save ({text[:200]})"


def _checked(path: str, name: str, tensor: Tensor) -> Tensor:
    """A tensor as float32 if it has fractions."""
    if not name.isprintable():
        raise WeightsError(f"{path}: a tensor's name cannot be printed: {ascii(name)[:100]}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        raise WeightsError(f"{path}: '{name}' is no plain tensor of numbers ({tensor.dtype}, {tensor.layout})")
    if tensor.numel() > MOST_VALUES:
        raise WeightsError(f"{path}: '{name}' is {list(tensor.shape)}, larger than any layer of a MobileNetV2")
    if not tensor.is_floating_point():
        return tensor.detach()
    values = tensor.detach().float()
    if not values.isfinite().all():
        raise WeightsError(f"{path}: '{name}' has values that are not finite")
    return values
