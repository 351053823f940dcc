"""The schema of a configuration: every key with its type, default and meaning.

Imports no torch, as `mnv2det.config` may not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from mnv2det.errors import ConfigError


class BadData(Enum):
    """What a broken image or annotation does: ``stop`` the run, or ``skip`` it and count it."""

    stop = "stop"
    skip = "skip"


class Amp(Enum):
    """Mixed precision of the training step."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Fit(Enum):
    """How pictures come to the input size; see `mnv2det.structures.Preprocess`."""

    stretch = "stretch"
    letterbox = "letterbox"
    pad = "pad"
    crop = "crop"


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
        backbone: What the heads read from.
        input_size: (H, W) in pixels.
        mean: RGB in 0 ... 1; null takes what the weights were trained with, else 0.5.
        std: Likewise.
        fit: How pictures come to the input size; null takes what the weights were trained with,
            else ``stretch``.
        weights: A safetensors file or ``torchvision:IMAGENET1K_V1``; null starts from random ones.
        freeze: Backbone layer up to which weights and batch-norm statistics stay fixed
            (``stem``, ``block3`` ...); null trains everything.
    """

    backbone: Component = _component("mobilenet_v2")
    input_size: list[int] = field(default_factory=lambda: [320, 320])
    mean: list[float] | None = None
    std: list[float] | None = None
    fit: Fit | None = None
    weights: str | None = None
    freeze: str | None = None


@dataclass
class TaskConfig:
    """One head, the weight of its loss, and how it is measured."""

    weight: float = 1.0
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
        batch_size: Images per step and process.
        workers: Loader processes per training process.
        bad_data: What a broken image or annotation does.
    """

    root: str | None = None
    train: Component = field(default_factory=Component)
    val: Component = field(default_factory=Component)
    augment: Component = _component("ssd")
    batch_size: int = 16
    workers: int = 2
    bad_data: BadData = BadData.stop


@dataclass
class OptimConfig:
    """Optimizer and learning-rate schedule.

    Attributes:
        optimizer: Its ``lr`` is the peak rate.
        schedule: Shape of the rate after the warm-up.
        warmup_steps: Steps of linear increase from ``warmup_start`` x lr.
        warmup_start: Share of the peak rate that the warm-up starts from.
        clip_norm: Largest norm of all gradients together; null does not clip.
        decay_norm_and_bias: Whether weight decay also acts on batch norm and biases.
        head_lr_factor: Heads learn with this multiple of the rate.
    """

    optimizer: Component = _component("sgd")
    schedule: Component = _component("cosine")
    warmup_steps: int = 0
    warmup_start: float = 0.001
    clip_norm: float | None = None
    decay_norm_and_bias: bool = True
    head_lr_factor: float = 1.0


@dataclass
class TrainConfig:
    """The loop.

    Attributes:
        epochs: Passes over the training set; give this or ``steps``.
        steps: Optimizer steps in all.
        accumulate: Batches whose gradients are summed into one step.
        amp: Mixed precision.
        channels_last: Memory format of images and weights.
        ema_decay: Decay of the weight average that is evaluated and kept; null keeps none.
        ema_warmup: Whether young averages decay faster, ``min(decay, (1 + n) / (10 + n))``.
        eval_every: Epochs between evaluations; 0 evaluates only at the end.
        checkpoint_every: Steps between checkpoints, beside those at the end of every epoch.
        keep_checkpoints: How many of the newest are kept: last.pt, last.1.pt ...
        skip_nonfinite: Steps with a non-finite loss that a run leaves out before it stops at one.
        log_every: Steps between lines in metrics.jsonl.
        sync_bn: Batch-norm statistics over all processes.
        uncertainty: Whether the weights of the tasks are learned beside the model (Kendall et al.,
            arXiv 1705.07115, equation 10), starting from those given.
        best: Metric that decides which weights are kept as best.safetensors, ``task/metric``;
            null takes the first task's main one.
    """

    epochs: int | None = None
    steps: int | None = None
    accumulate: int = 1
    amp: Amp = Amp.fp32
    channels_last: bool = True
    ema_decay: float | None = None
    ema_warmup: bool = True
    eval_every: int = 1
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    skip_nonfinite: int = 0
    log_every: int = 10
    sync_bn: bool = False
    uncertainty: bool = False
    best: str | None = None


