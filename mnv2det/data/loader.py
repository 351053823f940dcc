"""From a data set to batches: the order of images, worker processes, broken images."""

from __future__ import annotations

import multiprocessing
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

Draw = tuple[int, int]  # index of an image, and seed of its augmentation


class ResumableSampler(Sampler[list[Draw]]):
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

    def __iter__(self) -> Iterator[list[Draw]]:
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
    """One image as a worker hands it over.

    Attributes:
        image_id: The data set's identifier.
        pixels: uint8 (3, H, W).
        target: In training, the annotation in pixels of the input.
        frame: Where the picture lies in the input.
        truth: In evaluation, the annotation in pixels of the original image.
    """

    image_id: int | str
    pixels: torch.Tensor
    target: Arrays
    frame: Frame
    truth: Arrays


Item = Loaded | str | DataError  # a string says which broken image was left out, and why


class _Images(TorchDataset[Item]):
    """Decodes one image and prepares it for a batch.

    Args:
        dataset: Images and annotations.
        transform: An augmentation to learn from; what the input must be like, to measure; None leaves
            the picture as it is on disk.
        bad_data: Whether a broken image becomes a message or an error.
    """

    def __init__(self, dataset: Dataset, transform: Transform | Preprocess | None, bad_data: BadData) -> None:
        self.dataset, self.transform, self.skip = dataset, transform, bad_data is BadData.skip

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Item:
        index, seed = draw
        try:
            sample = self.dataset.read(index)
        except DataError as error:
            return str(error) if self.skip else error
        size = (sample.image.shape[0], sample.image.shape[1])
        if self.transform is None:
            return Loaded(sample.image_id, _pixels(sample.image), {}, Frame(size, size), sample.target)
        if isinstance(self.transform, Preprocess):
            image, frame = fit(sample.image, self.transform)
            return Loaded(sample.image_id, _pixels(image), {}, frame, sample.target)
        image, target = self.transform(sample, seed)
        return Loaded(sample.image_id, _pixels(image), target, Frame(size, (image.shape[0], image.shape[1])), {})


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
    return _loader(_Images(dataset, transform, bad_data), sampler, workers, pin)


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
    indices = range(rank, len(dataset), world)
    batches = [
        [(index, 0) for index in indices[first : first + batch_size]] for first in range(0, len(indices), batch_size)
    ]
    return _loader(_Images(dataset, preprocess, bad_data), batches, workers, pin)


def picture_loader(dataset: Dataset, *, workers: int, bad_data: BadData) -> DataLoader[Batch]:
    """Every image once, in a batch of its own and as it is on disk, for whoever prepares pictures himself."""
    batches = [[(index, 0)] for index in range(len(dataset))]
    return _loader(_Images(dataset, None, bad_data), batches, workers, pin=False)


class _Loader(DataLoader[Batch]):
    """Raises the errors that workers return. Raised in a worker, torch would add a traceback to their text."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch


def collate(items: Sequence[Item]) -> Batch | DataError:
    """Joins images to a batch, which is empty if all were left out as broken; returns the first error instead."""
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

    Where pictures may not be scaled (``fit: pad``), the largest sides set the batch's size. Smaller
    pictures lie at the top left; the frame of each says where it ends.
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    joined = torch.zeros(len(images), height, width, 3, dtype=images[0].dtype).permute(0, 3, 1, 2)
    for slot, image in zip(joined, images, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
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
    images: _Images, batches: Sampler[list[Draw]] | list[list[Draw]], workers: int, pin: bool
) -> DataLoader[Batch]:
    # More workers than cores only get in each other's way, and a daemonic process, such as a row of bench, may not
    # start any. What is read does not depend on their number.
    workers = 0 if multiprocessing.current_process().daemon else min(workers, cores())
    return _Loader(
        images,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_quiet_worker,
        pin_memory=pin,
        # a generator of its own, so that making a loader draws no numbers from the run's
        generator=torch.Generator(),
        # forked workers share the annotation arrays
        multiprocessing_context=_Forked() if workers and sys.platform == "linux" else None,
        prefetch_factor=2 if workers else None,
    )


if sys.platform != "win32":

    class _Popen(multiprocessing.popen_fork.Popen):
        """A worker process. It ignores requests to stop, so its parent ends it by a signal that cannot be ignored."""

        def terminate(self) -> None:
            self.kill()

    class _Process(multiprocessing.context.ForkProcess):
        @staticmethod
        def _Popen(process_obj: Any) -> _Popen:  # noqa: N802 - multiprocessing's name
            return _Popen(process_obj)

    class _Forked(multiprocessing.context.ForkContext):
        Process = _Process


def _quiet_worker(_: int) -> None:
    """Gives a worker one thread, as the cores belong to the training step, and lets it ignore requests to stop.

    These are for its parent, which ends it. But a terminal sends them to the whole process group, a
    cluster to every process.
    """
    import cv2

    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        # elsewhere than on Linux (`_Popen`) a parent ends its workers by SIGTERM
        if hasattr(signal, name) and (name != "SIGTERM" or sys.platform == "linux"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _seed(run: int, epoch: int, index: int) -> int:
    return int(np.random.SeedSequence((run, epoch, index)).generate_state(1)[0])
