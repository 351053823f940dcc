"""Running a model over a data set and measuring it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mnv2det.config import Config, load_config
from mnv2det.data.dataset import Dataset
from mnv2det.data.loader import eval_loader
from mnv2det.engine.build import build_dataset, build_evaluators, check, classes_by_key, hold_to
from mnv2det.engine.dist import Processes, processes
from mnv2det.errors import ConfigError, WeightsError
from mnv2det.evaluation.evaluator import Evaluator
from mnv2det.models.build import from_file, weights_of
from mnv2det.models.model import Model


def evaluate(
    model: Model,
    dataset: Dataset,
    evaluators: Mapping[str, Evaluator],
    group: Processes,
    config: Config,
) -> dict[str, float]:
    """Measures every task on every image.

    Args:
        model: In any mode; evaluated in eval mode and put back.
        dataset: Images and truths.
        evaluators: By task; their records are replaced.
        group: Processes that share the work; each gets the same metrics.
        config: For batch size, workers and ``bad_data``.

    Returns:
        ``task/figure`` to value.
    """
    training = model.training
    model.eval()
    loader = eval_loader(
        dataset,
        model.preprocess,
        batch_size=config.data.batch_size,
        workers=config.data.workers,
        bad_data=config.data.bad_data,
        pin=group.device.type == "cuda",
        rank=group.rank,
        world=group.world,
    )
    for evaluator in evaluators.values():
        evaluator.records = {}
    skipped = 0
    bar = tqdm(loader, desc="evaluating", unit="batch", leave=False, disable=not (group.main and sys.stderr.isatty()))
    for batch in bar:
        skipped += len(batch.skipped)
        if not batch.image_ids:
            continue
        images = batch.images.to(group.device, non_blocking=True)
        results = model.predict(images, batch.frames, scales=config.test.scales, flip=config.test.flip)
        for task, evaluator in evaluators.items():
            for image_id, result, truth in zip(batch.image_ids, results[task], batch.truths, strict=True):
                evaluator.update(image_id, result, truth)
    model.train(training)
    metrics: dict[str, float] = {}
    for task, evaluator in evaluators.items():
        for records in group.gather(evaluator.records):
            evaluator.records.update(records)
        metrics |= {f"{task}/{name}": float(value) for name, value in evaluator.compute().items()}
    if total := sum(group.gather(skipped)):
        metrics["skipped_images"] = float(total)
    return metrics


def evaluate_source(
    source: str, overrides: Sequence[str] = (), *, weights: str | None = None, device: str | None = None
) -> dict[str, Any]:
    """Measures trained weights on a config's validation set.

    Args:
        source: A run folder (its config and ``best.safetensors``) or a YAML whose
            ``model.weights`` holds a whole model.
        overrides: ``key=value`` on the config; ``output_stride``, arguments of heads and, of a run,
            the input size apply to the weights.
        weights: Another weight file.
        device: As in `processes`.

    Returns:
        ``weights``, ``images``, ``input_size``, ``metrics``, ``reports`` (a confusion matrix, say, by task) and
        ``problems`` (annotations that were left out).

    Raises:
        ConfigError, DataError, WeightsError: As loading each of them.
    """
    run = Path(source)
    config = load_config(run / "config.yaml" if run.is_dir() else run, overrides)
    check(config)
    chosen = weights or (str(weights_of(run)) if run.is_dir() else config.model.weights)
    if chosen is None:
        raise ConfigError(f"{source}: nothing to evaluate; name a run folder, model.weights=FILE or --weights FILE")
    args, size = config.model.backbone.args, config.model.input_size
    model, _ = from_file(
        chosen,
        backbone={key: args[key] for key in ("output_stride",) if key in args},
        heads={task: part.head.args for task, part in config.tasks.items()},
        # the config of a run says what it was trained with, or what is to be tried; another YAML may be of any size
        input_size=(size[0], size[1]) if run.is_dir() else None,
    )
    if set(model.heads) != set(config.tasks):
        raise WeightsError(f"{chosen}: has heads {sorted(model.heads)}, the config has tasks {sorted(config.tasks)}")
    dataset = build_dataset(config, "val", classes_by_key(model))
    hold_to(config, dataset, model.classes)
    with processes(device) as group:
        model = model.to(group.device)
        if config.train.channels_last:
            model = model.to(memory_format=torch.channels_last)
        evaluators = build_evaluators(config, model.classes)
        metrics = evaluate(model, dataset, evaluators, group, config)
    reports = {task: report for task, evaluator in evaluators.items() if (report := evaluator.report())}
    return {
        "weights": chosen,
        "images": len(dataset),
        "input_size": list(model.preprocess.input_size),
        "metrics": metrics,
        "reports": reports,
        "problems": dataset.problems,
    }