@dataclass
class TestConfig:
    """How segmentation looks at a picture when it is measured.

    Attributes:
        scales: Class probabilities are averaged over the input at these scales.
        flip: Whether each is also seen mirrored.
    """

    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False


@dataclass
class Config:
    """A whole experiment."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)


def check_values(config: Config, where: str) -> None:
    """Checks what types cannot say: ranges, lengths, and what must or must not go together.

    Raises:
        ConfigError: Names ``where``, the first wrong key, what was expected and what it holds.
    """

    def need(holds: bool, key: str, expected: str, value: Any) -> None:
        if not holds:
            raise ConfigError(f"{where}: {key}: expected {expected}, got {value!r}")

    size, train, data = config.model.input_size, config.train, config.data
    need(
        len(size) == 2 and all(32 <= n <= 8192 for n in size), "model.input_size", "[height, width] of 32 to 8192", size
    )
    for key in ("mean", "std"):
        value = getattr(config.model, key)
        need(value is None or len(value) == 3, f"model.{key}", "three numbers, R G B", value)
    mean = config.model.mean
    need(mean is None or all(0 <= v <= 1 for v in mean), "model.mean", "numbers from 0 to 1", mean)
    need(
        config.model.std is None or all(v > 0 for v in config.model.std),
        "model.std",
        "positive numbers",
        config.model.std,
    )
    need(bool(config.tasks), "tasks", "at least one task", config.tasks)
    for name, task in config.tasks.items():
        need(name.isidentifier(), f"tasks.{name}", "a name of letters, digits and _", name)
        need(task.weight >= 0, f"tasks.{name}.weight", "a number >= 0", task.weight)
        for part in ("head", "evaluator"):
            need(not _missing(getattr(task, part)), f"tasks.{name}.{part}.name", "the name of a component", None)
    for split in ("train", "val"):
        need(not _missing(getattr(data, split)), f"data.{split}.name", "the name of a data set", None)
    need(
        (train.epochs is None) != (train.steps is None),
        "train.epochs / train.steps",
        "exactly one of them",
        [train.epochs, train.steps],
    )
    for key, number, least in (
        ("seed", config.seed, 0),
        ("data.batch_size", data.batch_size, 1),
        ("data.workers", data.workers, 0),
        ("train.epochs", train.epochs, 1),
        ("train.steps", train.steps, 1),
        ("train.accumulate", train.accumulate, 1),
        ("train.eval_every", train.eval_every, 0),
        ("train.checkpoint_every", train.checkpoint_every, 1),
        ("train.keep_checkpoints", train.keep_checkpoints, 1),
        ("train.skip_nonfinite", train.skip_nonfinite, 0),
        ("train.log_every", train.log_every, 1),
        ("optim.warmup_steps", config.optim.warmup_steps, 0),
    ):
        need(number is None or number >= least, key, f"a whole number >= {least}", number)
    scales = config.test.scales
    need(
        bool(scales) and all(0.1 <= s <= 4 for s in scales),
        "test.scales",
        "numbers from 0.1 to 4, at least one",
        scales,
    )
    need(
        train.ema_decay is None or 0 < train.ema_decay < 1,
        "train.ema_decay",
        "a number between 0 and 1",
        train.ema_decay,
    )
    need(
        config.optim.clip_norm is None or config.optim.clip_norm > 0,
        "optim.clip_norm",
        "a number > 0",
        config.optim.clip_norm,
    )
    need(config.optim.head_lr_factor >= 0, "optim.head_lr_factor", "a number >= 0", config.optim.head_lr_factor)
    need(0 <= config.optim.warmup_start <= 1, "optim.warmup_start", "a number from 0 to 1", config.optim.warmup_start)


def _missing(component: Component) -> bool:
    return not component.name or component.name == MISSING
