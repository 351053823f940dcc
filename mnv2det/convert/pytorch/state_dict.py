"""Converts files of torch.save that hold the state dict of one of several projects' networks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mnv2det.convert.labels import detector_names, read_labels
from mnv2det.convert.network import ImportedNetwork, make_header
from mnv2det.convert.pytorch.checkpoint import Checkpoint, read_checkpoint
from mnv2det.convert.pytorch.classifiers import map_pytorch_mobilenet_v2, map_timm
from mnv2det.convert.pytorch.detectors import map_mmdetection, map_pytorch_ssd
from mnv2det.convert.pytorch.mmsegmentation import map_mmsegmentation
from mnv2det.errors import WeightsError
from mnv2det.models.loading import open_weights
from mnv2det.models.torchvision_weights import convert_torchvision
from mnv2det.models.weight_file import Header
from mnv2det.schema import is_download


class Form(NamedTuple):
    """The names that a project gives its tensors.

    Attributes:
        name: For messages.
        names: What they look like. A file is of the form that most of its names look like.
        convert: Takes the network; None for torchvision's, which is converted where it is downloaded.
    """

    name: str
    names: re.Pattern[str]
    convert: Callable[[Checkpoint, str], ImportedNetwork] | None


FEATURES = r"features\.\d+\.[01]\.\w+|classifier\..+"
FORMS = (
    Form("torchvision's mobilenet_v2", re.compile(rf"features\.\d+\.conv\.(\d\.\d|[1-3])\.\w+|{FEATURES}"), None),
    Form(
        "pytorch-mobilenet-v2 or mobilenetv2.pytorch",
        re.compile(rf"features\.\d+\.conv\.\d\.\w+|conv\.[01]\.\w+|{FEATURES}"),
        map_pytorch_mobilenet_v2,
    ),
    Form(
        "timm's mobilenetv2",
        re.compile(r"(conv_stem|conv_head|bn[12]|blocks\.\d\.\d\.(conv_(pw|dw|pwl)|bn[123])|classifier)\.\w+"),
        map_timm,
    ),
    Form(
        "pytorch-ssd's mb2-ssd-lite",
        re.compile(r"(base_net|extras|classification_headers|regression_headers)\.\d.+"),
        map_pytorch_ssd,
    ),
    Form(
        "MMDetection's ssdlite_mobilenetv2",
        re.compile(
            r"backbone\.(conv[12]|layer\d\.\d+\.(expand|depthwise|linear)_conv)\.(conv|bn)\.\w+"
            r"|neck\..+|bbox_head\..+"
        ),
        map_mmdetection,
    ),
    Form(
        "MMSegmentation's deeplabv3 on MobileNetV2",
        re.compile(r"backbone\.(conv1|layer\d\.\d+\.conv\.\d)\.(conv|bn)\.\w+|decode_head\..+|auxiliary_head\..+"),
        map_mmsegmentation,
    ),
)


def convert_state_dict(
    source: str | os.PathLike[str], *, labels: str | os.PathLike[str] | None = None
) -> tuple[dict[str, Tensor], Header]:
    """Reads a network of one of `FORMS`, of any width and floating-point type.

    Args:
        source: A file of torch.save, or a name as in ``model.weights``.
        labels: Text file of class names, see `read_labels`; ``voc`` for detectors.

    Returns:
        Tensors of the backbone and the head, all float32; and the header. Of torchvision's networks, also those
        without a classifier are read: they are a backbone alone.

    Raises:
        WeightsError: The file is damaged or holds another network; the message names the nearest form and the first
            layer that differs.
    """
    where = str(source)
    if is_download(where):
        return _name_classes(*open_weights(where), where, labels)
    checkpoint = read_checkpoint(where)
    form = _nearest(checkpoint, where)
    if form.convert is None:
        try:
            tensors, header = convert_torchvision(checkpoint.tensors, where=Path(where).name)
        except (KeyError, IndexError, TypeError) as error:
            raise WeightsError(f"{where}: not a torchvision mobilenet_v2 ({error})") from None
        header.provenance["sha256"] = checkpoint.sha256
        return _name_classes(tensors, header, where, labels)
    imported = form.convert(checkpoint, where)
    classes = imported.classes
    if labels is not None:
        classes = _read_names(labels, imported)
    name, sha256 = Path(where).name, checkpoint.sha256
    header = make_header(imported, classes, imported.size, source=name, sha256=sha256, parts={}, trainable=True)
    return imported.tensors, header


def _nearest(checkpoint: Checkpoint, where: str) -> Form:
    """The form that most names are of."""
    counts = [sum(form.names.fullmatch(name) is not None for name in checkpoint.tensors) for form in FORMS]
    if 2 * max(counts) <= len(checkpoint.tensors):
        first = next(iter(checkpoint.tensors))
        known = "; ".join(form.name for form in FORMS)
        raise WeightsError(f"{where}: a state dict of no known form (it begins with '{first[:80]}'); known are {known}")
    return FORMS[counts.index(max(counts))]


def _read_names(labels: str | os.PathLike[str], imported: ImportedNetwork) -> list[str]:
    """Class names of a label file; every class must have one."""
    count = len(imported.classes)
    if not imported.private_background:
        return read_labels(labels, count)
    names = detector_names(labels, count)
    if "" in names:
        raise WeightsError(f"{labels}: has no name for class {names.index('') + 1} of {count}")
    return names


def _name_classes(
    tensors: dict[str, Tensor], header: Header, where: str, labels: str | os.PathLike[str] | None
) -> tuple[dict[str, Tensor], Header]:
    """Takes the class names of a label file, if there is one."""
    if labels is not None:
        if not header.classes:
            raise WeightsError(f"{where}: has no classifier that {labels} could name the classes of")
        header.classes = {task: read_labels(labels, len(names)) for task, names in header.classes.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, header
