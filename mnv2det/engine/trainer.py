"""The training loop: plain torch, read top to bottom."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from mnv2det.config import Amp, Config, load_config, to_dict, to_yaml
from mnv2det.data.loader import ResumableSampler, train_loader
from mnv2det.engine.build import build_augmentation, build_dataset, build_evaluators, check, task_classes
from mnv2det.engine.checkpoint import load_checkpoint, save_checkpoint
from mnv2det.engine.dist import Processes, processes
from mnv2det.engine.evaluate import evaluate
from mnv2det.engine.log import RunLog, progress
from mnv2det.engine.optim import build_optimizer
from mnv2det.errors import ConfigError, Mnv2detError, TrainingError, near
from mnv2det.evaluation.evaluator import Evaluator
from mnv2det.models.model import Model, from_config
from mnv2det.models.weights.files import save_weights, write_atomically
from mnv2det.structures import Batch


class Interrupted(Mnv2detError):
    """The run was asked to stop and has saved itself."""

    exit_code = 130


@dataclass
class Progress:
    """Where a run is; travels in the checkpoint.

    Attributes:
        step: Optimizer steps done.
        seconds: Time spent on them: loading included, evaluation and start-up not.
        best: The best value of the deciding figure so far, -1 for none.
        skipped: Broken images left out so far.
        figures: Of the latest evaluation.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    skipped: int = 0
    figures: dict[str, float] = field(default_factory=dict)


def train(config: Config, run: Path, *, resume: bool = False, device: str | None = None) -> dict[str, Any]:
    """Trains what a config describes, into a run folder.

    The folder holds config.yaml, metrics.jsonl, last.pt (to resume from) and best.safetensors (the
    weights of the best evaluation; averaged ones where the config keeps an average).

    Args:
        config: The experiment.
        run: The folder; must not hold a run unless ``resume``.
        resume: Whether to go on from ``run``'s last checkpoint. The result is bit-identical to
            that of a run that was never stopped (on the CPU).
        device: As in `processes`.

    Returns:
        ``run``, ``steps``, ``seconds`` of training, ``best`` and the last ``figures``.

    Raises:
        ConfigError, DataError, WeightsError: Something given is wrong; nothing was trained.
        TrainingError: The loss became non-finite, or a loader worker died.
        Interrupted: SIGINT or SIGTERM came; the checkpoint was saved.
    """
    check(config)
    if (run / "last.pt").exists() and not resume:
        raise ConfigError(f"{run}: holds a run already; choose another --out, or go on with --resume {run}")
    with processes(device) as group, _stop_requests() as stop:
        return _Run(config, run, resume, group).go(stop)


