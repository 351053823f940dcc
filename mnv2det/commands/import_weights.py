"""``import-weights``: foreign weights into one of our files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mnv2det.convert.labels import read_labels
from mnv2det.convert.ncnn.reader import is_ncnn
from mnv2det.convert.ncnn.ssdlite import convert_ncnn
from mnv2det.convert.reestimate import reestimate
from mnv2det.convert.tflite.classifier import convert_tflite
from mnv2det.convert.tflite.reader import is_tflite
from mnv2det.data.fit import fit
from mnv2det.data.images import list_images, read_image
from mnv2det.errors import ConfigError, WeightsError
from mnv2det.io import evenly_spread
from mnv2det.models.build import assemble
from mnv2det.models.loading import open_weights
from mnv2det.models.model import Model
from mnv2det.models.torchvision_weights import TORCHVISION, convert_torchvision
from mnv2det.models.weight_file import Header, save_weights

BATCH = 8
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # tensors that are no parameters
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
        source: ``torchvision:NAME``, or a file: a state dict of torchvision's ``mobilenet_v2``, a
            TFLite classifier or Mobile DeepLabv3, or an ncnn SSDLite (its .param, with the .bin
            beside it), told apart by their first bytes.
        output: The safetensors file; its folder is made if need be.
        labels: Text file with one class name per line.
        images: For TFLite and ncnn: a folder of photographs from which batch norm is
            re-estimated. Without it the file serves inference only.
        limit: At most that many of them are used, spread evenly over the sorted list.
        progress: Whether to show a bar.

    Returns:
        ``architecture``, ``width``, ``parameters`` and ``classes`` (counts), ``trainable``,
        ``images`` (how many were used), ``difference`` (the largest that re-estimation made to an
        output on one of them, None without), ``output`` and ``note`` (for the user, or empty).

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
    tensors, header, folded = _open(source, labels)
    if images and not folded:
        raise WeightsError(
            f"{source}: its batch norm is not folded; images serve to re-estimate that of TFLite and ncnn files"
        )
    used, difference = 0, None
    if header.heads:
        model = _build(tensors, header, source)
        # with every default spelled out, so that the file outlives a changed one
        header.backbone, header.heads = model.header().backbone, model.header().heads
        if images:
            used, difference = _reestimate(model, header, source, evenly_spread(list_images(images), limit), progress)
            tensors = model.state_dict()
    try:
        save_weights(output, tensors, header)
    except OSError as error:
        raise WeightsError(f"{output}: cannot write ({error.strerror})") from None
    return {
        "architecture": header.backbone["name"],
        "width": header.backbone["args"]["width"],
        "parameters": sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(STATISTICS)),
        "classes": sum(map(len, header.classes.values())),
        "trainable": header.trainable,
        "images": used,
        "difference": difference,
        "output": output,
        "note": "" if header.trainable else "for inference only; import with --images FOLDER to make it trainable",
    }


def _open(source: str, labels: str | None) -> tuple[dict[str, Tensor], Header, bool]:
    """Tensors, header, and whether batch norm is folded."""
    if source.startswith(TORCHVISION):
        tensors, header = open_weights(source)
    else:
        try:
            with open(source, "rb") as file:
                start = file.read(16)
        except OSError as error:
            raise WeightsError(f"{source}: cannot read the weight file ({error.strerror})") from None
        if is_tflite(start):
            return *convert_tflite(source, labels=labels), True
        if is_ncnn(start) or (source.endswith(".bin") and Path(source).with_suffix(".param").is_file()):
            return *convert_ncnn(source, labels=labels), True
        if start[8:9] == b"{":
            raise WeightsError(f"{source}: a safetensors file; if mnv2det wrote it, use it as it is")
        if not start.startswith((ZIP, PICKLE)):
            raise WeightsError(f"{source}: neither a TFLite file, an ncnn .param nor a file of torch.save")
        try:
            tensors, header = convert_torchvision(_state_dict(source), where=Path(source).name)
        except (KeyError, IndexError) as error:
            raise WeightsError(f"{source}: not a torchvision mobilenet_v2 ({error})") from None
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    if labels is not None:
        if not header.classes:
            raise WeightsError(f"{source}: has no classifier that {labels} could name the classes of")
        header.classes = {task: read_labels(labels, len(names)) for task, names in header.classes.items()}
    return tensors, header, False


def _state_dict(source: str) -> Mapping[str, Tensor]:
    """Loads a state dict, also one that a training script wrapped under ``model`` or ``state_dict``."""
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged pickle makes torch stumble over
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{source}: damaged, or not a plain state dict of torch.save ({reason})") from None
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{source}: expected a state dict of names and tensors")
    return state


def _build(tensors: Mapping[str, Tensor], header: Header, source: str) -> Model:
    model = assemble(header.backbone, header.heads, classes=header.classes, preprocess=header.preprocess)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{source}: does not fit the model ({' '.join(str(error).split())[:300]})") from None
    return model.eval()


@torch.no_grad()
def _reestimate(model: Model, header: Header, source: str, paths: list[Path], progress: bool) -> tuple[int, float]:
    """Number of images used, and the largest difference it made to an output on the first of them."""
    sample = next(_batches(model, paths[:1], progress=False))
    before = model(sample)
    try:
        used = reestimate(model, _batches(model, paths, progress=progress), header=header)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
    header.provenance["norm_images"] = used
    after = model(sample)
    return used, max(float((after[task][key] - raw[key]).abs().max()) for task, raw in before.items() for key in raw)


def _batches(model: Model, paths: list[Path], *, progress: bool) -> Iterator[Tensor]:
    """Normalised float32 (B, 3, H, W) of the input size."""
    height, width = model.preprocess.input_size
    with tqdm(total=len(paths), desc="batch norm", unit="image", disable=not progress) as bar:
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            # where pictures may not be scaled, the part of a larger one that the input shows
            pictures = [fit(read_image(path), model.preprocess)[0][:height, :width] for path in part]
            yield model.normalize(torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]))
            bar.update(len(part))
