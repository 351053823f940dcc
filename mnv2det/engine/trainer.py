"""The training loop: plain torch, read top to bottom."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mnv2det.config import Config, to_dict, to_yaml
from mnv2det.data.loader import ResumableSampler, train_loader
from mnv2det.engine.build import (
    build_augmentation,
    build_dataset,
    build_evaluators,
    check,
    deciding_metric,
    hold_to,
    task_classes,
)
from mnv2det.engine.checkpoint import LAST, Progress, save_checkpoint
from mnv2det.engine.dist import Processes, processes, restarted
from mnv2det.engine.evaluate import evaluate
from mnv2det.engine.failures import explained
from mnv2det.engine.interrupt import Interrupted, stop_requests
from mnv2det.engine.learner import Learner
from mnv2det.engine.log import RunLog, progress
from mnv2det.engine.resume import check_changes, open_run, resumed_model
from mnv2det.errors import ConfigError, DataError, TrainingError
from mnv2det.io import write_atomically
from mnv2det.models.build import from_config
from mnv2det.models.weight_file import save_weights
from mnv2det.structures import Batch


def train(
    config: Config, run: Path, *, resume: bool = False, allow_changes: bool = False, device: str | None = None
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
        ConfigError, DataError, WeightsError: Something given is wrong; nothing was trained.
        TrainingError: The loss became non-finite, a disk is full or gone, a loader worker or another
            process died.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the checkpoint was saved.
    """
    with processes(device) as group, stop_requests() as stop:
        group.run_on_all(lambda: check(config))
        # only the torchrun whose process failed counts a restart, and the first process may be another's
        again = group.any(restarted())[0]
        state, notes = group.run_on_main(lambda: open_run(run, resume, again))
        made = group.run_on_all(lambda: _Run(config, run, state, allow_changes, group))
        return made.go(stop, notes)


