"""Initial weights: where they come from, and how much of them fits a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mnv2det.errors import WeightsError, near
from mnv2det.models.head import ClassRows
from mnv2det.models.model import Model
from mnv2det.models.torchvision_weights import download_torchvision
from mnv2det.models.weight_file import Header, plain, read_weights
from mnv2det.schema import is_download


def open_weights(source: str) -> tuple[dict[str, Tensor], Header]:
    """Reads weights from a weight file or from torchvision.

    Args:
        source: A safetensors file, or a name (``imagenet``, ``torchvision:IMAGENET1K_V2``), which torchvision downloads
            into its cache if it is not there yet.

    Raises:
        WeightsError: There are no such weights, or they are damaged.
    """
    return download_torchvision(source) if is_download(source) else read_weights(source)


def head_source(task: str, kind: str, header: Header | None) -> str | None:
    """Finds the task of a weight file whose head a new head can start from.

    Args:
        task: Of the new head; its namesake comes first.
        kind: Registered name of the new head.
        header: Of the weight file, None if there is none.

    Returns:
        The task, or None if the file has no head of this kind, or several and none of this task.
    """
    if header is None:
        return None
    same_kind = [name for name, head in header.heads.items() if head["name"] == kind]
    return task if task in same_kind else same_kind[0] if len(same_kind) == 1 else None


def load_into(
    model: Model,
    tensors: Mapping[str, Tensor],
    header: Header,
    *,
    where: str,
    stated: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[str]:
    """Copies what fits: the whole backbone, and heads of the same kind and architecture.

    With another class list a head keeps its layers. In those that have a row per class, classes of
    the same name keep theirs, and the others start anew.

    Args:
        model: With fresh weights.
        tensors: As in a weight file.
        header: Its header.
        where: Name of the source, for messages.
        stated: By task, the head's arguments that the user gave, which are named first where they differ.

    Returns:
        Lines that say what was loaded and what was left out.

    Raises:
        WeightsError: A tensor of the backbone is missing or of another shape; names them.
    """
    own: dict[str, Tensor] = model.state_dict()
    names = [name for name in own if name.startswith("backbone.")]
    notes = []
    # a segmenter's file ends before the last convolution, which a detector reads
    if not any(name.startswith("backbone.last.") for name in tensors):
        fresh = [name for name in names if name.startswith("backbone.last.")]
        names = [name for name in names if name not in fresh]
        notes += [f"{where}: backbone.last starts from random weights (the file ends before it)"] if fresh else []
    if wrong := [problem for name in names if (problem := _misfit(name, own[name], tensors))]:
        raise WeightsError(f"{where}: {len(wrong)} of {len(names)} backbone tensors do not fit: {'; '.join(wrong[:3])}")
    chosen = {name: tensors[name] for name in names}
    notes.append(f"{where}: loaded backbone ({len(names)} tensors)")
    used = set()
    for task in model.heads:
        source = head_source(task, model.spec["heads"][task]["name"], header)
        loaded, note = _head_tensors(model, task, source, own, tensors, header, (stated or {}).get(task, {}))
        chosen |= loaded
        used |= {source} if loaded else set()
        notes.append(f"{where}: {note}")
    if left := sorted(f"heads.{task}" for task in header.heads if task not in used):
        notes.append(f"{where}: left out {', '.join(left)}")
    model.load_state_dict({**own, **chosen})
    return notes


def _head_tensors(
    model: Model,
    task: str,
    source: str | None,
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    header: Header,
    stated: Mapping[str, Any],
) -> tuple[dict[str, Tensor], str]:
    """The tensors that a head starts from, by the names of the model, and a line that says so."""
    head: Any = model.heads[task]
    anew = f"heads.{task} starts from random weights"
    if source is None:
        return {}, f"{anew} (the file has no head of its kind)"
    kept, theirs = model.spec["heads"][task]["args"], header.heads[source]["args"]
    for key in sorted(head.architecture_args, key=lambda key: key not in stated):
        if key in theirs and plain(kept[key]) != plain(theirs[key]):
            return {}, f"{anew} (its {key} is {plain(kept[key])}, the file's {plain(theirs[key])})"
    prefix, names, old = f"heads.{task}.", model.classes[task], header.classes[source]
    rows = head.class_rows() if names != old else {}
    loaded: dict[str, Tensor] = {}
    fresh: set[str] = set()
    for name in (name.removeprefix(prefix) for name in own if name.startswith(prefix)):
        value, their_name = own[prefix + name], f"heads.{source}.{name}"
        if their_name not in tensors and name.startswith(head.optional_layers):
            layer, _, rest = name.partition(".")
            fresh.add(layer)
            if rest == "1.weight":
                # what the layer adds starts from zero, so that at first the head works as before
                loaded[prefix + name] = torch.zeros_like(value)
            continue
        if name in rows and their_name in tensors:
            loaded[prefix + name] = _keep_rows(value, tensors[their_name], rows[name], names, old)
        elif problem := _misfit(their_name, value, tensors):
            return {}, f"{anew} ({problem})"
        else:
            loaded[prefix + name] = tensors[their_name]
    but = f"; {', '.join(sorted(fresh))} starts from fresh weights" if fresh else ""
    if names == old:
        return loaded, f"loaded heads.{task} ({len(loaded)} tensors){but}"
    same = [name for name in names if name in old]
    kept_names = f"{', '.join(same[:8])}{' ...' if len(same) > 8 else ''} keep theirs" if same else "none keeps its own"
    count = len(names) - len(same)
    return loaded, f"loaded heads.{task} but for its class rows: {count} of {len(names)} start anew, {kept_names}{but}"


def _keep_rows(own: Tensor, theirs: Tensor, rows: ClassRows, names: Sequence[str], old: Sequence[str]) -> Tensor:
    """Fresh rows, but private ones and those of classes that both lists name are the file's."""
    rest = tuple(own.shape[1:])
    if tuple(theirs.shape) != (rows.groups * (rows.private + len(old)), *rest):
        return own
    values = own.clone().view(rows.groups, rows.private + len(names), *rest)
    stored = theirs.to(own.dtype).view(rows.groups, rows.private + len(old), *rest)
    values[:, : rows.private] = stored[:, : rows.private]
    common = [(names.index(name), old.index(name)) for name in names if name in old]
    if common:
        target, source = (torch.tensor(column) + rows.private for column in zip(*common, strict=True))
        values[:, target] = stored[:, source]
    return values.view(-1, *rest)


def _misfit(name: str, own: Tensor, tensors: Mapping[str, Tensor]) -> str:
    if name not in tensors:
        return f"'{name}' is missing{near(name, tensors) if name.startswith('backbone') and len(tensors) < 400 else ''}"
    if tensors[name].shape != own.shape:
        return f"'{name}' is {list(tensors[name].shape)}, expected {list(own.shape)}"
    return ""
