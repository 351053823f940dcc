"""The processes that torchrun started, or a single one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mnv2det.errors import Mnv2detError
from mnv2det.models.model import pick_device

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes that train together, as one of them sees it.

    Attributes:
        rank: Number of this process, 0 ... world - 1.
        world: How many there are.
        device: What this process computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, in the order of ranks, on every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def run_on_main(self, function: Callable[[], T]) -> T:
        """Calls a function on the first process alone; all processes get its result.

        Raises:
            Mnv2detError: The function raised it; every process does then, and the first one prints it.
        """
        outcome: list[Any] = [None, None]  # result, error
        if self.main:
            try:
                outcome[0] = function()
            except Mnv2detError as error:
                outcome[1] = error
        if self.world > 1:
            dist.broadcast_object_list(outcome, 0)
        if outcome[1] is not None:
            raise self.mark_shared(outcome[1])
        return outcome[0]

    def run_on_all(self, function: Callable[[], T]) -> T:
        """Calls a function on every process; when it fails on one of them, all raise that one's error.

        Raises:
            Mnv2detError: Of the first process that failed, which it names unless all did.
        """
        result, own_error = None, None
        try:
            result = function()
        except Mnv2detError as error:
            own_error = error
        errors = self.gather(own_error)
        first = next((rank for rank, error in enumerate(errors) if error is not None), None)
        if first is None:
            return result  # type: ignore[return-value]
        shared = errors[first]
        if None in errors:
            shared = type(shared)(f"process {first} of {self.world}: {shared}")
        raise self.mark_shared(shared)

    def mark_shared(self, error: Mnv2detError) -> Mnv2detError:
        """Marks an error that all processes raise alike, so that only the first one prints it."""
        error.silent = not self.main
        return error

    def with_rank(self, error: Mnv2detError) -> Mnv2detError:
        """Adds the number of this process to an error that it alone raises."""
        return type(error)(f"process {self.rank} of {self.world}: {error}") if self.world > 1 else error

    def share(self, tensors: Sequence[torch.Tensor]) -> None:
        """Gives every process the first one's values, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def average(self, tensors: Sequence[torch.Tensor | None]) -> None:
        """Gives every process the mean of all processes' values, in place."""
        for tensor in tensors if self.world > 1 else ():
            if tensor is not None:
                dist.all_reduce(tensor)
                tensor /= self.world

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' values."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool | torch.Tensor) -> list[bool]:
        """Which of the flags are set on any process; one exchange for all of them."""
        if self.world == 1:
            return [bool(flag) for flag in flags]
        values = torch.stack([torch.as_tensor(flag, dtype=torch.float32, device=self.device) for flag in flags])
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return [bool(value) for value in values.tolist()]


@contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """Joins the group that torchrun announces in the environment.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:1``; None takes CUDA where there is one.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = pick_device(device)
    if chosen.type == "cuda":
        if world > 1:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen.index or 0)
    if world == 1:
        yield Processes(0, 1, chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world, chosen)
    finally:
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun has started these processes again after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