class _Run:
    """Everything one run is made of; making it writes nothing."""

    def __init__(
        self, config: Config, run: Path, state: dict[str, Any] | None, allow_changes: bool, group: Processes
    ) -> None:
        self.config, self.run, self.group, train = config, run, group, config.train
        self.changed = check_changes(state, config, group.world, run, allow=allow_changes) if state else []
        torch.manual_seed(config.seed)
        self.data = build_dataset(config, "train")
        self.classes = task_classes(config, self.data)
        self.val = build_dataset(config, "val", self.data.classes)
        hold_to(config, self.val, self.classes)
        if len(self.data) < group.world:
            raise ConfigError(f"data.train: {len(self.data)} images for {group.world} processes; use fewer processes")
        self.notes: list[str] = []
        if state:
            model = resumed_model(state, config, self.classes, run)
        else:
            model, self.notes = from_config(config.model, config.tasks, self.classes)
        self.evaluators = build_evaluators(config, self.classes)
        self.deciding = deciding_metric(config, self.evaluators)
        self.at = Progress()
        self.saved = 0  # step of the checkpoint on disk
        self.per_epoch = max(1, self._sampler(0, 0).per_epoch // train.accumulate)
        self.total = train.steps or (train.epochs or 0) * self.per_epoch
        self.learner = Learner(model, config, self.total, group)
        if state:
            self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.learner.restore(state)
            self.at = Progress.from_state(state["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            what = " ".join(str(error).split())[:200]
            raise ConfigError(f"{self.run / LAST}: does not fit {self.run / 'config.yaml'}: {what}") from None
        self.saved = self.at.step

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

    def go(self, stop: threading.Event, notes: list[str]) -> dict[str, Any]:
        """Runs from the current step to the last, or to a request to stop.

        Args:
            stop: The request.
            notes: What to say before the first step.
        """
        try:
            self._begin(notes)
            with progress(self.total, self.at.step, active=self.group.main) as bar:
                return self._loop(bar, stop)
        except (OSError, RuntimeError, MemoryError) as error:
            # torch raises a worker's death wherever the main thread happens to be
            told = explained(error, f"at step {self.at.step + 1}", self._kept())
            if told is None:
                raise
            raise told from None
        except DataError as error:
            raise self.group.with_rank(error) from None

    def _begin(self, notes: list[str]) -> None:
        if self.group.main:
            self.run.mkdir(parents=True, exist_ok=True)
            write_atomically(self.run / "config.yaml", lambda file: file.write(to_yaml(self.config).encode()))
        self.log = RunLog(self.run, active=self.group.main, step=self.at.step, evaluated=self.at.evaluated)
        for note in [*notes, *self.notes, *(f"left out: {line}" for line in self.data.problems + self.val.problems)]:
            self.log.say(note)
        for change in self.changed:
            self.log.say(f"changed at step {self.at.step}: {change}")
            self.log.write(kind="change", step=self.at.step, key=change.key, old=change.old, new=change.new)

    def _loop(self, bar: tqdm[Any], stop: threading.Event) -> dict[str, Any]:
        at, group, train = self.at, self.group, self.config.train
        batches = self._batches()
        self.learner.model.train()
        if at.step and self._evaluation_due() and at.evaluated < at.step:
            self._evaluate()  # the run ended before it could
            self._save()
        started = time.perf_counter()
        while at.step < self.total:
            losses, stopping = self._step(next(batches), stop)
            at.seconds += time.perf_counter() - started
            bar.update()
            if losses and (at.step % train.log_every == 0 or at.step == self.total):
                self._report(bar, losses)
            due = self._evaluation_due()
            if due or stopping or at.step % self.per_epoch == 0 or at.step % train.checkpoint_every == 0:
                self._save()
            if stopping and (at.step < self.total or due):
                raise group.mark_shared(
                    Interrupted(
                        f"stopped at step {at.step} of {self.total}, saved; go on with:"
                        f" mnv2det train --resume {self.run}"
                    )
                )
            if due:
                self._evaluate()
                self._save()
            started = time.perf_counter()
        return {
            "run": str(self.run),
            "steps": at.step,
            "seconds": at.seconds,
            "best": at.best,
            "skipped": at.skipped,
            "nonfinite": at.nonfinite,
            "metrics": at.metrics,
        }

    def _batches(self) -> Iterator[list[Batch]]:
        """The batches of each step."""
        config = self.config
        loader = iter(
            train_loader(
                self.data,
                build_augmentation(config, self.learner.model),
                self._sampler(self.at.step, self.total),
                workers=config.data.workers,
                bad_data=config.data.bad_data,
                pin=self.group.device.type == "cuda",
            )
        )
        while True:
            yield [self._usable(next(loader)) for _ in range(config.train.accumulate)]

    def _usable(self, batch: Batch) -> Batch:
        if not batch.image_ids:
            raise DataError(f"all images of a batch are broken, the first: {batch.skipped[0]}")
        for message in batch.skipped:
            if self.at.skipped < 20:
                self.log.say(f"skipped: {message}")
            self.at.skipped += 1
        return batch

    def _step(self, batches: list[Batch], stop: threading.Event) -> tuple[dict[str, Tensor], bool]:
        """One optimizer step; returns its losses, none if it was left out, and whether to stop after it."""
        at, group = self.at, self.group
        # what is random in a step (dropout) is a function of seed, step and process: nothing to save
        seed = hash((self.config.seed, at.step, group.rank)) % 2**63
        losses, finite = self.learner.gradients(batches, seed)
        # processes agree on both in one exchange
        bad, stopping = group.any(~finite, stop.is_set())
        if bad:
            self._nonfinite(losses, [image for batch in batches for image in batch.image_ids], bool(finite))
            self.learner.drop()
            losses = {}
        else:
            self.learner.update()
        at.step += 1
        return losses, stopping

    def _nonfinite(self, losses: dict[str, Tensor], ids: list[int | str], finite: bool) -> None:
        """Stops the run at a step that must not be taken, or counts it."""
        values = ", ".join(f"{name} {float(value):g}" for name, value in losses.items())
        # a gradient is every process's, a loss its own
        own = not all(bool(value.isfinite()) for value in losses.values())
        found = self.group.gather((own, ids, values))
        guilty = [entry for entry in found if entry[0]] or found
        images = [image for entry in guilty for image in entry[1]]
        what = (
            f"non-finite loss or gradient at step {self.at.step + 1} ({guilty[0][2]}) on images"
            f" {images[:32]}{' ...' if len(images) > 32 else ''}"
        )
        bound = self.config.train.skip_nonfinite
        if self.at.nonfinite < bound:
            self.at.nonfinite += 1
            self.log.say(f"left out, {self.at.nonfinite} of at most {bound}: {what}")
            self.log.write(kind="nonfinite", step=self.at.step + 1, images=images, count=self.at.nonfinite)
            return
        already = f" after {bound} that were left out" if bound else ""
        raise self.group.mark_shared(
            TrainingError(
                f"{what}{already}; {self._kept()}. Try a lower optim.optimizer.args.lr, more optim.warmup_steps,"
                " optim.clip_norm=5, train.amp=fp32, mnv2det data check, or train.skip_nonfinite=N to leave out N such"
                " steps"
            )
        )

    def _report(self, bar: tqdm[Any], losses: dict[str, Tensor]) -> None:
        at, learner = self.at, self.learner
        self.group.average(list(losses.values()))
        values = {name: round(float(value), 5) for name, value in losses.items()}
        rate = learner.optimizer.param_groups[-1]["lr"]
        images = self.config.data.batch_size * self.config.train.accumulate * self.group.world
        speed = at.step / max(at.seconds, 1e-9) * images
        bar.set_postfix(loss=f"{sum(values.values()):.3f}", lr=f"{rate:.2g}", images_s=f"{speed:.1f}", refresh=False)
        if learner.balance is not None:
            values |= {
                f"weight/{task}": round(float(value.detach()), 5) for task, value in learner.balance.weights().items()
            }
        self.log.write(kind="train", step=at.step, seconds=round(at.seconds, 2), lr=rate, **values)

    def _evaluation_due(self) -> bool:
        """Whether the model is measured after this step."""
        step, every = self.at.step, self.config.train.eval_every
        epoch, inside = divmod(step, self.per_epoch)
        return step == self.total or (every > 0 and inside == 0 and epoch % every == 0)

    def _evaluate(self) -> None:
        at, model = self.at, self.learner.best()
        started = time.perf_counter()
        # each process has batch-norm statistics of its own: all measure the ones that are saved
        self.group.share([*self.learner.model.buffers(), *model.buffers()])
        at.metrics = metrics = evaluate(model, self.val, self.evaluators, self.group, self.config)
        at.evaluated = at.step
        self.log.write(
            kind="eval",
            step=at.step,
            seconds=round(at.seconds, 2),
            eval_seconds=round(time.perf_counter() - started, 2),
            **metrics,
        )
        main = {name: value for name, value in metrics.items() if name.count("/") == 1}
        shown = "  ".join(f"{name} {value:.3f}" for name, value in list(main.items())[:4])
        self.log.say(f"step {at.step} ({at.seconds / 60:.1f} min of training): {shown}")
        if at.best is None or metrics[self.deciding] > at.best:
            at.best = metrics[self.deciding]
            if self.group.main:
                header = model.header(
                    config=to_dict(self.config),
                    metrics=metrics,
                    provenance={"step": at.step, "seed": self.config.seed},
                )
                save_weights(self.run / "best.safetensors", model.state_dict(), header)

    def _save(self) -> None:
        if not self.group.main:
            return
        state = {
            "config": to_dict(self.config),
            "world": self.group.world,
            "header": self.learner.model.header().to_json(),
            "progress": dict(vars(self.at)),
            **self.learner.state(),
        }
        save_checkpoint(self.run / LAST, state, keep=self.config.train.keep_checkpoints)
        self.saved = self.at.step

    def _kept(self) -> str:
        """What is left of the run, for messages."""
        return f"{self.run / LAST} holds step {self.saved}" if self.saved else "no checkpoint was saved yet"
