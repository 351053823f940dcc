"""From a data set to batches: what is drawn when, workers, broken images."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from mnv2det.config import BadData
from mnv2det.data.dataset import Arrays, Dataset
from mnv2det.data.transforms import Transform, stretched
from mnv2det.errors import DataError
from mnv2det.structures import Batch, Sample, Target

Drawn = tuple[int, int]  # index and augmentation seed


class ResumableSampler(Sampler[list[Drawn]]):
    """Batches of (index, seed) for a whole run: a pure function of run seed and batch number.

    Every epoch is a fresh permutation without its incomplete last batch (but a data set smaller
    than a batch is one batch). Processes share the epoch between them.

    Args:
        length: Images in the data set.
        batch_size: Per process.
        seed: Of the run.
        start: First batch to yield, counted from the start of the run.
        stop: The batch to stop before.
        rank: Of this process.
        world: Number of processes.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> None:
        self.length, self.seed, self.start, self.stop = length, seed, start, stop
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.per_epoch = max(1, length // (batch_size * world))

    def __iter__(self) -> Iterator[list[Drawn]]:
        epoch, order = -1, np.zeros(0, np.int64)
        for number in range(self.start, self.stop):
            if number // self.per_epoch != epoch:
                epoch = number // self.per_epoch
                order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
            total = self.batch_size * self.world
            first = number % self.per_epoch * total
            chosen = order[first : first + total][self.rank :: self.world]
            yield [(int(index), _seed(self.seed, epoch, int(index))) for index in chosen]

    def __len__(self) -> int:
        return max(0, self.stop - self.start)


Item = tuple[Sample, torch.Tensor, Arrays] | str | DataError


class _View(TorchDataset[Item]):
    """Decodes and transforms one image; a broken one becomes a message where that is allowed, else an error."""

    def __init__(self, dataset: Dataset, transform: Transform, bad_data: BadData) -> None:
        self.dataset, self.transform, self.skip = dataset, transform, bad_data is BadData.skip

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, drawn: Drawn) -> Item:
        index, seed = drawn
        try:
            sample = self.dataset.read(index)
        except DataError as error:
            return str(error) if self.skip else error
        image, target = self.transform(sample, seed)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return (
            Sample(image[:0], sample.target, sample.image_id),
            pixels,
            {**target, "_size": np.array(sample.image.shape[:2])},
        )


def train_loader(
    dataset: Dataset,
    transform: Transform,
    sampler: ResumableSampler,
    *,
    workers: int,
    bad_data: BadData,
    pin: bool = False,
) -> DataLoader[Batch]:
    """Batches in the sampler's order, whatever the number of workers."""
    return _loader(_View(dataset, transform, bad_data), sampler, workers, pin)


def eval_loader(
    dataset: Dataset,
    size: tuple[int, int],
    *,
    batch_size: int,
    workers: int,
    bad_data: BadData,
    pin: bool = False,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Batch]:
    """Every image once, stretched to ``size``; with several processes each takes every world-th."""
    mine = range(rank, len(dataset), world)
    batches = [[(index, 0) for index in mine[first : first + batch_size]] for first in range(0, len(mine), batch_size)]
    return _loader(_View(dataset, functools.partial(stretched, size=size), bad_data), batches, workers, pin)


class _Loader(DataLoader[Batch]):
    """Raises here what a worker returned as an error; raised there, torch would add a traceback to its text."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch


def collate(items: Sequence[Item]) -> Batch | DataError:
    """Joins what the workers made, or returns the first error; an empty batch if all are broken but may be."""
    good: list[tuple[Sample, torch.Tensor, Arrays]] = []
    skipped: list[str] = []
    for item in items:
        if isinstance(item, DataError):
            return item
        if isinstance(item, str):
            skipped.append(item)
        else:
            good.append(item)
    if not good:
        return Batch(torch.zeros((0, 3, 1, 1), dtype=torch.uint8), [], [], [], skipped)
    return Batch(
        images=torch.stack([pixels for _, pixels, _ in good]),
        targets=[_tensors(target) for _, _, target in good],
        image_ids=[sample.image_id for sample, _, _ in good],
        sizes=[(int(target["_size"][0]), int(target["_size"][1])) for _, _, target in good],
        skipped=skipped,
    )


def _tensors(target: Arrays) -> Target:
    result: Target = {}
    for key in ("boxes", "labels", "ignore", "label"):
        if key in target:
            result[key] = torch.from_numpy(np.asarray(target[key]))
    if "mask" in target:
        result["mask"] = torch.from_numpy(target["mask"].astype(np.int64))
    return result


def _loader(
    view: _View, batches: Sampler[list[Drawn]] | list[list[Drawn]], workers: int, pin: bool
) -> DataLoader[Batch]:
    return _Loader(
        view,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_quiet_worker,
        pin_memory=pin,
        # its own, so that making a loader draws nothing from the run's
        generator=torch.Generator(),
        # forked workers share the annotation arrays
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        prefetch_factor=2 if workers else None,
    )


def _quiet_worker(_: int) -> None:
    """One thread per worker: the cores belong to the training step. Signals to the group are for the parent."""
    import cv2

    os.setpgrp()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _seed(run: int, epoch: int, index: int) -> int:
    return int(np.random.SeedSequence((run, epoch, index)).generate_state(1)[0])
