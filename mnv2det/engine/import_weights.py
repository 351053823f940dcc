"""``import-weights``: foreign weights into one of our files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor
from tqdm import tqdm

from mnv2det.data.images import list_images, read_image
from mnv2det.errors import ConfigError, WeightsError
from mnv2det.models.model import Model, assemble
from mnv2det.models.weights.files import HEADER_KEY, Header, save_weights
from mnv2det.models.weights.imagenet import convert_tflite, fit_labels, read_labels
from mnv2det.models.weights.loading import TORCHVISION, convert_torchvision, open_weights
from mnv2det.models.weights.reestimate import reestimate
from mnv2det.models.weights.tflite import is_tflite

BATCH = 8
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # how files of torch.save start, today's and before 1.6


def import_weights(
    source: str,
    output: str,
    *,
    labels: str | None = None,
    images: str | None = None,
    limit: int = 64,
    progress: bool = True,
) -> dict[str, Any]:
    """Converts foreign weights and writes them as one of our files.

    Args:
        source: ``torchvision:NAME``, or a file: a state dict of torchvision's ``mobilenet_v2``
            or a TFLite classifier, told apart by their first bytes.
        output: The safetensors file; its folder is made if need be.
        labels: Text file with one class name per line.
        images: For TFLite: a folder of photographs from which batch norm is re-estimated.
            Without it the file serves inference only.
        limit: At most that many of them are used, spread evenly over the sorted list.
        progress: Whether to show a bar.

    Returns:
        ``architecture``, ``width``, ``parameters`` and ``classes`` (counts), ``trainable``,
        ``images`` (how many were used), ``logit_difference`` (the largest that re-estimation made
        on one of them, None without), ``output`` and ``note`` (for the user, or empty).

    Raises:
        WeightsError: The source cannot be read or is another network, or the output cannot be
            written. Nothing is written then.
        DataError: An image cannot be read.
        ConfigError: ``limit`` is below 1.
    """
    if not output.endswith(".safetensors") or Path(output).is_dir():
        raise WeightsError(f"{output}: expected a file name that ends in .safetensors")
    if limit < 1:
        raise ConfigError(f"limit: expected at least 1 image, got {limit}")
    names = read_labels(labels) if labels else None
    tensors, header, folded = _open(source, names)
    if images and not folded:
        raise WeightsError(f"{source}: its batch norm is not folded; images serve to re-estimate that of TFLite files")
    model = assemble(header.backbone, header.heads, classes=header.classes, preprocess=header.preprocess)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{source}: does not fit the model ({' '.join(str(error).split())[:300]})") from None
    used, difference = 0, None
    if images:
        used, difference = _reestimate(model.eval(), header, images, limit, progress)
    try:
        save_weights(output, model.state_dict(), header)
    except OSError as error:
        raise WeightsError(f"{output}: cannot write ({error.strerror})") from None
    return {
        "architecture": header.backbone["name"],
        "width": header.backbone["args"]["width"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "classes": sum(map(len, header.classes.values())),
        "trainable": header.trainable,
        "images": used,
        "logit_difference": difference,
        "output": output,
        "note": "" if header.trainable else "for inference only; import with --images FOLDER to make it trainable",
    }


def _open(source: str, labels: list[str] | None) -> tuple[dict[str, Tensor], Header, bool]:
    """Tensors, header, and whether batch norm is folded."""
    if source.startswith(TORCHVISION):
        tensors, header = open_weights(source)
    else:
        try:
            with open(source, "rb") as file:
                start = file.read(64)
        except OSError as error:
            raise WeightsError(f"{source}: cannot read the weight file ({error.strerror})") from None
        if is_tflite(start):
            return *convert_tflite(source, labels=labels), True
        if start[8:9] == b"{":
            raise WeightsError(f"{source}: a safetensors file; one of ours ('{HEADER_KEY}' header) needs no import")
        if not start.startswith((ZIP, PICKLE)):
            raise WeightsError(f"{source}: neither a TFLite file nor one of torch.save")
        tensors, header = convert_torchvision(_state_dict(source), where=Path(source).name)
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    if labels is not None and header.classes:
        header.classes = {task: fit_labels(labels, len(known)) for task, known in header.classes.items()}
    return tensors, header, False


def _state_dict(source: str) -> Mapping[str, Tensor]:
    """Loads a state dict, also one that a training script wrapped under ``model`` or ``state_dict``."""
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{source}: damaged, or not a plain state dict of torch.save ({reason})") from None
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{source}: expected a state dict (names and tensors), found {type(state).__name__}")
    return state


def _reestimate(model: Model, header: Header, folder: str, limit: int, progress: bool) -> tuple[int, float]:
    """Number of images used, and the largest logit difference on the first of them."""
    found = list_images(folder)
    count = min(limit, len(found))
    paths = [found[index * len(found) // count] for index in range(count)]
    sample = next(_batches(model, paths[:1], progress=False))
    with torch.no_grad():
        before = model(sample)["cls"]["logits"]
        used = reestimate(model, _batches(model, paths, progress=progress), header=header)
        difference = float((model(sample)["cls"]["logits"] - before).abs().max())
    header.provenance["reestimated_from"] = {"images": used, "folder": os.path.basename(os.path.abspath(folder))}
    return used, difference


def _batches(model: Model, paths: list[Path], *, progress: bool) -> Iterator[Tensor]:
    """Normalised float32 (B, 3, H, W) of the input size."""
    height, width = model.preprocess.input_size
    with tqdm(total=len(paths), desc="batch norm", unit="image", disable=not progress) as bar:
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            pictures = [cv2.resize(read_image(p), (width, height), interpolation=cv2.INTER_LINEAR) for p in part]
            yield model.normalize(torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pictures]))
            bar.update(len(part))
