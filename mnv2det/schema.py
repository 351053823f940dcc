"""The schema of a configuration: every key with its type, range, default and meaning.

Imports no torch, as `mnv2det.config` may not.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, get_type_hints

from omegaconf import MISSING
from pydantic import Field

from mnv2det.errors import ConfigError
from mnv2det.ranges import NonNegativeFloat, NonNegativeInt, OpenShare, PositiveFloat, PositiveInt, Share, convert

TORCHVISION = "torchvision:"  # what the names of torchvision's weights begin with
NAMED_WEIGHTS = {"imagenet": TORCHVISION + "IMAGENET1K_V1"}


def is_download(weights: str) -> bool:
    """Whether initial weights are named, so that they are downloaded, and are no file or folder."""
    return weights in NAMED_WEIGHTS or weights.startswith(TORCHVISION)


# How pictures come to the input size; see `mnv2det.structures.Preprocess`.
Fit = Literal["stretch", "letterbox", "pad", "crop"]
Sampling = Literal["centers", "corners"]

InputSize = Annotated[
    list[Annotated[int, Field(ge=32, le=8192)]],
    Field(min_length=2, max_length=2, description="two whole numbers from 32 to 8192, [height, width], e.g. [96, 96]"),
]
Mean = Annotated[list[Share], Field(min_length=3, max_length=3, description="three numbers from 0 to 1, R G B")]
Std = Annotated[list[PositiveFloat], Field(min_length=3, max_length=3, description="three numbers > 0, R G B")]
Scales = Annotated[
    list[Annotated[float, Field(ge=0.1, le=4)]],
    Field(min_length=1, description="numbers from 0.1 to 4, at least one"),
]


class BadData(Enum):
    """What happens at a broken image or annotation: ``stop`` ends the run, ``skip`` leaves it out and lists it."""

    stop = "stop"
    skip = "skip"


class Amp(Enum):
    """Mixed precision of the training step."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass
class Component:
    """A registered name and its keyword arguments."""

    name: str = MISSING
    args: dict[str, Any] = field(default_factory=dict)


def _component(name: str) -> Any:
    return field(default_factory=lambda: Component(name=name))


@dataclass
class ModelConfig:
    """Backbone, input and initial weights.

    Attributes:
        backbone: The network whose features the heads read.
        input_size: (H, W) in pixels.
        mean: Of R, G and B, in units of 0 ... 1; null takes what the weights were trained with, else 0.5.
        std: Of R, G and B, in the same units; null takes what the weights were trained with, else 0.5.
        fit: How pictures are brought to the input size; null takes what the weights were trained with,
            else ``stretch``.
        sampling: Which place of a picture a pixel of the resized one shows; null takes what a detector's weights
            were trained with, else ``centers``.
        weights: A safetensors file, a run folder, which means its best weights, or ``imagenet``, which downloads
            torchvision's (``torchvision:IMAGENET1K_V1``; ``_V2`` are others); null starts from random ones.
        freeze: Backbone layer up to which weights and batch-norm statistics stay fixed
            (``stem``, ``block3`` ...); null trains everything.
    """

    backbone: Component = _component("mobilenet_v2")
    input_size: InputSize = field(default_factory=lambda: [320, 320])
    mean: Mean | None = None
    std: Std | None = None
    fit: Fit | None = None
    sampling: Sampling | None = None
    weights: str | None = None
    freeze: str | None = None


@dataclass
class TaskConfig:
    """One head, the weight of its loss, and the evaluator that measures it."""

    weight: NonNegativeFloat = 1.0
    head: Component = field(default_factory=Component)
    evaluator: Component = field(default_factory=Component)


@dataclass
class DataConfig:
    """Data sets and loading.

    Attributes:
        root: Folder that data set paths are relative to and cannot leave; null reads the
            environment variable MNV2DET_DATA, else ``datasets``.
        train: Data set to learn from.
        val: Data set to measure on.
        augment: Training augmentation.
        batch_size: Images per batch and process.
        workers: Loader processes per training process.
        bad_data: What happens at a broken image or annotation.
    """

    root: str | None = None
    train: Component = field(default_factory=Component)
    val: Component = field(default_factory=Component)
    augment: Component = _component("ssd")
    batch_size: PositiveInt = 16
    workers: NonNegativeInt = 2
    bad_data: BadData = BadData.stop


