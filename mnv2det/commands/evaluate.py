"""Measuring trained weights on a config's validation set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from mnv2det.config import load_config
from mnv2det.engine.build import build_evaluators, build_validation_set, check
from mnv2det.engine.dist import processes
from mnv2det.engine.evaluate import evaluate_model
from mnv2det.errors import ConfigError
from mnv2det.io import config_file
from mnv2det.models.build import from_file, weights_of


def evaluate_source(
    source: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Measures trained weights on a config's validation set.

    Args:
        source: A run folder (its config and ``best.safetensors``) or a YAML whose
            ``model.weights`` holds a whole model.
        overrides: ``key=value`` on the config; ``output_stride``, arguments of heads and, of a run,
            the input size apply to the weights.
        weights: Another weight file, or a run folder, whose best weights it means.
        device: As in `processes`.

    Returns:
        ``weights``, ``images``, ``input_size``, ``metrics``, ``reports`` (a confusion matrix, say, by task) and
        ``problems`` (annotations that were left out).

    Raises:
        ConfigError, DataError, WeightsError: As loading each of them.
    """
    config = load_config(config_file(source), overrides)
    check(config)
    is_run = os.path.isdir(source)
    stated = weights or (source if is_run else config.model.weights)
    if stated is None:
        raise ConfigError(f"{source}: nothing to evaluate; name a run folder, model.weights=FILE or --weights FILE")
    path = weights_of(stated)
    args, size = config.model.backbone.args, config.model.input_size
    model, _ = from_file(
        str(path),
        backbone={key: args[key] for key in ("output_stride",) if key in args},
        heads={name: task.head.args for name, task in config.tasks.items()},
        # the config of a run says what it was trained with, or what is to be tried; another YAML may be of any size
        input_size=(size[0], size[1]) if is_run else None,
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
