"""One optimizer step: model, gradients, update and average, and their state for a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnv2det.config import Amp, Config
from mnv2det.engine.average import average_of
from mnv2det.engine.balance import TaskBalance
from mnv2det.engine.dist import Processes
from mnv2det.engine.optim import build_optimizer
from mnv2det.engine.resume import restore_optimizer
from mnv2det.engine.shares import shares
from mnv2det.errors import ConfigError
from mnv2det.models.model import Model
from mnv2det.structures import Batch


class Learner:
    """A model on its device with everything that changes it.

    Args:
        model: The model to train.
        config: The experiment.
        total: Steps of the whole run.
        group: Processes that learn together.

    Attributes:
        model: The model, on the device of ``group``.
        average: Moving average of its weights; None where the config keeps none.
        balance: Learned weights of the tasks; None where the config states them.
        forward: The model, wrapped where several processes exchange gradients.

    Raises:
        ConfigError: A key asks for what this device cannot do.
    """

    def __init__(self, model: Model, config: Config, total: int, group: Processes) -> None:
        self.config, self.group, train = config, group, config.train
        if train.sync_bn and group.world > 1 and group.device.type != "cuda":
            raise ConfigError("train.sync_bn: torch has it for CUDA only")
        if train.amp is Amp.fp16 and group.device.type != "cuda":
            raise ConfigError("train.amp: fp16 needs CUDA; use bf16 or fp32 on this device")
        self.model = model.to(group.device)
        if train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.average = average_of(self.model, train.ema_decay, warmup=train.ema_warmup) if train.ema_decay else None
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=train.amp is Amp.fp16)
        self.balance = self._balance() if train.uncertainty else None
        extra = list(self.balance.parameters()) if self.balance else []
        self.optimizer, self.schedule = build_optimizer(self.model, config.optim, total, extra)
        self.forward: nn.Module = self.model
        self._buffers_before: list[Tensor] = []
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

    def evaluated_model(self) -> Model:
        """The model to measure and keep: the moving average, where there is one."""
        model = self.model if self.average is None else self.average.module
        assert isinstance(model, Model)
        return model

    def gradients(self, batches: Sequence[Batch], seed: int) -> tuple[dict[str, Tensor], Tensor]:
        """Computes the gradients of the mean loss over several batches and all processes; changes no parameter.

        Args:
            batches: The batches of one step; the gradients are those of one batch of all their images.
            seed: Of the random numbers that the step draws, for dropout.

        Returns:
            This process's losses by name, and a bool scalar: whether they and the gradients are finite.
            With fp16 the losses only: its scaler skips steps whose gradients overflow by itself.
        """
        torch.manual_seed(seed)
        if self.config.train.skip_nonfinite:
            # what batch norm learns from a step that is left out has to be taken back
            self._buffers_before = [buffer.clone() for buffer in self.model.buffers()]
        summed: dict[str, Tensor] = {}
        for number, weights in enumerate(shares(self.model, batches, self.group)):
            last = number == len(batches) - 1
            # processes exchange gradients once a step, however many batches it has
            exchange_later = isinstance(self.forward, DistributedDataParallel) and not last
            with self.forward.no_sync() if exchange_later else contextlib.nullcontext():  # type: ignore[operator]
                losses = self._losses(batches[number], weights)
                self.scaler.scale(torch.stack(list(losses.values())).sum() / len(batches)).backward()
            for name, value in losses.items():
                summed[name] = summed.get(name, 0) + value.detach() / len(batches)
        if self.balance is not None:
            # no part of the wrapped model, which averages its own gradients
            self.group.average([parameter.grad for parameter in self.balance.parameters()])
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm or float("inf"))
        values = list(summed.values()) if self.scaler.is_enabled() else [*summed.values(), norm]
        return summed, torch.stack(values).isfinite().all()

    def _losses(self, batch: Batch, shares: Mapping[str, float | Tensor]) -> dict[str, Tensor]:
        train, device = self.config.train, self.group.device
        inputs = self.model.normalize(batch.images.to(device, non_blocking=True))
        if train.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, _DTYPES[train.amp], enabled=train.amp is not Amp.fp32):
            raw = self.forward(inputs)
        weights = {name: weight * shares.get(name, 1.0) for name, weight in self.weights().items()}
        losses = self.model.loss(raw, batch.targets, weights)
        if self.balance is not None:
            losses["balance"] = self.balance.penalty(batch.targets)
        return losses

    def weights(self) -> Mapping[str, float | Tensor]:
        """Each task's weight, as learned or as the config states it."""
        if self.balance is not None:
            return self.balance.weights()
        return {name: task.weight for name, task in self.config.tasks.items()}

    def update(self) -> None:
        """Changes the parameters by the gradients, then the moving average and the learning rate."""
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.get_scale() >= scale:
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def discard(self) -> None:
        """Leaves out the step instead of an `update`; puts batch norm's statistics back as they were before it."""
        for buffer, before in zip(self.model.buffers(), self._buffers_before, strict=True):
            buffer.copy_(before)
        if self.scaler.is_enabled():
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs."""
        return {
            "model": self.model.state_dict(),
            "balance": self.balance.state_dict() if self.balance is not None else None,
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Puts a `state` back.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: It does not fit.
        """
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.balance is not None:
            self.balance.load_state_dict(state["balance"])
        restore_optimizer(self.optimizer, self.schedule, state)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


_DTYPES = {Amp.fp32: torch.float32, Amp.bf16: torch.bfloat16, Amp.fp16: torch.float16}
