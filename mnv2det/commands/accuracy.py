"""Measuring a predictor, whatever runs it, on a labelled set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mnv2det.config import Config, load_config
from mnv2det.data.dataset import Dataset
from mnv2det.engine.build import build_dataset, build_evaluators, check
from mnv2det.errors import ConfigError, DataError
from mnv2det.registry import HEADS
from mnv2det.runtime.predictor import Predictor


class LabelledSet:
    """A config's validation set, held to a model's classes.

    Args:
        source: A run folder or a YAML.
        overrides: ``key=value`` on its config.
        predictor: Any form of the model.

    Raises:
        ConfigError: Its tasks are not the model's, or it cannot be held to the model's classes.
        DataError: Its data is missing or wrong.
    """

    def __init__(self, source: str, overrides: Sequence[str], predictor: Predictor) -> None:
        self.source, self.config = source, config_of(source, overrides)
        check(self.config)
        if set(self.config.tasks) != set(predictor.heads):
            raise ConfigError(
                f"{source}: has tasks {sorted(self.config.tasks)}, but the model has {sorted(predictor.heads)}"
            )
        keys = {task: HEADS.get(head["name"]).target_key for task, head in predictor.header.heads.items()}
        self.classes = predictor.classes
        self.data: Dataset = build_dataset(
            self.config, "val", {key: predictor.classes[task] for task, key in keys.items()}
        )
        for task, key in keys.items():
            if list(self.data.classes.get(key, [])) != list(self.classes[task]):
                raise ConfigError(f"{source}: its classes of '{key}' are not the model's in order")

    def measure(self, predictor: Predictor, *, about: str = "measuring") -> dict[str, float]:
        """``task/figure`` to value; pictures that cannot be read are left out and counted as ``skipped_images``."""
        evaluators = build_evaluators(self.config, self.classes)
        skipped = 0
        bar = tqdm(range(len(self.data)), desc=about, unit="image", leave=False, disable=not sys.stderr.isatty())
        for index in bar:
            try:
                sample = self.data.read(index)
            except DataError:
                if self.config.data.bad_data.value == "stop":
                    raise
                skipped += 1
                continue
            found = predictor(sample.image)
            for task, evaluator in evaluators.items():
                evaluator.update(sample.image_id, found[task], sample.target)
        if skipped == len(self.data):
            raise DataError(f"{self.source}: data.val: not one picture can be read; there is nothing to measure on")
        metrics = {
            f"{task}/{name}": float(value)
            for task, evaluator in evaluators.items()
            for name, value in evaluator.compute().items()
        }
        return metrics | ({"skipped_images": float(skipped)} if skipped else {})

    def main_metrics(self) -> list[str]:
        """The figure by which each task is judged."""
        evaluators = build_evaluators(self.config, self.classes)
        return [f"{task}/{evaluator.main}" for task, evaluator in evaluators.items()]


def config_of(source: str, overrides: Sequence[str] = ()) -> Config:
    """The config of a run folder, or a YAML."""
    path = Path(source)
    return load_config(path / "config.yaml" if path.is_dir() else path, overrides)