def resume_config(run: Path) -> Config:
    """The configuration that a run folder keeps.

    Raises:
        ConfigError: There is none.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run}: not a run folder (no config.yaml in it)")
    return load_config(run / "config.yaml")


class _Run:
    """Everything one run is made of."""

    def __init__(self, config: Config, run: Path, resume: bool, group: Processes) -> None:
        self.config, self.run, self.group = config, run, group
        torch.manual_seed(config.seed)
        self.data = build_dataset(config, "train")
        self.classes = task_classes(config, self.data)
        self.val = build_dataset(config, "val", next(iter(self.data.classes.values())))
        self.model, notes = from_config(config.model, config.tasks, self.classes)
        self.evaluators = build_evaluators(config, self.classes)
        self.deciding = _deciding_figure(config, self.evaluators)
        self.at = Progress()
        state = load_checkpoint(run / "last.pt") if resume else None
        self._place()
        if state is not None:
            self._restore(state)
        if group.main:
            run.mkdir(parents=True, exist_ok=True)
            write_atomically(run / "config.yaml", lambda file: file.write(to_yaml(config).encode()))
        self.log = RunLog(run, active=group.main, step=self.at.step)
        for note in [*notes, *(f"left out: {line}" for line in self.data.problems + self.val.problems)]:
            self.log.say(note)

    def _place(self) -> None:
        """Moves the model to its device and wraps it; builds what depends on its parameters."""
        config, group, train = self.config, self.group, self.config.train
        self.model = self.model.to(group.device)
        if train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.average = _average(self.model, train.ema_decay, train.ema_warmup) if train.ema_decay else None
        if train.amp is Amp.fp16 and group.device.type != "cuda":
            raise ConfigError("train.amp: fp16 needs CUDA; use bf16 or fp32 on this device")
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=train.amp is Amp.fp16)
        sampler = ResumableSampler(
            len(self.data), config.data.batch_size, seed=config.seed, start=0, stop=0, world=group.world
        )
        self.per_epoch = max(1, sampler.per_epoch // train.accumulate)
        self.total = train.steps or (train.epochs or 0) * self.per_epoch
        self.optimizer, self.schedule = build_optimizer(self.model, config.optim, self.total)
        self.forward: nn.Module = self.model
        if group.world > 1:
            if train.sync_bn and group.device.type == "cuda":
                nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            self.forward = DistributedDataParallel(self.model)

    def go(self, stop: threading.Event) -> dict[str, Any]:
        """Runs from the current step to the last, or to a request to stop."""
        train, at = self.config.train, self.at
        batches = self._batches()
        bar = progress(self.total, at.step, active=self.group.main)
        self.model.train()
        started = time.perf_counter()
        while at.step < self.total:
            losses, images = self._step(batches)
            at.step += 1
            at.seconds += time.perf_counter() - started
            started = time.perf_counter()
            self._report(bar, losses, images)
            end = at.step == self.total
            epoch = at.step % self.per_epoch == 0 and at.step // self.per_epoch
            if end or (epoch and train.eval_every and epoch % train.eval_every == 0):
                self._evaluate()
            stopping = self.group.any(stop.is_set())
            if end or stopping or epoch or at.step % train.checkpoint_every == 0:
                self._save()
            if stopping and not end:
                bar.close()
                raise Interrupted(
                    f"stopped at step {at.step} of {self.total}, saved; go on with: mnv2det train --resume {self.run}"
                )
            started = time.perf_counter()
        bar.close()
        return {
            "run": str(self.run),
            "steps": at.step,
            "seconds": at.seconds,
            "best": at.best,
            "skipped": at.skipped,
            "figures": at.figures,
        }

    def _batches(self) -> Iterator[Batch]:
        config, group = self.config, self.group
        sampler = ResumableSampler(
            len(self.data),
            config.data.batch_size,
            seed=config.seed,
            start=self.at.step * config.train.accumulate,
            stop=self.total * config.train.accumulate,
            rank=group.rank,
            world=group.world,
        )
        loader = train_loader(
            self.data,
            build_augmentation(config, self.model),
            sampler,
            workers=config.data.workers,
            bad_data=config.data.bad_data,
        )
        try:
            yield from loader
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"a loader worker died ({str(error).splitlines()[0]}); out of memory? The last checkpoint is intact:"
                f" go on with mnv2det train --resume {self.run}, perhaps with fewer data.workers"
            ) from None

    def _step(self, batches: Iterator[Batch]) -> tuple[dict[str, Tensor], int]:
        """One optimizer step; returns its losses and how many images it saw here."""
        config, train = self.config, self.config.train
        # what is random in a step (dropout) is a function of seed, step and process: nothing to save
        torch.manual_seed(hash((config.seed, self.at.step, self.group.rank)) % 2**63)
        summed: dict[str, Tensor] = {}
        images, ids = 0, []
        for _ in range(train.accumulate):
            batch = next(batches)
            pixels = batch.images.to(self.group.device, non_blocking=True)
            inputs = self.model.normalize(pixels)
            if train.channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.group.device.type, _DTYPES[train.amp], enabled=train.amp is not Amp.fp32):
                raw = self.forward(inputs)
            weights = {name: task.weight for name, task in config.tasks.items()}
            losses = self.model.loss(raw, batch.targets, weights)
            total = torch.stack(list(losses.values())).sum() / train.accumulate
            self.scaler.scale(total).backward()
            for name, value in losses.items():
                summed[name] = (
                    summed.get(name, torch.zeros((), device=value.device)) + value.detach() / train.accumulate
                )
            images += len(batch.image_ids)
            ids += batch.image_ids
            self._count_skipped(batch)
        self._update(summed, ids)
        return summed, images

    def _update(self, losses: dict[str, Tensor], ids: list[int | str]) -> None:
        if not all(bool(torch.isfinite(value)) for value in losses.values()):
            values = ", ".join(f"{name} {float(value):g}" for name, value in losses.items())
            raise TrainingError(
                f"non-finite loss at step {self.at.step + 1} ({values}) on images {ids[:8]}; the last checkpoint is"
                " intact. Try a lower optim.optimizer.args.lr, more optim.warmup_steps or optim.clip_norm=5"
            )
        if self.config.optim.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _count_skipped(self, batch: Batch) -> None:
        for message in batch.skipped:
            if self.at.skipped < 20:
                self.log.say(f"skipped: {message}")
            self.at.skipped += 1

    def _report(self, bar: tqdm[Any], losses: dict[str, Tensor], images: int) -> None:
        at = self.at
        bar.update()
        if at.step % self.config.train.log_every and at.step != self.total:
            return
        values = {name: round(float(value), 5) for name, value in losses.items()}
        rate = self.optimizer.param_groups[-1]["lr"]
        speed = at.step / max(at.seconds, 1e-9) * images * self.group.world
        bar.set_postfix(loss=f"{sum(values.values()):.3f}", lr=f"{rate:.2g}", images_s=f"{speed:.1f}", refresh=False)
        self.log.write(kind="train", step=at.step, seconds=round(at.seconds, 2), lr=rate, **values)

    def _evaluate(self) -> None:
        model = self._best_model()
        started = time.perf_counter()
        self.at.figures = figures = evaluate(model, self.val, self.evaluators, self.group, self.config)
        self.log.write(
            kind="eval",
            step=self.at.step,
            seconds=round(self.at.seconds, 2),
            eval_seconds=round(time.perf_counter() - started, 2),
            **figures,
        )
        main = {name: value for name, value in figures.items() if name.count("/") == 1}
        shown = "  ".join(f"{name} {value:.3f}" for name, value in list(main.items())[:4])
        self.log.say(f"step {self.at.step} ({self.at.seconds / 60:.1f} min of training): {shown}")
        if figures[self.deciding] > self.at.best:
            self.at.best = figures[self.deciding]
            if self.group.main:
                header = model.header(
                    config=to_dict(self.config),
                    metrics=figures,
                    provenance={"step": self.at.step, "seed": self.config.seed},
                )
                save_weights(self.run / "best.safetensors", model.state_dict(), header)

    def _best_model(self) -> Model:
        if self.average is None:
            return self.model
        averaged = self.average.module
        assert isinstance(averaged, Model)
        return averaged

    def _save(self) -> None:
        if not self.group.main:
            return
        state = {
            "config": to_dict(self.config),
            "progress": dict(vars(self.at)),
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        try:
            save_checkpoint(self.run / "last.pt", state)
        except OSError as error:
            raise TrainingError(
                f"{self.run / 'last.pt'}: cannot save ({error.strerror}); the previous checkpoint is intact"
            ) from None

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
            self.at = Progress(**state["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            what = " ".join(str(error).split())[:200]
            raise ConfigError(f"{self.run / 'last.pt'}: does not fit {self.run / 'config.yaml'}: {what}") from None


_DTYPES = {Amp.fp32: torch.float32, Amp.bf16: torch.bfloat16, Amp.fp16: torch.float16}


def _deciding_figure(config: Config, evaluators: dict[str, Evaluator]) -> str:
    """The figure that ``train.best`` names, or the first task's main one."""
    task, evaluator = next(iter(evaluators.items()))
    key = config.train.best or f"{task}/{evaluator.main}"
    # what an evaluator computes of nothing has all its names
    known = [f"{name}/{figure}" for name, each in evaluators.items() for figure in each.compute()]
    if key not in known:
        raise ConfigError(f"train.best: no figure '{key}'{near(key, known)}")
    return key


def _average(model: Model, decay: float, warmup: bool) -> AveragedModel:
    """Exponential moving average of weights and batch-norm statistics."""

    @torch.no_grad()
    def blend(averaged: Any, current: Any, count: Any) -> None:
        now = min(decay, (1 + float(count)) / (10 + float(count))) if warmup else decay
        if torch.is_floating_point(averaged[0]):
            torch._foreach_lerp_(averaged, current, 1 - now)
        else:  # batch norm's counters
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    average = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
    average.requires_grad_(False)
    return average


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event: the step is finished and saved. A second SIGINT ends at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(number: int, _: object) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()
        os.write(2, b"\nstopping after this step, then saving ...\n")

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
