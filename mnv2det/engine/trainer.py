"""The training loop: plain torch, read top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mnv2det.config import Config, check_warmup, data_root, to_dict, to_yaml
from mnv2det.data.loader import ResumableSampler, train_loader
from mnv2det.engine.build import (
    build_augmentation,
    build_dataset,
    build_evaluators,
    check,
    check_classes,
    deciding_metric,
    task_classes,
)
from mnv2det.engine.checkpoint import Progress, save_checkpoint
from mnv2det.engine.coverage import check_coverage
from mnv2det.engine.dist import Processes, processes, restarted
from mnv2det.engine.evaluate import evaluate_model
from mnv2det.engine.failures import explain
from mnv2det.engine.interrupt import Interrupted, stop_requests
from mnv2det.engine.learner import Learner
from mnv2det.engine.log import RunLog, progress_bar
from mnv2det.engine.resume import check_changes, open_run, resumed_model
from mnv2det.engine.sinks import open_sinks
from mnv2det.errors import ConfigError, DataError, TrainingError
from mnv2det.io import RunFolder, write_atomically
from mnv2det.models.build import from_config
from mnv2det.models.weight_file import save_weights
from mnv2det.registry import HEADS
from mnv2det.structures import Batch

MAX_SKIPPED_LINES = 20  # broken images that are named one by one
MAX_NAMED_IMAGES = 32  # in the message on a non-finite loss


def train(
    config: Config,
    run: str | os.PathLike[str],
    *,
    resume: bool = False,
    allow_changes: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """Trains what a config describes, into a run folder.

    The folder holds config.yaml, metrics.jsonl, last.pt (to resume from; older ones are last.1.pt ...)
    and best.safetensors (the weights of the best evaluation; averaged ones where the config keeps an
    average). Of several processes only the first one writes or reads there.

    Args:
        config: The experiment.
        run: The folder; must not hold a run unless ``resume``, or torchrun has restarted the processes.
        resume: Whether to go on from ``run``'s newest readable checkpoint. The result is bit-identical
            to that of a run that was never stopped (on the CPU).
        allow_changes: Whether the config may differ from the checkpoint's in what changes the result.
        device: As in `processes`.

    Returns:
        ``run``, ``steps``, ``seconds`` of training, ``best``, ``skipped``, ``nonfinite`` and the last ``metrics``.

    Raises:
        ConfigError, DataError, WeightsError: Config, data or weights are wrong; nothing was trained.
        TrainingError: The loss became non-finite, a disk is full or gone, a loader worker or another
            process died.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the checkpoint was saved.
    """
    folder = RunFolder(run)
    if config.data.root:
        # what reads the run folder later may be started elsewhere
        root = str(data_root(config).absolute())
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=root))
    with processes(device) as group, stop_requests() as stop:
        group.run_on_all(lambda: check(config))
        # only the torchrun whose process failed counts a restart, and the first process may be another's
        again = group.any(restarted())[0]
        state, notes = group.run_on_main(lambda: open_run(run, resume, again))
        trainer = group.run_on_all(lambda: _Trainer(config, folder, state, allow_changes, group))
        return trainer.train(stop, notes)


class _Trainer:
    """Everything that one run consists of; creating it writes nothing."""

    def __init__(
        self, config: Config, run: RunFolder, state: dict[str, Any] | None, allow_changes: bool, group: Processes
    ) -> None:
        self.config, self.run, self.group, train = config, run, group, config.train
        self.changed = check_changes(state, config, group.world, run.path, allow=allow_changes) if state else []
        torch.manual_seed(config.seed)
        self.data = build_dataset(config, "train")
        self.classes = task_classes(config, self.data)
        self.val = build_dataset(config, "val", self.data.classes)
        check_classes(config, self.val, self.classes)
        if len(self.data) < group.world:
            raise ConfigError(f"data.train: {len(self.data)} images for {group.world} processes; use fewer processes")
        self.notes: list[str] = []
        if state:
            model = resumed_model(state, config, self.classes, run.path)
        else:
            keys = {HEADS.get(task.head.name).target_key for task in config.tasks.values()}
            gaps = check_coverage(self.data, self.val, keys)
            model, self.notes = from_config(config.model, config.tasks, self.classes)
            self.notes += gaps
        self.evaluators = build_evaluators(config, self.classes)
        self.deciding = deciding_metric(config, self.evaluators)
        self.progress = Progress()
        self.saved = 0  # step of the checkpoint on disk
        self.batches_per_epoch = self._sampler(0, 0).per_epoch
        # a step may take batches of two epochs; the last step ends with the last epoch or shortly after it
        self.total = train.steps or -(-(train.epochs or 0) * self.batches_per_epoch // train.accumulate)
        if not state:
            check_warmup(config, self.total)
        self.learner = Learner(model, config, self.total, group)
        if state:
            self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.learner.restore(state)
            self.progress = Progress.from_state(state["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{self.run.checkpoint}: does not fit {self.run.config}: {reason}") from None
        self.saved = self.progress.step

    def _sampler(self, start: int, stop: int) -> ResumableSampler:
        config, group = self.config, self.group
        return ResumableSampler(
            len(self.data),
            config.data.batch_size,
            seed=config.seed,
            start=start * config.train.accumulate,
            stop=stop * config.train.accumulate,
            rank=group.rank,
            world=group.world,
        )

    def train(self, stop: threading.Event, notes: list[str]) -> dict[str, Any]:
        """Runs from the current step to the last, or until a request to stop.

        Args:
            stop: The request.
            notes: Messages to print before the first step.
        """
        try:
            self._begin(notes)
            with (
                progress_bar(self.total, self.progress.step, active=self.group.main) as bar,
                contextlib.closing(self.log),
            ):
                return self._loop(bar, stop)
        except (OSError, RuntimeError, MemoryError) as error:
            # torch raises a worker's death wherever the main thread happens to be
            explained = explain(error, f"at step {self.progress.step + 1}", self._kept())
            if explained is None:
                raise
            raise explained from None
        except DataError as error:
            raise self.group.with_rank(error) from None

    def _begin(self, notes: list[str]) -> None:
        progress = self.progress
        if self.group.main:
            self.run.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.run.config, lambda file: file.write(to_yaml(self.config).encode()))
        names = self.config.train.log_to if self.group.main else []
        sinks = open_sinks(names, self.run.path, to_dict(self.config), progress.step)
        self.log = RunLog(
            self.run.path, active=self.group.main, step=progress.step, evaluated=progress.evaluated, sinks=sinks
        )
        for note in [*notes, *self.notes, *(f"left out: {line}" for line in self.data.problems + self.val.problems)]:
            self.log.say(note)
        for change in self.changed:
            self.log.say(f"changed at step {progress.step}: {change}")
            self.log.write(kind="change", step=progress.step, key=change.key, old=change.old, new=change.new)

    def _loop(self, bar: tqdm[Any], stop: threading.Event) -> dict[str, Any]:
        progress, group, train = self.progress, self.group, self.config.train
        batches = self._batches()
        self.learner.model.train()
        if progress.step and self._evaluation_due() and progress.evaluated < progress.step:
            self._evaluate()  # the run ended before it could
            self._save()
        started = time.perf_counter()
        while progress.step < self.total:
            losses, stopping = self._step(next(batches), stop)
            progress.seconds += time.perf_counter() - started
            bar.update()
            if losses and (progress.step % train.log_every == 0 or progress.step == self.total):
                self._report(bar, losses)
            due = self._evaluation_due()
            if due or stopping or self._completes_epochs(1) or progress.step % train.checkpoint_every == 0:
                self._save()
            if stopping and (progress.step < self.total or due):
                raise group.mark_shared(
                    Interrupted(
                        f"stopped at step {progress.step} of {self.total}, saved; go on with:"
                        f" mnv2det train --resume {self.run}"
                    )
                )
            if due:
                self._evaluate()
                self._save()
            started = time.perf_counter()
        keys = ("seconds", "best", "skipped", "nonfinite", "metrics")
        return {"run": str(self.run), "steps": progress.step, **{key: getattr(progress, key) for key in keys}}

    def _batches(self) -> Iterator[list[Batch]]:
        """The batches of each step."""
        config = self.config
        loader = iter(
            train_loader(
                self.data,
                build_augmentation(config, self.learner.model),
                self._sampler(self.progress.step, self.total),
                workers=config.data.workers,
                bad_data=config.data.bad_data,
                pin=self.group.device.type == "cuda",
            )
        )
        while True:
            yield [self._usable(next(loader)) for _ in range(config.train.accumulate)]

    def _usable(self, batch: Batch) -> Batch:
        """The batch itself; names the broken images that it lacks."""
        if not batch.image_ids:
            raise DataError(f"all images of a batch are broken, the first: {batch.skipped[0]}")
        for message in batch.skipped:
            if self.progress.skipped < MAX_SKIPPED_LINES:
                self.log.say(f"skipped: {message}")
            self.progress.skipped += 1
        return batch

    def _step(self, batches: list[Batch], stop: threading.Event) -> tuple[dict[str, Tensor], bool]:
        """One optimizer step; returns its losses, none if it was left out, and whether to stop after it."""
        progress, group = self.progress, self.group
        # what is random in a step (dropout) is a function of seed, step and process: nothing to save
        seed = hash((self.config.seed, progress.step, group.rank)) % 2**63
        losses, finite = self.learner.gradients(batches, seed)
        # processes agree on both in one exchange
        nonfinite, stopping = group.any(~finite, stop.is_set())
        if nonfinite:
            self._nonfinite(losses, [image for batch in batches for image in batch.image_ids])
            self.learner.discard()
            losses = {}
        else:
            self.learner.update()
        progress.step += 1
        return losses, stopping

    def _nonfinite(self, losses: dict[str, Tensor], image_ids: list[int | str]) -> None:
        """Counts a step that must not be taken; ends the run after ``train.skip_nonfinite`` of them."""
        progress = self.progress
        values = ", ".join(f"{name} {float(value):g}" for name, value in losses.items())
        # all processes share a gradient, but each has losses of its own
        is_own = not all(bool(value.isfinite()) for value in losses.values())
        reports = self.group.gather((is_own, image_ids, values))
        culprits = [report for report in reports if report[0]] or reports
        images = [image for report in culprits for image in report[1]]
        event = (
            f"non-finite loss or gradient at step {progress.step + 1} ({culprits[0][2]}) on images"
            f" {images[:MAX_NAMED_IMAGES]}{' ...' if len(images) > MAX_NAMED_IMAGES else ''}"
        )
        bound = self.config.train.skip_nonfinite
        if progress.nonfinite < bound:
            progress.nonfinite += 1
            self.log.say(f"left out, {progress.nonfinite} of at most {bound}: {event}")
            self.log.write(kind="nonfinite", step=progress.step + 1, images=images, count=progress.nonfinite)
            return
        already = f" after {bound} that were left out" if bound else ""
        raise self.group.mark_shared(
            TrainingError(
                f"{event}{already}; {self._kept()}. Try a lower optim.optimizer.args.lr, more optim.warmup_steps,"
                " optim.clip_norm=5, train.amp=fp32, mnv2det data check, or train.skip_nonfinite=N to leave out N such"
                " steps"
            )
        )

    def _report(self, bar: tqdm[Any], losses: dict[str, Tensor]) -> None:
        progress, learner = self.progress, self.learner
        self.group.average(list(losses.values()))
        values = {name: round(float(value), 5) for name, value in losses.items()}
        rate = learner.optimizer.param_groups[-1]["lr"]
        images = self.config.data.batch_size * self.config.train.accumulate * self.group.world
        speed = progress.step / max(progress.seconds, 1e-9) * images
        bar.set_postfix(loss=f"{sum(values.values()):.3f}", lr=f"{rate:.2g}", images_s=f"{speed:.1f}", refresh=False)
        if learner.balance is not None:
            values |= {
                f"weight/{task}": round(float(value.detach()), 5) for task, value in learner.balance.weights().items()
            }
        self.log.write(kind="train", step=progress.step, seconds=round(progress.seconds, 2), lr=rate, **values)

    def _completes_epochs(self, count: int) -> bool:
        """Whether the latest step completed a multiple of ``count`` epochs."""
        batches, accumulate = count * self.batches_per_epoch, self.config.train.accumulate
        return self.progress.step * accumulate // batches > (self.progress.step - 1) * accumulate // batches

    def _evaluation_due(self) -> bool:
        """Whether the model is measured after this step."""
        every = self.config.train.eval_every
        return self.progress.step == self.total or (every > 0 and self._completes_epochs(every))

    def _evaluate(self) -> None:
        progress, model = self.progress, self.learner.evaluated_model()
        started = time.perf_counter()
        # each process has batch-norm statistics of its own: all measure the ones that are saved
        self.group.share([*self.learner.model.buffers(), *model.buffers()])
        metrics = evaluate_model(model, self.val, self.evaluators, self.group, self.config)
        # nan is undefined, too
        progress.metrics = metrics = {name: -1.0 if math.isnan(value) else value for name, value in metrics.items()}
        progress.evaluated = progress.step
        self.log.write(
            kind="eval",
            step=progress.step,
            seconds=round(progress.seconds, 2),
            eval_seconds=round(time.perf_counter() - started, 2),
            **metrics,
        )
        overall = {name: value for name, value in metrics.items() if name.count("/") == 1}
        shown = "  ".join(f"{name} {value:.3f}" for name, value in list(overall.items())[:4])
        self.log.say(f"step {progress.step} ({progress.seconds / 60:.1f} min of training): {shown}")
        deciding = metrics[self.deciding]
        if progress.best is None and deciding < 0:
            self.log.say(f"{self.deciding} is undefined: {self.run.best.name} holds the newest weights until it is not")
        # of equal ones the newest, which have learned longest
        if progress.best is None or deciding >= progress.best:
            progress.best = deciding
            if self.group.main:
                header = model.header(
                    config=to_dict(self.config),
                    metrics=metrics,
                    provenance={"step": progress.step, "seed": self.config.seed},
                )
                save_weights(self.run.best, model.state_dict(), header)

    def _save(self) -> None:
        if not self.group.main:
            return
        state = {
            "config": to_dict(self.config),
            "world": self.group.world,
            "header": self.learner.model.header().to_json(),
            "progress": dict(vars(self.progress)),
            **self.learner.state(),
        }
        save_checkpoint(self.run.checkpoint, state, keep=self.config.train.keep_checkpoints)
        self.saved = self.progress.step

    def _kept(self) -> str:
        """What is left of the run, for messages."""
        return f"{self.run.checkpoint} holds step {self.saved}" if self.saved else "no checkpoint was saved yet"
