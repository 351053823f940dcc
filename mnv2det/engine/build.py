"""From a configuration to data sets, model and evaluators; checks all of it before building any."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mnv2det.config import Component, Config, data_root
from mnv2det.data.dataset import Dataset
from mnv2det.data.formats.base import Format
from mnv2det.data.transforms import Transform
from mnv2det.engine import optim  # noqa: F401 - registers optimizers and schedules
from mnv2det.engine.sinks import check_sinks
from mnv2det.errors import ConfigError, near
from mnv2det.evaluation.evaluator import Evaluator
from mnv2det.models.build import from_config
from mnv2det.models.model import Model
from mnv2det.registry import (
    AUGMENTATIONS,
    BACKBONES,
    DATASETS,
    EVALUATORS,
    HEADS,
    OPTIMIZERS,
    SCHEDULES,
    ComponentArgs,
    Registry,
    bind_all,
)

# the argument by which a data set is held to a class list
NAMES = {"labels": "names", "label": "names", "mask": "mask_names"}


def check(config: Config) -> None:
    """Checks every component's name and arguments; reads no data and no weights.

    Raises:
        ConfigError: All problems in one line, or a library that ``train.log_to`` names is not installed.
    """
    check_sinks(config.train.log_to)
    components: list[tuple[Registry[Any], Component, str]] = [
        (BACKBONES, config.model.backbone, "model.backbone"),
        (DATASETS, config.data.train, "data.train"),
        (DATASETS, config.data.val, "data.val"),
        (AUGMENTATIONS, config.data.augment, "data.augment"),
        (OPTIMIZERS, config.optim.optimizer, "optim.optimizer"),
        (SCHEDULES, config.optim.schedule, "optim.schedule"),
    ]
    for name, task in config.tasks.items():
        components.append((HEADS, task.head, f"tasks.{name}.head"))
        components.append((EVALUATORS, task.evaluator, f"tasks.{name}.evaluator"))
    from_weights = (BACKBONES, HEADS) if config.model.weights else ()
    bind_all(
        ComponentArgs(registry, component.name, component.args, place, partial=registry in from_weights)
        for registry, component, place in components
    )


def build_dataset(config: Config, split: str, classes: Mapping[str, Sequence[str]] | None = None) -> Dataset:
    """The ``train`` or ``val`` data set; arguments and errors as those of `build_source`."""
    source = build_source(config, split, classes)
    return source.dataset(config.data.bad_data) if isinstance(source, Format) else source


def build_source(config: Config, split: str, classes: Mapping[str, Sequence[str]] | None = None) -> Dataset | Format:
    """What is registered under the name of ``train`` or ``val``: a data set, or a format that reads one.

    Args:
        config: The experiment.
        split: Which.
        classes: Class names by target key to hold to, unless the config states others.

    Raises:
        ConfigError: An argument is wrong.
        DataError: The data is missing or wrong.
    """
    part: Component = getattr(config.data, split)
    args = dict(part.args)
    component = DATASETS.get(part.name, place=f"data.{split}")
    known = inspect.signature(component).parameters
    for key, argument in NAMES.items():
        if classes and key in classes and argument in known and args.get(argument) is None:
            args[argument] = list(classes[key])
    injected: dict[str, Any] = {"root": data_root(config)}
    if not (isinstance(component, type) and issubclass(component, Format)):
        injected["bad_data"] = config.data.bad_data
    source: Dataset | Format = DATASETS.build(part.name, args, place=f"data.{split}", **injected)
    return source


def build_validation_set(
    config: Config, heads: Mapping[str, Any], classes: Mapping[str, Sequence[str]], where: str
) -> Dataset:
    """The validation set, with the classes that a trained model has.

    Args:
        config: The experiment.
        heads: The model's heads by task (`Head`).
        classes: The model's class names by task.
        where: Name of the model, for messages.

    Raises:
        ConfigError: The config has other tasks, or the data set has other classes.
        DataError: The data is missing or wrong.
    """
    if set(heads) != set(config.tasks):
        raise ConfigError(f"{where}: has heads {sorted(heads)}, the config has tasks {sorted(config.tasks)}")
    dataset = build_dataset(config, "val", {head.target_key: classes[task] for task, head in heads.items()})
    check_classes(config, dataset, classes)
    return dataset


def task_classes(config: Config, dataset: Dataset) -> dict[str, list[str]]:
    """Every task's class names, as the data set has them.

    Raises:
        ConfigError: The data set annotates nothing a head could learn from.
    """
    classes = {}
    for name, task in config.tasks.items():
        key = HEADS.get(task.head.name, place=f"tasks.{name}.head").target_key
        if key not in dataset.classes:
            raise ConfigError(
                f"tasks.{name}: head '{task.head.name}' needs {key}, but data set '{config.data.train.name}'"
                f" has only {', '.join(dataset.classes)}"
            )
        classes[name] = dataset.classes[key]
    return classes


def check_classes(config: Config, dataset: Dataset, classes: Mapping[str, Sequence[str]]) -> None:
    """Checks that a validation set has the classes, in the order, that the model was made for.

    Raises:
        ConfigError: It has others.
    """
    for task, names in task_classes(config, dataset).items():
        if list(names) != list(classes[task]):
            raise ConfigError(
                f"data.val: classes {list(names)[:8]} are not the model's {list(classes[task])[:8]} in order"
            )


def build_model(config: Config, classes: Mapping[str, Sequence[str]] | None = None) -> Model:
    """The model a config describes, with its initial weights.

    Args:
        config: From `load_config`.
        classes: Class names by task; None reads the training set's annotations to find out.

    Raises:
        ConfigError: A component or argument is wrong.
        DataError: The training set is missing or wrong.
        WeightsError: The initial weights are missing or do not fit.
    """
    if classes is None:
        classes = task_classes(config, build_dataset(config, "train"))
    return from_config(config.model, config.tasks, classes)[0]


def build_augmentation(config: Config, model: Model) -> Transform:
    """The training transform, for the model's input size."""
    augment = config.data.augment
    transform: Transform = AUGMENTATIONS.build(augment.name, augment.args, model.preprocess, place="data.augment")
    return transform


def build_evaluators(config: Config, classes: Mapping[str, Sequence[str]]) -> dict[str, Evaluator]:
    """One evaluator per task."""
    return {
        name: EVALUATORS.build(
            task.evaluator.name, task.evaluator.args, place=f"tasks.{name}.evaluator", classes=classes[name]
        )
        for name, task in config.tasks.items()
    }


def deciding_metric(config: Config, evaluators: Mapping[str, Evaluator]) -> str:
    """The metric that ``train.best`` names, or the first task's main one.

    Raises:
        ConfigError: No evaluator computes it.
    """
    task, evaluator = next(iter(evaluators.items()))
    key = config.train.best or f"{task}/{evaluator.main}"
    # without images an evaluator computes all of its metrics, as undefined
    known = [f"{name}/{metric}" for name, evaluator in evaluators.items() for metric in evaluator.compute()]
    if key not in known:
        raise ConfigError(f"train.best: no metric '{key}'{near(key, known)}")
    return key
