"""``import-weights``: turns a foreign weight file into one of ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mnv2det.convert.ncnn.layers import is_ncnn
from mnv2det.convert.tensorflow.paths import is_tensorflow
from mnv2det.convert.tflite.reader import is_tflite
from mnv2det.errors import ConfigError, WeightsError
from mnv2det.io import evenly_spread
from mnv2det.schema import is_download

if TYPE_CHECKING:
    from torch import Tensor

    from mnv2det.models.model import Model
    from mnv2det.models.weight_file import Header

    Converted = tuple[dict[str, Tensor], Header]

BATCH = 8
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # tensors that are no parameters
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of a file of torch.save, today and before version 1.6


class WeightFormat(NamedTuple):
    """A kind of foreign weight file.

    Attributes:
        name: For messages: ``a TFLite file``.
        recognise: Tells from the path and the first 16 bytes whether a file is of this kind.
        convert: Reads a file, given its path and perhaps a label file.
    """

    name: str
    recognise: Callable[[str, bytes], bool]
    convert: Callable[[str, str | None], Converted]


# The converters are imported when they are needed: they import torch.


def _convert_tflite(source: str, labels: str | None) -> Converted:
    from mnv2det.convert.tflite.convert import convert_tflite

    return convert_tflite(source, labels=labels)


def _convert_ncnn(source: str, labels: str | None) -> Converted:
    from mnv2det.convert.ncnn.convert import convert_ncnn

    return convert_ncnn(source, labels=labels)


def _convert_tensorflow(source: str, labels: str | None) -> Converted:
    from mnv2det.convert.tensorflow.convert import convert_tensorflow

    return convert_tensorflow(source, labels=labels)


def _convert_state_dict(source: str, labels: str | None) -> Converted:
    from mnv2det.convert.pytorch.state_dict import convert_state_dict

    return convert_state_dict(source, labels=labels)


def _is_ncnn(source: str, start: bytes) -> bool:
    return is_ncnn(start) or (source.endswith(".bin") and Path(source).with_suffix(".param").is_file())


def _is_state_dict(source: str, start: bytes) -> bool:
    # a safetensors file begins with the length of its header, which may look like a pickle
    return is_download(source) or (start.startswith((ZIP, PICKLE)) and not _is_safetensors(start))


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{"


FORMATS = (
    WeightFormat("a TFLite file", lambda source, start: is_tflite(start), _convert_tflite),
    WeightFormat("an ncnn .param", _is_ncnn, _convert_ncnn),
    WeightFormat("a file of torch.save", _is_state_dict, _convert_state_dict),
    WeightFormat(
        "a graph, checkpoint or model.json of TensorFlow",
        lambda source, start: is_tensorflow(source),
        _convert_tensorflow,
    ),
)


def import_weights(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    limit: int = 64,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Converts foreign weights and writes them as one of our files.

    Args:
        source: A name as in ``model.weights``, or a file of one of `FORMATS`, which are told apart by their first
            bytes: a TFLite classifier or Mobile DeepLabv3, an ncnn SSDLite (its .param, with the .bin beside it), a
            state dict of torchvision or another PyTorch project, or a file or folder of TensorFlow, which is told by
            its name.
        output: The safetensors file; its folder is made if it does not exist.
        labels: Text file with one class name per line.
        images: Where batch norm is folded away, as in TFLite, ncnn and TensorFlow.js: a folder of photographs from
            which it is re-estimated. Without it the written file serves inference only.
        limit: The number of images that are used at most, spread evenly over the sorted list.
        provenance: What the header shall also say of the weights' origin.
        progress: Whether to show a progress bar.

    Returns:
        ``architecture``, ``width``, ``parameters`` and ``classes`` (counts), ``trainable``, ``images`` (how many were
        used), ``difference`` (the largest change of an output on one of them by re-estimation, None without),
        ``output``, and ``note`` (for the user, or empty).

    Raises:
        WeightsError: The source cannot be read or is another network, or the output cannot be written. Nothing is
            written then.
        DataError: An image cannot be read.
        ConfigError: ``limit`` is below 1.
    """
    source, output = os.fspath(source), os.fspath(output)
    if not output.endswith(".safetensors") or Path(output).is_dir():
        raise WeightsError(f"{output}: expected a file name that ends in .safetensors")
    if limit < 1:
        raise ConfigError(f"limit: expected at least 1 image, got {limit}")
    kind = _recognise(source)
    tensors, header = kind.convert(source, None if labels is None else os.fspath(labels))
    if images and header.trainable:
        raise WeightsError(
            f"{source}: {kind.name}, whose batch norm is not folded; images serve to re-estimate one that is, as in"
            " TFLite and ncnn files"
        )
    header.provenance |= provenance or {}
    used, difference = 0, None
    if header.heads:
        model = _build(tensors, header, source)
        # with every default spelled out, so that the file outlives a changed one
        header.backbone, header.heads = model.header().backbone, model.header().heads
        if images:
            from mnv2det.data.images import list_images

            used, difference = _reestimate(model, header, source, evenly_spread(list_images(images), limit), progress)
            tensors = model.state_dict()
    from mnv2det.models.weight_file import save_weights

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


def _recognise(source: str) -> WeightFormat:
    """The format of a source."""
    start = b""
    if not is_download(source) and not is_tensorflow(source):
        try:
            with open(source, "rb") as file:
                start = file.read(16)
        except OSError as error:
            raise WeightsError(f"{source}: cannot read the weight file ({error.strerror})") from None
    for kind in FORMATS:
        if kind.recognise(source, start):
            return kind
    if _is_safetensors(start):
        raise WeightsError(f"{source}: a safetensors file; if mnv2det wrote it, use it as it is")
    *others, last = [kind.name for kind in FORMATS]
    raise WeightsError(f"{source}: neither {', '.join(others)} nor {last}")


def _build(tensors: Mapping[str, Tensor], header: Header, source: str) -> Model:
    from mnv2det.models.build import assemble

    model = assemble(header.backbone, header.heads, classes=header.classes, preprocess=header.preprocess)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{source}: does not fit the model ({' '.join(str(error).split())[:300]})") from None
    return model.eval()


def _reestimate(model: Model, header: Header, source: str, paths: Sequence[Path], progress: bool) -> tuple[int, float]:
    """The number of images used, and the largest change of an output on the first of them."""
    import torch

    from mnv2det.convert.reestimate import reestimate

    with torch.no_grad():
        sample = next(_batches(model, paths[:1], progress=False))
        before = model(sample)
        try:
            used = reestimate(model, _batches(model, paths, progress=progress), header=header)
        except WeightsError as error:
            raise WeightsError(f"{source}: {error}") from None
        header.provenance["norm_images"] = used
        after = model(sample)
    return used, max(float((after[task][key] - raw[key]).abs().max()) for task, raw in before.items() for key in raw)


def _batches(model: Model, paths: Sequence[Path], *, progress: bool) -> Iterator[Tensor]:
    """Normalised float32 (B, 3, H, W) of the input's size."""
    import torch
    from tqdm import tqdm

    from mnv2det.data.fit import fit
    from mnv2det.data.images import read_image

    height, width = model.preprocess.input_size
    with tqdm(total=len(paths), desc="batch norm", unit="image", disable=not progress or sys.stderr is None) as bar:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            # where pictures may not be scaled, as much of a larger one as the input shows
            pictures = [fit(read_image(path), model.preprocess)[0][:height, :width] for path in batch]
            yield model.normalize(torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]))
            bar.update(len(batch))
