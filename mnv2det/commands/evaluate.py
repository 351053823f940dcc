"""Measuring trained weights on a config's validation set."""

from __future__ import annotations

import os
from typing import Any

import torch

from mnv2det.config import ConfigSource, Overrides, load_config
from mnv2det.engine.build import build_evaluators, build_validation_set, check
from mnv2det.engine.dist import processes
from mnv2det.engine.evaluate import evaluate_model
from mnv2det.errors import ConfigError
from mnv2det.models.build import from_file, weights_of


def evaluate_source(
    source: ConfigSource,
    overrides: Overrides = (),
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Measures trained weights on a config's validation set.

    Args:
        source: A run folder (its config and ``best.safetensors``), or another config as `load_config` takes it, whose
            ``model.weights`` holds a whole model.
        overrides: Of the config, as `load_config` takes them; ``output_stride``, arguments of heads and, of a run,
            the input size apply to the weights.
        weights: Another weight file, or a run folder, whose best weights it means.
        device: As in `processes`.

    Returns:
        ``weights``, ``images``, ``input_size``, ``metrics``, ``reports`` (a confusion matrix, say, by task) and
        ``problems`` (annotations that were left out).

    Raises:
        ConfigError, DataError, WeightsError: As loading each of them.
    """
    config = load_config(source, overrides)
    check(config)
    run = source if isinstance(source, str | os.PathLike) and os.path.isdir(source) else None
    stated = weights or run or config.model.weights
    if stated is None:
        name = source if isinstance(source, str | os.PathLike) else "config"
        raise ConfigError(f"{name}: nothing to evaluate; name a run folder, model.weights=FILE or --weights FILE")
    path = weights_of(stated)
    args, size = config.model.backbone.args, config.model.input_size
    model, _ = from_file(
        str(path),
        backbone={key: args[key] for key in ("output_stride",) if key in args},
        heads={name: task.head.args for name, task in config.tasks.items()},
        # the config of a run says what it was trained with, or what is to be tried; another YAML may be of any size
        input_size=(size[0], size[1]) if run else None,
    )
    dataset = build_validation_set(config, dict(model.heads.items()), model.classes, str(path))
    with processes(device) as group:
        model = model.to(group.device)
        if config.train.channels_last:
            model = model.to(memory_format=torch.channels_last)
        evaluators = build_evaluators(config, model.classes)
        metrics = evaluate_model(model, dataset, evaluators, group, config)
    return {
        "weights": str(path),
        "images": len(dataset),
        "input_size": list(model.preprocess.input_size),
        "metrics": metrics,
        "reports": {task: report for task, evaluator in evaluators.items() if (report := evaluator.report())},
        "problems": dataset.problems,
    }
