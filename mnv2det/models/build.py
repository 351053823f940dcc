"""Models from configurations and weight files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnv2det.config import ModelConfig, TaskConfig
from mnv2det.errors import ConfigError, WeightsError
from mnv2det.io import RunFolder
from mnv2det.models.loading import head_source, load_into, open_weights
from mnv2det.models.model import Model
from mnv2det.models.releases import fetched, is_release
from mnv2det.models.weight_file import Header, plain, read_weights
from mnv2det.registry import BACKBONES, HEADS, ComponentArgs, bind_all
from mnv2det.schema import is_download
from mnv2det.structures import Preprocess

# arguments of a backbone that its weights decide
FROM_WEIGHTS = (
    "width", "divisor", "last_channels", "padding", "dilate",
    "norm_eps", "expansion", "act", "bottleneck_act", "shortcut",
)  # fmt: skip


def weights_of(source: str | os.PathLike[str]) -> Path:
    """Finds the weight file of a run folder; a weight file is its own.

    Args:
        source: A run folder or a file, at whose start ``~`` stands for the home folder; or the name of a release.

    Raises:
        WeightsError: The folder has none yet, or the release was not fetched.
    """
    if is_release(source):
        return fetched(str(source))
    source = os.path.expanduser(source)
    if not os.path.isdir(source):
        return Path(source)
    best = RunFolder(source).best
    if not best.is_file():
        raise WeightsError(f"{source}: no {best.name} in this folder; has the run been evaluated yet?")
    return best


def assemble(
    backbone: Mapping[str, Any],
    heads: Mapping[str, Mapping[str, Any]],
    *,
    classes: Mapping[str, Sequence[str]],
    preprocess: Preprocess,
) -> Model:
    """Builds a model with fresh weights.

    Args:
        backbone: ``{name, args}``.
        heads: Task name to ``{name, args}``.
        classes: Task name to class names.
        preprocess: How pictures become input.

    Raises:
        ConfigError: A component or argument is wrong; all problems in one message.
    """
    backbone_args, *head_args = bind_all(
        [
            ComponentArgs(BACKBONES, backbone["name"], backbone["args"], "model.backbone"),
            *(ComponentArgs(HEADS, head["name"], head["args"], f"tasks.{task}.head") for task, head in heads.items()),
        ]
    )
    trunk = BACKBONES.get(backbone["name"])(**backbone_args)
    # with every default spelled out, so that weight files outlive a changed one
    spec = {"backbone": _spelled_out(backbone["name"], backbone_args), "heads": {}}
    built = {}
    for (task, head), args in zip(heads.items(), head_args, strict=True):
        built[task] = HEADS.get(head["name"])(trunk.features, classes=len(classes[task]), **args)
        spec["heads"][task] = _spelled_out(head["name"], args)
    return Model(trunk, built, preprocess=preprocess, classes=classes, spec=spec)


def _spelled_out(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """A component as a weight file's header states it."""
    return {"name": name, "args": {key: plain(value) for key, value in args.items()}}


