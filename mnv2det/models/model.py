"""The only model class: a backbone and one or more named heads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnv2det.config import ModelConfig, TaskConfig
from mnv2det.errors import ConfigError, WeightsError, near
from mnv2det.models.backbone import Backbone
from mnv2det.models.head import Dense, Head
from mnv2det.models.weights.files import Header, plain, read_weights
from mnv2det.models.windows import segment
from mnv2det.registry import BACKBONES, HEADS
from mnv2det.structures import Frame, Preprocess, Result, Target


class Model(nn.Module):
    """One backbone pass feeds every head.

    Args:
        backbone: Offers ``features``, ``forward(images, taps)`` and ``truncate(taps)``.
        heads: By task name.
        preprocess: How pictures become input.
        classes: Class names by task; their count is the heads' class count.
        spec: ``{"backbone": {name, args}, "heads": {task: {name, args}}}``, kept for the weight file.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        heads: Mapping[str, Head],
        *,
        preprocess: Preprocess,
        classes: Mapping[str, Sequence[str]],
        spec: Mapping[str, Any],
    ) -> None:
        super().__init__()
        if preprocess.fit == "crop" and any(head.class_key != "label" for head in heads.values()):
            raise ConfigError("model.fit: crop shows a part of the picture; only classes of whole pictures allow that")
        self.backbone: Backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.preprocess = preprocess
        self.classes = {task: list(names) for task, names in classes.items()}
        self.spec = spec
        self.taps = tuple(dict.fromkeys(tap for head in heads.values() for tap in head.taps))
        backbone.truncate(self.taps)
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(getattr(preprocess, key)).view(1, 3, 1, 1) * 255, persistent=False)
        self._frozen: list[nn.Module] = []

    def normalize(self, images: Tensor) -> Tensor:
        """Turns uint8 RGB (B, 3, H, W) into the float32 input that the weights expect."""
        return (images.float() - self.mean) / self.std

    def forward(self, images: Tensor) -> dict[str, dict[str, Tensor]]:
        """Raw tensors of every head.

        Args:
            images: float32 (B, 3, H, W), normalised.
        """
        features = self.backbone(images, self.taps)
        return {name: head(features) for name, head in self.heads.items()}

    def loss(
        self, raw: Mapping[str, Mapping[str, Tensor]], targets: Sequence[Target], weights: Mapping[str, float | Tensor]
    ) -> dict[str, Tensor]:
        """Every head's losses as ``task/name``, each times its task's weight; their sum is the loss."""
        return {
            f"{task}/{name}": value * weights.get(task, 1.0)
            for task, head in self.heads.items()
            for name, value in head.loss(raw[task], targets).items()  # type: ignore[operator]
        }

    @torch.no_grad()
    def predict(
        self, images: Tensor, frames: Sequence[Frame], *, scales: Sequence[float] = (1.0,), flip: bool = False
    ) -> dict[str, list[Result]]:
        """Results of every task from uint8 input.

        Args:
            images: uint8 (B, 3, H, W), RGB, brought to the input size as ``preprocess.fit`` says.
            frames: Where each picture lies in it; results are given in the pictures' own pixels.
            scales: Segmentation averages its probabilities over the input at these scales.
            flip: Whether it also looks at every scale mirrored.
        """
        if self.preprocess.fit == "pad" and len(images) > 1 and tuple(images.shape[-2:]) != self.preprocess.input_size:
            # by itself, so that what is found in a picture does not depend on its neighbours
            each = [
                self.predict(images[i : i + 1], frames[i : i + 1], scales=scales, flip=flip) for i in range(len(images))
            ]
            return {task: [result for one in each for result in one[task]] for task in self.heads}
        larger = False
        if self.preprocess.fit == "pad":
            height, width = map(max, self.preprocess.input_size, frames[0].used)
            images, larger = images[..., :height, :width], (height, width) != self.preprocess.input_size
        inputs = self.normalize(images)
        plain = tuple(scales) == (1.0,) and not flip and not larger
        found: dict[str, list[Result]] = {}
        if plain or not all(isinstance(head, Dense) for head in self.heads.values()):
            raw = self(inputs)
            found = {task: head.decode(raw[task], frames) for task, head in self.heads.items()}  # type: ignore[operator]
        if not plain:
            dense = {task: head for task, head in self.heads.items() if isinstance(head, Dense)}
            found |= segment(self, dense, inputs, frames, scales=scales, flip=flip)
        return {task: found[task] for task in self.heads}

    def freeze(self, upto: str) -> None:
        """Fixes weights and batch-norm statistics of the backbone's layers up to ``upto``.

        Raises:
            ConfigError: There is no such layer.
        """
        stages = self.backbone.stages()
        names = [name for name, _ in stages]
        if upto not in names:
            raise ConfigError(f"model.freeze: no backbone layer '{upto}'{near(upto, names)}")
        self._frozen = [stage for _, stage in stages[: names.index(upto) + 1]]
        for stage in self._frozen:
            stage.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Model:
        """As in torch, but frozen layers stay in eval mode."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        return self

    def header(self, **facts: Any) -> Header:
        """What a weight file of this model must say."""
        return Header(
            backbone=dict(self.spec["backbone"]),
            heads={task: dict(head) for task, head in self.spec["heads"].items()},
            classes=self.classes,
            preprocess=self.preprocess,
            **facts,
        )


def pick_device(name: str | None) -> torch.device:
    """The device of that name; None takes CUDA where there is one.

    Raises:
        ConfigError: There is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name or ("cuda" if count else "cpu"))
    except RuntimeError:
        raise ConfigError(f"device '{name}': expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        raise ConfigError(f"device '{name}': not on this machine, which has cpu and {count} CUDA devices")
    return device


def weights_of(source: str | os.PathLike[str]) -> Path:
    """A weight file itself, or that of a run folder.

    Raises:
        WeightsError: The folder has none yet.
    """
    path = Path(source)
    if not path.is_dir():
        return path
    if not (path / "best.safetensors").is_file():
        raise WeightsError(f"{source}: no best.safetensors in this folder; has the run been evaluated yet?")
    return path / "best.safetensors"


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
    problems = list(BACKBONES.bind(backbone["name"], backbone["args"], place="model.backbone")[1])
    for task, head in heads.items():
        problems += HEADS.bind(head["name"], head["args"], place=f"tasks.{task}.head")[1]
    if problems:
        raise ConfigError("; ".join(problems))
    trunk = BACKBONES.build(backbone["name"], backbone["args"], place="model.backbone")
    built = {
        task: HEADS.build(
            head["name"], head["args"], trunk.features, place=f"tasks.{task}.head", classes=len(classes[task])
        )
        for task, head in heads.items()
    }
    # with every default spelled out, so that weight files outlive a changed one
    spec = {
        "backbone": {"name": backbone["name"], "args": BACKBONES.complete(backbone["name"], backbone["args"])},
        "heads": {task: {"name": h["name"], "args": HEADS.complete(h["name"], h["args"])} for task, h in heads.items()},
    }
    return Model(trunk, built, preprocess=preprocess, classes=classes, spec=spec)


def from_config(
    model: ModelConfig, tasks: Mapping[str, TaskConfig], classes: Mapping[str, Sequence[str]]
) -> tuple[Model, list[str]]:
    """Builds what a config describes, with its initial weights.

    Padding, batch-norm epsilon and width come from the weights' file; the config may repeat them
    but not contradict them. Mean, std and the structure of a head that the file has too come from
    it, unless the config states others.

    Returns:
        The model, and lines to log on what was loaded and what was left out.

    Raises:
        ConfigError: A component or argument is wrong, or contradicts the weights.
        WeightsError: The weights cannot be read or do not fit.
    """
    from mnv2det.models.weights.loading import head_source, load_into, open_weights

    tensors, header = open_weights(model.weights) if model.weights else ({}, None)
    backbone: dict[str, Any] = {"name": model.backbone.name, "args": dict(model.backbone.args)}
    inherited_fit: list[str] = []
    mean, std, fit = model.mean, model.std, model.fit.value if model.fit else None
    if header is not None:
        if not header.trainable:
            raise WeightsError(
                f"{model.weights}: for inference only, its batch norm is folded;"
                " import it again with --images FOLDER to make it trainable"
            )
        backbone["args"] = _agree(model, header)
        mean, std = mean or list(header.preprocess.mean), std or list(header.preprocess.std)
        kinds = {HEADS.get(part.head.name, place=f"tasks.{task}.head").class_key for task, part in tasks.items()}
        # what shows the middle of a picture alone is no way to see all of its objects
        theirs_fits = kinds == {"label"} or header.preprocess.fit != "crop"
        if fit is None and theirs_fits and header.preprocess.fit != Preprocess.fit:
            inherited_fit = [
                f"pictures are brought to the input's size by '{header.preprocess.fit}', as {model.weights} says"
            ]
        fit = fit or (header.preprocess.fit if theirs_fits else None)
    preprocess = Preprocess(
        (model.input_size[0], model.input_size[1]),
        tuple(mean or Preprocess.mean),  # type: ignore[arg-type]
        tuple(std or Preprocess.std),  # type: ignore[arg-type]
        fit or Preprocess.fit,  # type: ignore[arg-type]
    )
    heads = {}
    for task, part in tasks.items():
        source = head_source(task, part.head.name, header)
        theirs = header.heads[source]["args"] if header and source else {}
        kind = HEADS.get(part.head.name, place=f"tasks.{task}.head")
        inherited = {key: theirs[key] for key in kind.structure if key in theirs}
        heads[task] = {"name": part.head.name, "args": {**inherited, **part.head.args}}
        if source and header and "output_stride" in header.backbone["args"]:
            backbone["args"].setdefault("output_stride", header.backbone["args"]["output_stride"])
    built = assemble(backbone, heads, classes=classes, preprocess=preprocess)
    notes = load_into(built, tensors, header, where=str(model.weights)) if header is not None else []
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
    """Rebuilds the model of one of our weight files, ready to predict.

    Args:
        path: The file.
        backbone: Arguments that the same weights allow to differ: ``output_stride``.
        heads: By task, arguments to use instead of the file's (thresholds, say).
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
    """The arguments given for a head, which must not be others than the weights' in its structure."""
    args = (given or {}).get(task, {})
    for key in HEADS.get(head["name"], place=f"tasks.{task}.head").structure:
        if key in args and key in head["args"] and plain(args[key]) != plain(head["args"][key]):
            raise ConfigError(
                f"tasks.{task}.head.args.{key}: {plain(args[key])}, but {path} has {plain(head['args'][key])};"
                " leave it out to take the weights'"
            )
    return args


def _agree(model: ModelConfig, header: Header) -> dict[str, Any]:
    """The weights' backbone arguments under the config's; a contradiction is an error."""
    if header.backbone["name"] != model.backbone.name:
        raise ConfigError(
            f"model.backbone.name: '{model.backbone.name}', but {model.weights} holds '{header.backbone['name']}'"
        )
    args = {
        key: header.backbone["args"][key]
        for key in ("width", "padding", "norm_eps", "expansion", "act", "bottleneck_act", "shortcut")
        if key in header.backbone["args"]
    }
    for key, value in args.items():
        given = model.backbone.args.get(key, value)
        if given != value:
            raise ConfigError(
                f"model.backbone.args.{key}: {given!r}, but {model.weights} was trained with {value!r}; leave it out"
            )
    return {**args, **model.backbone.args}
