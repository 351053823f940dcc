"""The weights that a training starts from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnv2det.errors import WeightsError
from mnv2det.models.build import weights_of
from mnv2det.models.releases import RELEASES, is_release, release_file
from mnv2det.models.torchvision_weights import is_cached
from mnv2det.models.weight_file import read_header
from mnv2det.schema import NAMED_WEIGHTS, is_download

WEIGHTS = "weights"  # folder of the working directory in which weights to start from are looked for


@dataclass(frozen=True)
class Start:
    """Weights to start from: a file, or a name as in ``model.weights``.

    Attributes:
        weights: For a backbone.
        detector: A file with a detector, which starts with its head as well where its levels suit the objects.
    """

    weights: str | None = None
    detector: str | None = None


def find_weights() -> Start:
    """Weights to start from that lie on this machine: in the folder ``weights``, or fetched before by their names."""
    files = sorted(Path(WEIGHTS).glob("*.safetensors")) if os.path.isdir(WEIGHTS) else []
    usable = []
    for file in files:
        try:
            header = read_header(file)
        except WeightsError:
            continue
        if header.trainable and header.backbone["name"] == "mobilenet_v2":
            usable.append(str(file.resolve()))
    released = [name for name in RELEASES if is_release(name) and release_file(name).is_file()]
    detector = next((file for file in [*usable, *released] if detector_args(file)), None)
    others = [file for file in usable if not detector_args(file)]
    others += [name for name in NAMED_WEIGHTS if is_cached(name)]
    others += [name for name in released if not detector_args(name)]
    return Start(others[0] if others else detector, detector)


def given_weights(weights: str) -> Start:
    """The weights that the user names."""
    if is_download(weights):
        return Start(weights)
    file = weights if is_release(weights) else str(Path(weights).resolve())
    return Start(file, file if detector_args(file) else None)


def detector_args(weights: str) -> dict[str, Any] | None:
    """Arguments of the SSDLite head in a weight file or release; None where it has none, or is a download."""
    if is_download(weights):
        return None
    heads = read_header(weights_of(weights)).heads.values()
    return next((head["args"] for head in heads if head["name"] == "ssdlite"), None)
