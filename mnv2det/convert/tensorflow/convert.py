"""Converts files of TensorFlow and TensorFlow.js: graphs, saved models and checkpoints of the authors' networks."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor

from mnv2det.convert.labels import detector_names, read_labels
from mnv2det.convert.network import ImportedNetwork, make_header
from mnv2det.convert.tensorflow import classifier, deeplab, ssdlite
from mnv2det.convert.tensorflow.checkpoint import read_checkpoint
from mnv2det.convert.tensorflow.folded import name_folded
from mnv2det.convert.tensorflow.graph_def import read_graph
from mnv2det.convert.tensorflow.keras import is_keras, name_as_slim
from mnv2det.convert.tensorflow.paths import GRAPHS
from mnv2det.convert.tensorflow.pipeline import read_pipeline
from mnv2det.convert.tensorflow.tfjs import read_tfjs
from mnv2det.convert.tensorflow.variables import Variables
from mnv2det.errors import WeightsError
from mnv2det.models.weight_file import Header

SAVED_VARIABLES = "variables/variables"  # of a saved model that is not frozen
CLASS_ROWS = re.compile(r"heads\.det\.class_predictors\.\d+(\.1)?\.(weight|bias)")
PUBLISHED_SIZES = {"det": (300, 300), "seg": (513, 513), "cls": (224, 224)}  # where the file states none


def convert_tensorflow(
    source: str | os.PathLike[str], *, labels: str | os.PathLike[str] | None = None
) -> tuple[dict[str, Tensor], Header]:
    """Reads an SSD or SSDLite of the Object Detection API, a classifier of slim or Keras, or a Mobile DeepLabv3.

    Args:
        source: A frozen graph, a saved model's folder or file, a checkpoint's prefix or any of its files, a
            ``model.json`` of TensorFlow.js, or a folder with one of these.
        labels: Class names, see `read_labels`; classes without a name are left out.

    Returns:
        Tensors of the backbone and the head, and the header. It says whether batch norm is as it was trained, so that
        training can go on from it, or was folded into the convolutions (see `reestimate`).

    Raises:
        WeightsError: A file is missing or damaged, or holds another network; the message names the first layer that
            differs.
    """
    where = str(source)
    variables = read_variables(Path(source))
    variables.arrays = name_folded(variables.arrays, where)
    if is_keras(variables.arrays):
        variables.arrays = name_as_slim(variables, where)
    imported = _map(variables, where)
    size = variables.input_size() or PUBLISHED_SIZES[imported.task]
    classes = imported.classes
    if labels is not None and imported.task == "det":
        classes = _name_classes(imported.tensors, detector_names(labels, len(classes)))
    elif labels is not None:
        classes = read_labels(labels, len(classes))
    return imported.tensors, make_header(
        imported,
        classes,
        size,
        source=variables.source,
        sha256=variables.sha256,
        parts=variables.parts,
        trainable=not variables.folded,
    )


def read_variables(path: Path) -> Variables:
    """Reads whatever file of TensorFlow a path means; arguments and errors as those of `convert_tensorflow`."""
    if path.is_dir():
        found = next((path / name for name in GRAPHS if (path / name).is_file()), None)
        path = found or _newest_checkpoint(path)
    if path.suffix == ".json":
        return read_tfjs(path)
    if path.suffix == ".pb":
        variables = read_graph(path)
        if path.name == "saved_model.pb" and (path.parent / f"{SAVED_VARIABLES}.index").is_file():
            stored = read_checkpoint(path.parent / SAVED_VARIABLES)
            stored.arrays = {**variables.arrays, **stored.arrays}
            stored.kinds, stored.inputs = variables.kinds, variables.inputs
            return stored
        return variables
    name = path.name.removesuffix(".index").removesuffix(".meta").partition(".data-")[0]
    variables = read_checkpoint(path.with_name(name))
    variables.pipeline = read_pipeline(path.parent)
    return variables


def _newest_checkpoint(folder: Path) -> Path:
    """The prefix of the checkpoint in a folder that was trained longest."""
    steps = []
    for index in folder.glob("*.index"):
        prefix = index.name.removesuffix(".index")
        step = prefix.rpartition("-")[2]
        steps.append((int(step) if step.isdecimal() and len(step) < 12 else 0, prefix))
    if not steps:
        raise WeightsError(f"{folder}: neither {', '.join(GRAPHS)} nor a checkpoint in it")
    return folder / max(steps)[1]


def _map(variables: Variables, where: str) -> ImportedNetwork:
    """The network that the names are of."""
    names = variables.arrays
    if any(name.startswith(tuple(f"{scope}/" for scope in ssdlite.SCOPES)) for name in names):
        return ssdlite.map_ssdlite(variables, where)
    if f"{deeplab.LOGITS}/weights" in names:
        return deeplab.map_deeplab(variables, where)
    if any(f"{scope}/{classifier.LOGITS}/weights" in names for scope in classifier.SCOPES):
        return classifier.map_classifier(variables, where)
    scopes = sorted({"/".join(name.split("/")[:2]) for name in names if name.endswith("weights")})
    found = ", ".join(scopes[:4]) if scopes else f"{len(names)} tensors, none of them weights"
    raise WeightsError(
        f"{where}: {variables.format}, but neither an SSD, a classifier nor a DeepLab on MobileNet with"
        f" TensorFlow's names (it has {found[:200]})"
    )


def _name_classes(tensors: dict[str, Tensor], names: list[str]) -> list[str]:
    """Leaves out the rows of classes without a name, and returns the names of the others."""
    kept = torch.tensor([0, *(number for number, name in enumerate(names, 1) if name)])
    for key, rows in tensors.items():
        if CLASS_ROWS.fullmatch(key):
            tensors[key] = rows.unflatten(0, (-1, len(names) + 1))[:, kept].flatten(0, 1)
    return [name for name in names if name]
