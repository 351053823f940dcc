"""The only model class: a backbone, and one or more heads by the names of their tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mnv2det.errors import ConfigError, near
from mnv2det.models.backbone import Backbone
from mnv2det.models.head import Dense, Head
from mnv2det.models.weight_file import Header
from mnv2det.models.windows import segment
from mnv2det.structures import Frame, Preprocess, Target, TaskResult


class Model(nn.Module):
    """A backbone whose features are computed once for all heads.

    Args:
        backbone: It is truncated to the layers that the heads need.
        heads: By task name.
        preprocess: How pictures become input.
        classes: Class names by task, as many as the head has classes.
        spec: ``{"backbone": {name, args}, "heads": {task: {name, args}}}``, for the weight file.

    Raises:
        ConfigError: Pictures are cropped, and a head needs all of them.
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
        if preprocess.sampling != Preprocess.sampling and any(head.target_key == "mask" for head in heads.values()):
            raise ConfigError(f"model.sampling: masks need centers, {preprocess.sampling} is for detectors alone")
        if preprocess.fit == "crop" and any(head.target_key != "label" for head in heads.values()):
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
        """Computes the raw tensors of every head.

        Args:
            images: float32 (B, 3, H, W), normalised.
        """
        features = self.backbone(images, self.taps)
        return {name: head(features) for name, head in self.heads.items()}

    def loss(
        self, raw: Mapping[str, Mapping[str, Tensor]], targets: Sequence[Target], weights: Mapping[str, float | Tensor]
    ) -> dict[str, Tensor]:
        """Computes all losses as ``task/name``, each times the weight of its task; their sum is the loss."""
        return {
            f"{task}/{name}": value * weights.get(task, 1.0)
            for task, head in self.heads.items()
            for name, value in head.loss(raw[task], targets).items()  # type: ignore[operator]
        }

    @torch.no_grad()
    def predict(
        self, images: Tensor, frames: Sequence[Frame], *, scales: Sequence[float] = (1.0,), flip: bool = False
    ) -> dict[str, list[TaskResult]]:
        """Computes the results of every task, in the pixels of the original pictures.

        Args:
            images: uint8 (B, 3, H, W), RGB, brought to the input size as ``preprocess.fit`` says.
            frames: Where each picture lies in the input.
            scales: Scales of the input over which segmentation averages its probabilities.
            flip: Whether segmentation averages over the mirrored pictures as well.
        """
        if self.preprocess.fit == "pad" and len(images) > 1 and tuple(images.shape[-2:]) != self.preprocess.input_size:
            # one by one, so that the results of a picture do not depend on the others of its batch
            pictures = [
                self.predict(images[i : i + 1], frames[i : i + 1], scales=scales, flip=flip) for i in range(len(images))
            ]
            return {task: [result for results in pictures for result in results[task]] for task in self.heads}
        larger = False
        if self.preprocess.fit == "pad":
            height, width = map(max, self.preprocess.input_size, frames[0].used)
            images, larger = images[..., :height, :width], (height, width) != self.preprocess.input_size
        inputs = self.normalize(images)
        single_view = tuple(scales) == (1.0,) and not flip and not larger
        results: dict[str, list[TaskResult]] = {}
        if single_view or not all(isinstance(head, Dense) for head in self.heads.values()):
            raw = self(inputs)
            results = {task: head.decode(raw[task], frames) for task, head in self.heads.items()}  # type: ignore[operator]
        if not single_view:
            size = (inputs.shape[-2], inputs.shape[-1])
            window = self.preprocess.input_size if self.preprocess.fit == "pad" else size
            results |= segment(self._probabilities, inputs, frames, window=window, scales=scales, flip=flip)
        return {task: results[task] for task in self.heads}

    def _probabilities(self, inputs: Tensor) -> dict[str, Tensor]:
        """Class probabilities (B, K, H, W) of every segmentation task, at the size of the input."""
        dense = {task: head for task, head in self.heads.items() if isinstance(head, Dense)}
        features = self.backbone(inputs, tuple(dict.fromkeys(tap for head in dense.values() for tap in head.taps)))
        size = (inputs.shape[-2], inputs.shape[-1])
        return {task: head.scores(head(features), size) for task, head in dense.items()}

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
        """Sets the mode as torch does, but frozen layers stay in eval mode."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        return self

    def header(self, **facts: Any) -> Header:
        """Makes the header of a weight file of this model; ``facts`` are further attributes of it."""
        return Header(
            backbone=dict(self.spec["backbone"]),
            heads={task: dict(head) for task, head in self.spec["heads"].items()},
            classes=self.classes,
            preprocess=self.preprocess,
            **facts,
        )


def pick_device(name: str | None) -> torch.device:
    """Finds a device by its name; None takes CUDA if there is any.

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
