"""From a data set to batches: what is drawn when, workers, broken images."""

from __future__ import annotations

import multiprocessing.context
import multiprocessing.popen_fork
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from mnv2det.config import BadData
from mnv2det.data.dataset import Arrays, Dataset
from mnv2det.data.fit import fit
from mnv2det.data.transforms import Transform
from mnv2det.errors import DataError
from mnv2det.io import cores
from mnv2det.structures import Batch, Frame, Preprocess, Target

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


class Loaded(NamedTuple):
    """One image as a worker hands it over: a target in the input's pixels to learn from, or a truth to measure by."""

    image_id: int | str
    pixels: torch.Tensor
    target: Arrays
    frame: Frame
    truth: Arrays


Item = Loaded | str | DataError


class _View(TorchDataset[Item]):
    """Decodes one image and augments it, or fits it to the input where there is no augmentation.

    A broken one becomes a message where that is allowed, else an error.
    """

    def __init__(self, dataset: Dataset, transform: Transform | Preprocess, bad_data: BadData) -> None:
        self.dataset, self.transform, self.skip = dataset, transform, bad_data is BadData.skip

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, drawn: Drawn) -> Item:
        index, seed = drawn
        try:
            sample = self.dataset.read(index)
        except DataError as error:
            return str(error) if self.skip else error
        if isinstance(self.transform, Preprocess):
            image, frame = fit(sample.image, self.transform)
            return Loaded(sample.image_id, _pixels(image), {}, frame, sample.target)
        image, target = self.transform(sample, seed)
        frame = Frame((sample.image.shape[0], sample.image.shape[1]), (image.shape[0], image.shape[1]))
        return Loaded(sample.image_id, _pixels(image), target, frame, {})


def _pixels(image: NDArray[np.uint8]) -> torch.Tensor:
    """The same bytes as (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


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
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int,
    bad_data: BadData,
    pin: bool = False,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Batch]:
    """Every image once, fitted to the input; with several processes each takes every world-th."""
    mine = range(rank, len(dataset), world)
    batches = [[(index, 0) for index in mine[first : first + batch_size]] for first in range(0, len(mine), batch_size)]
    return _loader(_View(dataset, preprocess, bad_data), batches, workers, pin)


class _Loader(DataLoader[Batch]):
    """Raises here what a worker returned as an error; raised there, torch would add a traceback to its text."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch


def collate(items: Sequence[Item]) -> Batch | DataError:
    """Joins what the workers made, or returns the first error; an empty batch if all are broken but may be."""
    good: list[Loaded] = []
    skipped: list[str] = []
    for item in items:
        if isinstance(item, DataError):
            return item
        if isinstance(item, str):
            skipped.append(item)
        else:
            good.append(item)
    if not good:
        return Batch(torch.zeros((0, 3, 1, 1), dtype=torch.uint8), [], [], [], skipped=skipped)
    return Batch(
        images=stack([item.pixels for item in good]),
        targets=[_tensors(item.target) for item in good],
        image_ids=[item.image_id for item in good],
        frames=[item.frame for item in good],
        truths=[item.truth for item in good],
        skipped=skipped,
    )


def stack(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Joins images (3, H, W) of one batch into (B, 3, H, W), channels last.

    Where pictures may not be scaled (``fit: pad``) larger ones set the batch's size; what is added
    to the others is never looked at.
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    joined = torch.zeros(len(images), height, width, 3, dtype=images[0].dtype).permute(0, 3, 1, 2)
    for place, image in zip(joined, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return joined


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
    # more than there are cores only get in each other's way; what is read does not depend on their number
    workers = min(workers, cores())
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
        multiprocessing_context=_Forked() if workers and sys.platform == "linux" else None,
        prefetch_factor=2 if workers else None,
    )


if sys.platform != "win32":

    class _Popen(multiprocessing.popen_fork.Popen):
        """A worker, which ignores requests to stop: its parent has to insist, or would wait for it for ever."""

        def terminate(self) -> None:
            self.kill()

    class _Process(multiprocessing.context.ForkProcess):
        @staticmethod
        def _Popen(process_obj: Any) -> _Popen:  # noqa: N802 - multiprocessing's name
            return _Popen(process_obj)

    class _Forked(multiprocessing.context.ForkContext):
        Process = _Process


def _quiet_worker(_: int) -> None:
    """One thread per worker: the cores belong to the training step. Requests to stop are for the parent.

    A terminal sends them to the whole group, a cluster to every process; a worker goes when its parent does.
    """
    import cv2

    os.setpgrp()
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        # by SIGTERM elsewhere than on Linux (`_Popen`) a parent ends its workers
        if hasattr(signal, name) and (name != "SIGTERM" or sys.platform == "linux"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _seed(run: int, epoch: int, index: int) -> int:
    return int(np.random.SeedSequence((run, epoch, index)).generate_state(1)[0])
