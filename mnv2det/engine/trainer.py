"""The training loop: plain torch, read top to bottom."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from mnv2det.config import Amp, Config, load_config, to_dict, to_yaml
from mnv2det.data.loader import ResumableSampler, train_loader
from mnv2det.engine.average import average_of
from mnv2det.engine.balance import TaskBalance
from mnv2det.engine.build import (
    build_augmentation,
    build_dataset,
    build_evaluators,
    check,
    deciding_figure,
    hold_to,
    task_classes,
)
from mnv2det.engine.checkpoint import Progress, changed_keys, load_checkpoint, save_checkpoint
from mnv2det.engine.dist import Processes, processes
from mnv2det.engine.evaluate import evaluate
from mnv2det.engine.interrupt import Interrupted, stop_requests
from mnv2det.engine.log import RunLog, progress
from mnv2det.engine.optim import build_optimizer
from mnv2det.errors import ConfigError, DataError, TrainingError, WeightsError
from mnv2det.models.model import Model, assemble, from_config
from mnv2det.models.weights.files import Header, save_weights, write_atomically
from mnv2det.structures import Batch


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
    with processes(device) as group, stop_requests() as stop:
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
        self.val = build_dataset(config, "val", self.data.classes)
        hold_to(config, self.val, self.classes)
        state = load_checkpoint(run / "last.pt") if resume else None
        self.model, notes = self._resumed(state) if state else from_config(config.model, config.tasks, self.classes)
        self.evaluators = build_evaluators(config, self.classes)
        self.deciding = deciding_figure(config, self.evaluators)
        self.at = Progress()
        self.saved = 0  # step of the checkpoint on disk
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
        self.average = average_of(self.model, train.ema_decay, warmup=train.ema_warmup) if train.ema_decay else None
        if len(self.data) < group.world:
            raise ConfigError(f"data.train: {len(self.data)} images for {group.world} processes; use fewer processes")
        if train.sync_bn and group.world > 1 and group.device.type != "cuda":
            raise ConfigError("train.sync_bn: torch has it for CUDA only")
        if train.amp is Amp.fp16 and group.device.type != "cuda":
            raise ConfigError("train.amp: fp16 needs CUDA; use bf16 or fp32 on this device")
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=train.amp is Amp.fp16)
        sampler = ResumableSampler(
            len(self.data), config.data.batch_size, seed=config.seed, start=0, stop=0, world=group.world
        )
        self.per_epoch = max(1, sampler.per_epoch // train.accumulate)
        self.total = train.steps or (train.epochs or 0) * self.per_epoch
        self.balance = self._balance() if train.uncertainty else None
        extra = list(self.balance.parameters()) if self.balance else []
        self.optimizer, self.schedule = build_optimizer(self.model, config.optim, self.total, extra)
        self.forward: nn.Module = self.model
        if group.world > 1:
            if train.sync_bn:
                nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            self.forward = DistributedDataParallel(self.model)

    def _balance(self) -> TaskBalance:
        weights = {name: task.weight for name, task in self.config.tasks.items()}
        if len(weights) < 2 or min(weights.values()) <= 0:
            raise ConfigError("train.uncertainty: weighs several tasks against each other, each of a weight above 0")
        heads = self.model.heads.items()
        return TaskBalance(weights, {name: head.needs for name, head in heads}).to(self.group.device)  # type: ignore[misc]

    def go(self, stop: threading.Event) -> dict[str, Any]:
        """Runs from the current step to the last, or to a request to stop."""
        try:
            with progress(self.total, self.at.step, active=self.group.main) as bar:
                return self._loop(bar, stop)
        except RuntimeError as error:
            # torch raises a worker's death wherever the main thread happens to be
            what = str(error).splitlines()[0][:200]
            if "DataLoader worker" in what:
                cause, advice = "a loader worker died", "fewer data.workers"
            elif isinstance(error, torch.OutOfMemoryError):
                cause, advice = "the device ran out of memory", "a smaller data.batch_size and more train.accumulate"
            else:
                raise
            raise TrainingError(
                f"{cause} at step {self.at.step + 1} ({what}); {self._kept()}. Go on with it (--resume), or start"
                f" again with {advice}"
            ) from None

    def _loop(self, bar: tqdm[Any], stop: threading.Event) -> dict[str, Any]:
        train, at = self.config.train, self.at
        batches = self._batches()
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
                raise Interrupted(
                    f"stopped at step {at.step} of {self.total}, saved; go on with: mnv2det train --resume {self.run}"
                )
            started = time.perf_counter()
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
            pin=group.device.type == "cuda",
        )
        yield from loader

    def _step(self, batches: Iterator[Batch]) -> tuple[dict[str, Tensor], int]:
        """One optimizer step; returns its losses and how many images it saw here."""
        config, train = self.config, self.config.train
        # what is random in a step (dropout) is a function of seed, step and process: nothing to save
        torch.manual_seed(hash((config.seed, self.at.step, self.group.rank)) % 2**63)
        summed: dict[str, Tensor] = {}
        images, ids = 0, []
        for _ in range(train.accumulate):
            batch = next(batches)
            if not batch.image_ids:
                raise DataError(f"all images of a batch are broken, the first: {batch.skipped[0]}")
            pixels = batch.images.to(self.group.device, non_blocking=True)
            inputs = self.model.normalize(pixels)
            if train.channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.group.device.type, _DTYPES[train.amp], enabled=train.amp is not Amp.fp32):
                raw = self.forward(inputs)
            losses = self.model.loss(raw, batch.targets, self._weights())
            if self.balance is not None:
                losses["balance"] = self.balance.penalty(batch.targets)
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

    def _weights(self) -> Mapping[str, float | Tensor]:
        if self.balance is not None:
            return self.balance.weights()
        return {name: task.weight for name, task in self.config.tasks.items()}

    def _update(self, losses: dict[str, Tensor], ids: list[int | str]) -> None:
        limit = self.config.optim.clip_norm or float("inf")
        if self.balance is not None:
            # it is no part of the wrapped model
            self.group.average([parameter.grad for parameter in self.balance.parameters()])
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        finite = all(bool(torch.isfinite(value)) for value in losses.values())
        # a scaler skips steps whose gradients overflow fp16 by itself
        if not self.scaler.is_enabled():
            finite = finite and bool(torch.isfinite(norm))
        if self.group.any(not finite):
            values = ", ".join(f"{name} {float(value):g}" for name, value in losses.items())
            raise TrainingError(
                f"non-finite loss or gradient at step {self.at.step + 1} ({values}) on images {ids[:8]};"
                f" {self._kept()}. Try a lower optim.optimizer.args.lr, more optim.warmup_steps or optim.clip_norm=5"
            )
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.get_scale() >= scale:
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
        if self.balance is not None:
            values |= {f"weight/{task}": round(float(value), 5) for task, value in self.balance.weights().items()}
        self.log.write(kind="train", step=at.step, seconds=round(at.seconds, 2), lr=rate, **values)

    def _evaluate(self) -> None:
        model = self._best_model()
        started = time.perf_counter()
        # each process has batch-norm statistics of its own: all measure the ones that are saved
        self.group.share([*self.model.buffers(), *model.buffers()])
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
        if self.at.best is None or figures[self.deciding] > self.at.best:
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
            "header": self.model.header().to_json(),
            "progress": dict(vars(self.at)),
            "model": self.model.state_dict(),
            "balance": self.balance.state_dict() if self.balance is not None else None,
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        try:
            save_checkpoint(self.run / "last.pt", state)
            self.saved = self.at.step
        except OSError as error:
            raise TrainingError(f"{self.run / 'last.pt'}: cannot save ({error.strerror}); {self._kept()}") from None

    def _kept(self) -> str:
        """What is left of the run, for messages."""
        return f"{self.run / 'last.pt'} holds step {self.saved}" if self.saved else "no checkpoint was saved yet"

    def _resumed(self, state: dict[str, Any]) -> tuple[Model, list[str]]:
        """The checkpoint's model: the initial weights need not be there any more."""
        changed = changed_keys(state.get("config"), to_dict(self.config))
        if changed:
            raise ConfigError(f"{self.run / 'config.yaml'}: changed since the checkpoint: {', '.join(changed[:5])}")
        header = Header.from_json(str(state.get("header")), where=str(self.run / "last.pt"))
        if header.classes != self.classes:
            raise WeightsError(f"{self.run / 'last.pt'}: its classes are not those of the data: {header.classes}")
        model = assemble(header.backbone, header.heads, classes=header.classes, preprocess=header.preprocess)
        if self.config.model.freeze:
            model.freeze(self.config.model.freeze)
        return model, []

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            if self.balance is not None:
                self.balance.load_state_dict(state["balance"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
            self.at = Progress(**state["progress"])
            self.saved = self.at.step
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            what = " ".join(str(error).split())[:200]
            raise ConfigError(f"{self.run / 'last.pt'}: does not fit {self.run / 'config.yaml'}: {what}") from None


_DTYPES = {Amp.fp32: torch.float32, Amp.bf16: torch.bfloat16, Amp.fp16: torch.float16}