def from_config(
    model: ModelConfig, tasks: Mapping[str, TaskConfig], classes: Mapping[str, Sequence[str]]
) -> tuple[Model, list[str]]:
    """Builds the model that a config describes, with its initial weights.

    Padding, batch-norm epsilon and width come from the weight file; the config may repeat them
    but not contradict them. Mean, std and the architecture of a head that the file has as well come
    from the file, unless the config states others. A run folder as ``model.weights`` means its best weights.

    Returns:
        The model, and lines to log on what was loaded and what was left out.

    Raises:
        ConfigError: A component or argument is wrong, or contradicts the weights.
        WeightsError: The weights cannot be read or do not fit.
    """
    if model.weights and not is_download(model.weights):
        model = dataclasses.replace(model, weights=str(weights_of(model.weights)))
    tensors, header = open_weights(model.weights) if model.weights else ({}, None)
    backbone: dict[str, Any] = {"name": model.backbone.name, "args": dict(model.backbone.args)}
    inherited_fit: list[str] = []
    mean, std, fit, sampling = model.mean, model.std, model.fit, model.sampling
    if header is not None:
        if not header.trainable:
            raise WeightsError(
                f"{model.weights}: for inference only, its batch norm is folded;"
                " import it again with --images FOLDER to make it trainable"
            )
        backbone["args"] = _agree(model, header)
        mean, std = mean or list(header.preprocess.mean), std or list(header.preprocess.std)
        kinds = {HEADS.get(part.head.name, place=f"tasks.{task}.head").target_key for task, part in tasks.items()}
        # a crop does not show all objects of a picture
        theirs_fits = kinds == {"label"} or header.preprocess.fit != "crop"
        if fit is None and theirs_fits and header.preprocess.fit != Preprocess.fit:
            inherited_fit = [
                f"pictures are brought to the input's size by '{header.preprocess.fit}', as {model.weights} says"
            ]
        fit = fit or (header.preprocess.fit if theirs_fits else None)
        if kinds == {"labels"}:
            sampling = sampling or header.preprocess.sampling
    preprocess = Preprocess(
        (model.input_size[0], model.input_size[1]),
        tuple(mean or Preprocess.mean),  # type: ignore[arg-type]
        tuple(std or Preprocess.std),  # type: ignore[arg-type]
        fit or Preprocess.fit,
        sampling or Preprocess.sampling,
    )
    heads = {}
    for task, part in tasks.items():
        source = head_source(task, part.head.name, header)
        theirs = header.heads[source]["args"] if header and source else {}
        kind = HEADS.get(part.head.name, place=f"tasks.{task}.head")
        inherited = {key: theirs[key] for key in kind.architecture_args if key in theirs}
        if any(plain(part.head.args[key]) != plain(theirs[key]) for key in inherited.keys() & part.head.args.keys()):
            inherited = {}  # it is another head, which starts anew
        heads[task] = {"name": part.head.name, "args": {**inherited, **part.head.args}}
        if source and header and "output_stride" in header.backbone["args"]:
            backbone["args"].setdefault("output_stride", header.backbone["args"]["output_stride"])
    built = assemble(backbone, heads, classes=classes, preprocess=preprocess)
    stated = {task: part.head.args for task, part in tasks.items()}
    notes = load_into(built, tensors, header, where=str(model.weights), stated=stated) if header is not None else []
    if model.freeze:
        if header is None:
            raise ConfigError("model.freeze: would keep random weights; name model.weights, or leave it out")
        built.freeze(model.freeze)
    return built, inherited_fit + notes


def from_file(
    path: str,
    *,
    backbone: Mapping[str, Any] | None = None,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
    input_size: tuple[int, int] | None = None,
) -> tuple[Model, Header]:
    """Rebuilds the model of a weight file, in evaluation mode.

    Args:
        path: The file.
        backbone: Arguments in place of the file's that its weights allow: ``output_stride``.
        heads: By task, arguments in place of the file's, such as thresholds.
        input_size: (H, W) instead of the file's.

    Raises:
        ConfigError: An argument contradicts the weights.
        WeightsError: The file cannot be read, or its tensors do not fit its own header.
    """
    tensors, header = read_weights(path)
    if not header.heads:
        raise WeightsError(f"{path}: holds a backbone but no head; use it as model.weights to train from")
    try:
        trunk = {"name": header.backbone["name"], "args": {**header.backbone["args"], **(backbone or {})}}
        parts = {
            task: {"name": head["name"], "args": {**head["args"], **_allowed(path, task, head, heads)}}
            for task, head in header.heads.items()
        }
        preprocess = dataclasses.replace(header.preprocess, input_size=input_size or header.preprocess.input_size)
        model = assemble(trunk, parts, classes=header.classes, preprocess=preprocess)
        model.load_state_dict(tensors)
    except (ConfigError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if heads and isinstance(error, ConfigError):
            raise
        raise WeightsError(f"{path}: header and tensors disagree: {' '.join(str(error).split())[:300]}") from None
    return model.eval(), header


def _allowed(
    path: str, task: str, head: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]] | None
) -> Mapping[str, Any]:
    """The arguments given for a head, which must not contradict the architecture of the weights."""
    args = (given or {}).get(task, {})
    for key in HEADS.get(head["name"], place=f"tasks.{task}.head").architecture_args:
        if key in args and key in head["args"] and plain(args[key]) != plain(head["args"][key]):
            raise ConfigError(
                f"tasks.{task}.head.args.{key}: {plain(args[key])}, but {path} has {plain(head['args'][key])};"
                " leave it out to take the weights'"
            )
    return args


def _agree(model: ModelConfig, header: Header) -> dict[str, Any]:
    """The backbone arguments of the config and the weights together; a contradiction is an error."""
    if header.backbone["name"] != model.backbone.name:
        raise ConfigError(
            f"model.backbone.name: '{model.backbone.name}', but {model.weights} holds '{header.backbone['name']}'"
        )
    args = {key: header.backbone["args"][key] for key in FROM_WEIGHTS if key in header.backbone["args"]}
    for key, value in args.items():
        given = model.backbone.args.get(key, value)
        if given != value:
            raise ConfigError(
                f"model.backbone.args.{key}: {given!r}, but {model.weights} was trained with {value!r}; leave it out"
            )
    return {**args, **model.backbone.args}
