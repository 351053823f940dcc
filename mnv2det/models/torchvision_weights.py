"""Reads torchvision's MobileNetV2 weights under the names of this package."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnv2det.errors import WeightsError, near
from mnv2det.models.mobilenet_v2 import MobileNetV2, width_of
from mnv2det.models.weight_file import Header
from mnv2det.schema import NAMED_WEIGHTS, TORCHVISION
from mnv2det.structures import Preprocess


def convert_torchvision(state: Mapping[str, Tensor], *, where: str) -> tuple[dict[str, Tensor], Header]:
    """Renames a state dict of torchvision's ``mobilenet_v2``, of any width.

    Args:
        state: Tensors ``features.0.0.weight`` ... and, if it has a classifier, ``classifier.1.*``.
        where: Name of the source, for messages.

    Returns:
        Tensors under our names (backbone, and head ``cls`` with a classifier), and the header.

    Raises:
        WeightsError: A tensor is missing, superfluous or of an unexpected shape; names it.
    """
    theirs = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    if "features.18.0.weight" not in theirs or "features.0.0.weight" not in theirs:
        raise WeightsError(f"{where}: not a torchvision mobilenet_v2: tensor 'features.18.0.weight' is missing")
    width, _ = width_of(
        theirs["features.0.0.weight"].shape[0],
        [
            theirs[f"features.{n}.conv.{1 if n == 1 else 2}.weight"].shape[0]
            for n in range(1, 18)
            if f"features.{n}.conv.{1 if n == 1 else 2}.weight" in theirs
        ],
        where=where,
    )
    args: dict[str, Any] = {"width": width, "padding": "symmetric", "norm_eps": 1e-5}
    ours = MobileNetV2(**args).state_dict()
    # both have the same convolutions and norms in the order of the network
    if len(ours) != len(theirs):
        raise WeightsError(f"{where}: {len(theirs)} backbone tensors, expected {len(ours)}")
    tensors: dict[str, Tensor] = {}
    for (name, own), (their_name, tensor) in zip(ours.items(), theirs.items(), strict=True):
        if own.shape != tensor.shape:
            raise WeightsError(f"{where}: tensor '{their_name}' is {list(tensor.shape)}, expected {list(own.shape)}")
        tensors[f"backbone.{name}"] = tensor
    header = Header(
        backbone={"name": "mobilenet_v2", "args": args},
        preprocess=Preprocess((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        provenance={"source": where},
    )
    if "classifier.1.weight" in state:
        tensors["heads.cls.linear.weight"] = state["classifier.1.weight"]
        tensors["heads.cls.linear.bias"] = state["classifier.1.bias"]
        header.heads = {"cls": {"name": "classifier", "args": {}}}
        header.classes = {"cls": [str(n) for n in range(len(state["classifier.1.bias"]))]}
    return tensors, header


def download_torchvision(source: str) -> tuple[dict[str, Tensor], Header]:
    """Downloads weights with torchvision's own downloader, which checks their hash and keeps them in its cache.

    A file that lies in the cache already, perhaps put there by hand, is checked as well, and nothing is downloaded.

    Args:
        source: ``imagenet``, or for instance ``torchvision:IMAGENET1K_V2``.

    Raises:
        WeightsError: torchvision has no such weights, they cannot be downloaded, or the cached file is damaged.
    """
    member, file = published(source)
    if file.is_file():
        # as torch's downloader names files: the hash begins with what stands behind the dash
        wanted, found = file.stem.rsplit("-", 1)[-1], hashlib.sha256(file.read_bytes()).hexdigest()
        if not found.startswith(wanted):
            raise WeightsError(f"{file}: damaged, its sha256 begins with {found[:8]}, expected {wanted}; delete it")
    try:
        state = member.get_state_dict(progress=sys.stderr is not None, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{source}: download failed ({reason}); fetch {member.url} elsewhere and put it into {file.parent}"
        ) from None
    tensors, header = convert_torchvision(state, where=source)
    header.classes = {"cls": list(member.meta["categories"])}
    return tensors, header


def is_cached(source: str) -> bool:
    """Whether such weights were downloaded before; arguments and errors as those of `download_torchvision`."""
    return published(source)[1].is_file()


def published(source: str) -> tuple[Any, Path]:
    """What torchvision knows of its weights, and where its downloader keeps the file.

    Raises:
        WeightsError: torchvision has no such weights.
    """
    from torchvision.models import MobileNet_V2_Weights

    name = NAMED_WEIGHTS.get(source, source).removeprefix(TORCHVISION)
    known = [member.name for member in MobileNet_V2_Weights]
    if name not in known and name != "DEFAULT":
        raise WeightsError(f"{source}: torchvision has no such MobileNetV2 weights{near(name, known)}")
    member = MobileNet_V2_Weights[name]
    return member, Path(torch.hub.get_dir(), "checkpoints", member.url.rsplit("/", 1)[-1])
