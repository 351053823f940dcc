"""Measuring a model on a data set, with all processes that share the work."""

from __future__ import annotations

from collections.abc import Mapping

from mnv2det.config import Config
from mnv2det.data.dataset import Dataset
from mnv2det.data.loader import eval_loader
from mnv2det.engine.dist import Processes
from mnv2det.evaluation.evaluator import Evaluator
from mnv2det.evaluation.run import evaluate
from mnv2det.models.model import Model
from mnv2det.structures import Batch, TaskResult


def evaluate_model(
    model: Model, dataset: Dataset, evaluators: Mapping[str, Evaluator], group: Processes, config: Config
) -> dict[str, float]:
    """Measures every task on every image.

    Args:
        model: In any mode; evaluated in eval mode and put back.
        dataset: Images and truths.
        evaluators: By task; their records are replaced.
        group: Processes that share the work; each gets the same metrics.
        config: For batch size, workers, ``bad_data``, and the scales and mirror images of ``test``.

    Returns:
        As `mnv2det.evaluation.run.evaluate`.
    """
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

    def predict(batch: Batch) -> dict[str, list[TaskResult]]:
        images = batch.images.to(group.device, non_blocking=True)
        return model.predict(images, batch.frames, scales=config.test.scales, flip=config.test.flip)

    training = model.training
    model.eval()
    metrics = evaluate(loader, predict, evaluators, gather=group.gather, progress="evaluating" if group.main else None)
    model.train(training)
    return metrics
