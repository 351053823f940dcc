"""The only loop over a labelled set: for training, ``eval``, ``export --accuracy`` and ``bench --accuracy``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from mnv2det.evaluation.evaluator import Evaluator
from mnv2det.io import is_watched
from mnv2det.structures import Batch, TaskResult

Predict = Callable[[Batch], Mapping[str, Sequence[TaskResult]]]
Gather = Callable[[Any], list[Any]]


def evaluate(
    batches: Iterable[Batch],
    predict: Predict,
    evaluators: Mapping[str, Evaluator],
    *,
    gather: Gather = lambda value: [value],
    progress: str | None = "evaluating",
) -> dict[str, float]:
    """Measures every task on every image.

    Args:
        batches: Images with their truths; an iterable with a length gives the progress bar its end.
        predict: Results of one batch: by task, one for each image, in pixels of the original image.
        evaluators: By task; their records are replaced.
        gather: Returns the values that all processes called it with, where several share the images.
            Each of them then gets the same metrics.
        progress: Title of the progress bar; None shows none.

    Returns:
        ``task/metric`` to value, and ``skipped_images``, a count, where images could not be read.
    """
    for evaluator in evaluators.values():
        evaluator.records = {}
    skipped = 0
    hidden = progress is None or not is_watched()
    for batch in tqdm(batches, desc=progress, unit="batch", leave=False, disable=hidden):
        skipped += len(batch.skipped)
        if not batch.image_ids:
            continue
        results = predict(batch)
        for task, evaluator in evaluators.items():
            for image_id, result, truth in zip(batch.image_ids, results[task], batch.truths, strict=True):
                evaluator.update(image_id, result, truth)
    metrics: dict[str, float] = {}
    for task, evaluator in evaluators.items():
        for records in gather(evaluator.records):
            evaluator.records.update(records)
        metrics |= {f"{task}/{name}": float(value) for name, value in evaluator.compute().items()}
    if total := sum(gather(skipped)):
        metrics["skipped_images"] = float(total)
    return metrics
