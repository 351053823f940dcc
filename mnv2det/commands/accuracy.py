"""Measuring a predictor, whatever runtime computes it, on a labelled set."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from mnv2det.config import load_config
from mnv2det.data.loader import picture_loader
from mnv2det.engine.build import build_evaluators, build_validation_set, check
from mnv2det.errors import DataError
from mnv2det.evaluation.run import evaluate
from mnv2det.io import config_file
from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import Batch, TaskResult


class LabelledSet:
    """A config's validation set, held to a model's classes.

    Args:
        source: A run folder or a YAML.
        overrides: ``key=value`` on its config.
        predictor: Any form of the model.

    Raises:
        ConfigError: Its tasks or classes are not the model's.
        DataError: Its data is missing or wrong.
    """

    def __init__(self, source: str | os.PathLike[str], overrides: Sequence[str], predictor: Predictor) -> None:
        self.source, self.config = source, load_config(config_file(source), overrides)
        check(self.config)
        self.data = build_validation_set(self.config, predictor.heads, predictor.classes, "the model")
        self.evaluators = build_evaluators(self.config, predictor.classes)

    def measure(
        self, batch_results: Callable[..., Sequence[Mapping[str, TaskResult]]], *, about: str = "measuring"
    ) -> dict[str, float]:
        """Measures a predictor on all pictures, with the config's scales and mirror images (``test``).

        Args:
            batch_results: `Predictor.batch` of a form of the same model, or what is called as it is: all boxes count,
                whatever their score.
            about: Title of the progress bar.

        Returns:
            As `mnv2det.evaluation.run.evaluate`.

        Raises:
            ConfigError: The predictor cannot look at a picture at several scales or mirrored, as the config asks.
            DataError: A picture cannot be read, and ``data.bad_data`` is ``stop``; or no picture can be read.
        """
        data, test = self.config.data, self.config.test

        def predict(batch: Batch) -> dict[str, list[TaskResult]]:
            picture = batch.images[0].permute(1, 2, 0).numpy()
            (results,) = batch_results([picture], scales=tuple(test.scales), flip=test.flip)
            return {task: [result] for task, result in results.items()}

        loader = picture_loader(self.data, workers=data.workers, bad_data=data.bad_data)
        metrics = evaluate(loader, predict, self.evaluators, progress=about)
        if metrics.get("skipped_images") == len(self.data):
            raise DataError(f"{self.source}: data.val: not one picture can be read; there is nothing to measure on")
        return metrics

    def main_metrics(self) -> list[str]:
        """``task/metric`` of the metric by which each task is judged."""
        return [f"{task}/{evaluator.main}" for task, evaluator in self.evaluators.items()]