@dataclass
class OptimConfig:
    """Optimizer and learning-rate schedule.

    Attributes:
        optimizer: Its ``lr`` is the peak rate.
        schedule: How the rate falls after the warm-up.
        warmup_steps: Steps in which the rate rises linearly to its peak.
        warmup_start: Share of the peak rate that the warm-up starts from.
        clip_norm: Largest norm of all gradients together; null does not clip.
        decay_norm_and_bias: Whether weight decay also acts on batch norm and biases.
        head_lr_factor: The heads' learning rate as a multiple of the backbone's.
    """

    optimizer: Component = _component("sgd")
    schedule: Component = _component("cosine")
    warmup_steps: NonNegativeInt = 0
    warmup_start: Share = 0.001
    clip_norm: PositiveFloat | None = None
    decay_norm_and_bias: bool = True
    head_lr_factor: NonNegativeFloat = 1.0


@dataclass
class TrainConfig:
    """The training loop.

    Attributes:
        epochs: Passes over the training set; give this or ``steps``, not both.
        steps: Optimizer steps of the whole run.
        accumulate: Batches whose gradients are summed into one step.
        amp: Mixed precision.
        channels_last: Memory format of images and weights.
        ema_decay: Decay of the running average of the weights, which is evaluated and kept in their place;
            null keeps no average.
        ema_warmup: Whether the average decays faster in its first steps: ``min(decay, (1 + n) / (10 + n))``
            at step n.
        eval_every: Epochs between evaluations; 0 evaluates only at the end.
        checkpoint_every: Steps between checkpoints, beside those at the end of every epoch.
        keep_checkpoints: How many of the newest checkpoints are kept: last.pt, last.1.pt ...
        skip_nonfinite: How many steps with a non-finite loss a run may leave out before it stops at one.
        log_every: Steps between lines in metrics.jsonl.
        log_to: Where these numbers go as well: ``tensorboard``, ``mlflow``, ``wandb``; extras of the same names.
        sync_bn: Whether batch-norm statistics are taken over all processes.
        uncertainty: Whether the weights of the tasks' losses are learned along with the model (Kendall et al.,
            arXiv 1705.07115, equation 10); ``tasks.NAME.weight`` is where they start.
        best: Metric that decides which weights are kept as best.safetensors, as ``task/metric``;
            null takes the main metric of the first task.
    """

    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    accumulate: PositiveInt = 1
    amp: Amp = Amp.fp32
    channels_last: bool = True
    ema_decay: OpenShare | None = None
    ema_warmup: bool = True
    eval_every: NonNegativeInt = 1
    checkpoint_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    skip_nonfinite: NonNegativeInt = 0
    log_every: PositiveInt = 10
    log_to: list[Literal["tensorboard", "mlflow", "wandb"]] = field(default_factory=list)
    sync_bn: bool = False
    uncertainty: bool = False
    best: str | None = None


@dataclass
class TestConfig:
    """How class probabilities of pixels are computed when segmentation is evaluated.

    Attributes:
        scales: Factors by which the input is scaled; the probabilities are averaged over all of them.
        flip: Whether the mirrored input is averaged in, too, at each scale.
    """

    scales: Scales = field(default_factory=lambda: [1.0])
    flip: bool = False


@dataclass
class Config:
    """A whole experiment."""

    seed: NonNegativeInt = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)


def check_values(config: Config, where: str) -> None:
    """Checks what OmegaConf does not: ranges, and what must or must not go together.

    Args:
        config: Of the right types.
        where: Name of its source, for messages.

    Raises:
        ConfigError: Names ``where``, the first wrong key, what was expected and what it holds.
    """
    _check_ranges(config, f"{where}: ")

    def require(holds: bool, key: str, expected: str, value: Any) -> None:
        if not holds:
            raise ConfigError(f"{where}: {key}: expected {expected}, got {value!r}")

    require(bool(config.tasks), "tasks", "at least one task", config.tasks)
    components = {"data.train": config.data.train, "data.val": config.data.val}
    for name, task in config.tasks.items():
        require(name.isidentifier(), f"tasks.{name}", "a name of letters, digits and _", name)
        components |= {f"tasks.{name}.head": task.head, f"tasks.{name}.evaluator": task.evaluator}
    for key, component in components.items():
        require(component.name not in ("", MISSING), f"{key}.name", "the name of a component", None)
    epochs, steps = config.train.epochs, config.train.steps
    require((epochs is None) != (steps is None), "train.epochs / train.steps", "exactly one of them", [epochs, steps])


def _check_ranges(section: Any, prefix: str) -> None:
    """Holds every value below a section to its annotation."""
    for name, annotation in annotations_of(section.__class__).items():
        value = getattr(section, name)
        if is_dataclass(value):
            _check_ranges(value, f"{prefix}{name}.")
        elif name == "tasks":
            for task, entry in value.items():
                _check_ranges(entry, f"{prefix}{name}.{task}.")
        elif isinstance(value, int | float | list):
            convert(annotation, value, f"{prefix}{name}")


@functools.cache
def annotations_of(section: type) -> dict[str, Any]:
    """Type and range of every key of a section of the schema."""
    return get_type_hints(section, include_extras=True)
