"""How long a training will take on this machine."""

from __future__ import annotations

import statistics
import time

from mnv2det.config import Config
from mnv2det.data.loader import ResumableSampler, train_loader
from mnv2det.engine.build import build_augmentation, build_dataset, check, task_classes
from mnv2det.engine.dist import processes
from mnv2det.engine.learner import Learner
from mnv2det.io import cores
from mnv2det.models.build import from_config

TIMED = 3  # steps, after one that warms up


def seconds_per_step(config: Config) -> float:
    """Times a few steps of a training, on the data itself; the median counts.

    Pictures are loaded in this process, one after the other; a training loads them beside its steps, on all cores.

    Args:
        config: The experiment.

    Returns:
        Seconds of one step and of its share of the loading.

    Raises:
        ConfigError, DataError, WeightsError: As training would.
    """
    check(config)
    dataset = build_dataset(config, "train")
    model, _ = from_config(config.model, config.tasks, task_classes(config, dataset))
    count = TIMED + 1
    sampler = ResumableSampler(
        len(dataset), config.data.batch_size, seed=config.seed, start=0, stop=count * config.train.accumulate
    )
    seconds = []
    with processes(None) as group:
        learner = Learner(model, config, count, group)
        learner.model.train()
        batches = iter(
            train_loader(
                dataset, build_augmentation(config, model), sampler, workers=0, bad_data=config.data.bad_data, pin=False
            )
        )
        for step in range(count):
            started = time.perf_counter()
            loaded = [next(batches) for _ in range(config.train.accumulate)]
            ready = time.perf_counter()
            losses, _ = learner.gradients(loaded, seed=step)
            learner.update()
            sum(float(loss) for loss in losses.values())  # a GPU has finished when they are there
            seconds.append((ready - started) / cores() + time.perf_counter() - ready)
    return statistics.median(seconds[1:])
