import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mnv2det.config import BadData
from mnv2det.data.dataset import Arrays, Dataset
from mnv2det.data.fit import resize
from mnv2det.data.loader import ResumableSampler, eval_loader, picture_loader, stack, train_loader
from mnv2det.data.shapes import Shapes
from mnv2det.data.transforms import none, ssd
from mnv2det.errors import DataError
from mnv2det.structures import Batch, Frame, Preprocess, Sample

pytestmark = pytest.mark.process

SIZE = (32, 48)
INPUT = Preprocess(SIZE)


class Numbered(Dataset):
    """Images filled with their index; those named in ``broken`` cannot be read."""

    def __init__(self, count: int = 10, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken
        self.classes, self.problems = {"labels": ["a"]}, []

    def __len__(self) -> int:
        return self.count

    def image_id(self, index: int) -> str:
        return f"image{index}"

    def target(self, index: int) -> Arrays:
        return {
            "boxes": np.array([[0, 0, 20, 10]], np.float32),
            "labels": np.array([0]),
            "ignore": np.array([False]),
            "area": np.array([200], np.float32),
        }

    def read(self, index: int) -> Sample:
        if index in self.broken:
            raise DataError(f"/data/{index}.jpg: truncated JPEG")
        return Sample(np.full((20, 40, 3), index, np.uint8), self.target(index), self.image_id(index))


def sampler(length: int = 10, batch_size: int = 4, start: int = 0, stop: int = 5, **other: int) -> ResumableSampler:
    return ResumableSampler(length, batch_size, **{"seed": 0, **other}, start=start, stop=stop)


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert_close(one.images, two.images, rtol=0, atol=0)
        assert (one.image_ids, one.frames, one.skipped) == (two.image_ids, two.frames, two.skipped)
        for target, other in zip(one.targets, two.targets, strict=True):
            assert target.keys() == other.keys()
            for key in target:
                assert_close(target[key], other[key], rtol=0, atol=0)


# what is drawn


def test_start_gives_the_tail_of_the_whole_sequence():
    whole = list(sampler(stop=13))
    for start in range(14):
        assert list(sampler(start=start, stop=13)) == whole[start:]


def test_length_is_the_number_of_batches_left():
    assert len(sampler(start=2, stop=9)) == len(list(sampler(start=2, stop=9))) == 7
    assert len(sampler(start=9, stop=2)) == 0


def test_epoch_draws_no_image_twice():
    # 10 images in batches of 4: two batches an epoch, two images left out
    batches = [[index for index, _ in batch] for batch in sampler(stop=6)]
    epochs = [batches[first] + batches[first + 1] for first in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_every_image_is_drawn_where_batches_fit():
    assert sorted(index for batch in sampler(length=12, stop=3) for index, _ in batch) == list(range(12))


def test_seed_decides():
    assert list(sampler(seed=1)) == list(sampler(seed=1))
    assert list(sampler(seed=1)) != list(sampler(seed=2))


def test_augmentation_seeds_differ_between_images_and_epochs():
    seeds = [seed for batch in sampler(length=8, stop=20) for _, seed in batch]
    assert len(set(seeds)) == len(seeds) == 80


def test_ranks_share_the_batch_of_one_process():
    alone = list(sampler(length=40, batch_size=6, stop=9))
    ranks = [list(sampler(length=40, batch_size=2, stop=9, rank=rank, world=3)) for rank in range(3)]
    for number, batch in enumerate(alone):
        parts = [rank[number] for rank in ranks]
        assert [len(part) for part in parts] == [2, 2, 2]
        assert sorted(drawn for part in parts for drawn in part) == sorted(batch)


def test_data_set_smaller_than_a_batch_is_one_batch():
    batches = list(sampler(length=3, batch_size=8, stop=2))
    assert [sorted(index for index, _ in batch) for batch in batches] == [[0, 1, 2], [0, 1, 2]]


# batches


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers: int):
    transform = ssd(INPUT, photometric=1.0)
    data = Shapes(count=10, size=(40, 50))

    def batches(count: int) -> list[Batch]:
        return list(train_loader(data, transform, sampler(stop=4), workers=count, bad_data=BadData.stop))

    assert_same(batches(workers), batches(0))


def test_resumed_loader_continues_the_batches():
    transform = ssd(INPUT)
    data = Shapes(count=10, size=(40, 50))
    whole = list(train_loader(data, transform, sampler(), workers=0, bad_data=BadData.stop))
    rest = list(train_loader(data, transform, sampler(start=3), workers=0, bad_data=BadData.stop))
    assert_same(rest, whole[3:])


def test_batch_has_the_documented_types():
    data = Shapes(count=4, size=(40, 50))
    batch = next(iter(eval_loader(data, INPUT, batch_size=3, workers=0, bad_data=BadData.stop)))
    assert (batch.images.shape, batch.images.dtype) == ((3, 3, *SIZE), torch.uint8)
    assert (batch.image_ids, batch.frames, batch.skipped) == ([0, 1, 2], [Frame((40, 50), SIZE)] * 3, [])
    assert batch.targets == [{}, {}, {}]
    assert batch.truths[0]["mask"].shape == (40, 50), "truths stay in original pixels"
    batch = next(iter(train_loader(data, none(INPUT), sampler(4, 3, stop=1), workers=0, bad_data=BadData.stop)))
    kinds = {key: value.dtype for key, value in batch.targets[0].items()}
    expected = {"boxes": torch.float32, "labels": torch.int64, "ignore": torch.bool, "mask": torch.int64}
    assert kinds == expected
    assert batch.targets[0]["mask"].shape == SIZE
    assert batch.truths[0] == {}


def test_pictures_that_may_not_be_scaled_share_a_batch():
    """The larger one sets the size; each knows where it lies."""
    data = Shapes(count=2, size=(40, 50))
    small = Preprocess((24, 60), fit="pad")
    batch = next(iter(eval_loader(data, small, batch_size=2, workers=0, bad_data=BadData.stop)))
    assert batch.images.shape == (2, 3, 40, 60)
    assert batch.frames == [Frame((40, 50), (40, 50))] * 2
    assert (batch.images[:, :, :, 50:] == 128).all()
    joined = stack([torch.ones(3, 2, 5), torch.ones(3, 4, 3)])
    assert joined.shape == (2, 3, 4, 5)
    assert (joined[0, :, :2] == 1).all()
    assert joined.is_contiguous(memory_format=torch.channels_last)


def test_what_is_not_annotated_stays_absent():
    loader = train_loader(Numbered(), none(INPUT), sampler(), workers=0, bad_data=BadData.stop)
    assert set(next(iter(loader)).targets[0]) == {"boxes", "labels", "ignore"}


def test_evaluation_shows_every_image_once_in_order():
    batches = list(eval_loader(Numbered(), INPUT, batch_size=4, workers=0, bad_data=BadData.stop))
    assert [batch.image_ids for batch in batches] == [
        ["image0", "image1", "image2", "image3"],
        ["image4", "image5", "image6", "image7"],
        ["image8", "image9"],
    ]
    assert batches[2].images[:, 0, 0, 0].tolist() == [8, 9]
    assert batches[0].truths[0]["boxes"].tolist() == [[0, 0, 20, 10]]


def test_evaluation_is_shared_between_processes():
    found = []
    for rank in range(3):
        loader = eval_loader(Numbered(), INPUT, batch_size=2, workers=0, bad_data=BadData.stop, rank=rank, world=3)
        found.append([name for batch in loader for name in batch.image_ids])
    assert found == [
        ["image0", "image3", "image6", "image9"],
        ["image1", "image4", "image7"],
        ["image2", "image5", "image8"],
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_come_one_by_one_as_they_are_on_disk(workers: int):
    batches = list(picture_loader(Numbered(broken=(1,)), workers=workers, bad_data=BadData.skip))
    assert [batch.image_ids for batch in batches] == [[f"image{n}"] if n != 1 else [] for n in range(10)]
    assert batches[1].skipped == ["/data/1.jpg: truncated JPEG"]
    assert batches[7].images.shape == (1, 3, 20, 40)
    assert (batches[7].images == 7).all()
    assert batches[7].frames == [Frame((20, 40), (20, 40))]
    assert batches[7].truths[0]["boxes"].tolist() == [[0, 0, 20, 10]]


# broken images


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_raises_the_data_error_itself(workers: int):
    loader = eval_loader(Numbered(broken=(5,)), INPUT, batch_size=2, workers=workers, bad_data=BadData.stop)
    with pytest.raises(DataError) as error:
        list(loader)
    assert type(error.value) is DataError
    assert str(error.value) == "/data/5.jpg: truncated JPEG"


def test_stop_gives_the_batches_before_the_broken_one():
    batches = iter(eval_loader(Numbered(broken=(5,)), INPUT, batch_size=2, workers=1, bad_data=BadData.stop))
    assert [next(batches).image_ids[0], next(batches).image_ids[0]] == ["image0", "image2"]
    with pytest.raises(DataError):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_skip_leaves_out_and_counts(workers: int):
    loader = eval_loader(Numbered(broken=(1, 4)), INPUT, batch_size=4, workers=workers, bad_data=BadData.skip)
    first, second, third = loader
    assert first.image_ids == ["image0", "image2", "image3"]
    assert first.images.shape[0] == len(first.targets) == len(first.frames) == 3
    assert first.images[:, 0, 0, 0].tolist() == [0, 2, 3]
    messages = [batch.skipped for batch in (first, second, third)]
    assert messages == [["/data/1.jpg: truncated JPEG"], ["/data/4.jpg: truncated JPEG"], []]


@pytest.mark.parametrize("workers", [0, 1])
def test_batch_of_broken_images_alone_is_empty_and_says_why(workers: int):
    loader = eval_loader(Numbered(broken=(0, 1)), INPUT, batch_size=2, workers=workers, bad_data=BadData.skip)
    first, *others = loader
    assert first.image_ids == first.targets == []
    assert first.skipped == ["/data/0.jpg: truncated JPEG", "/data/1.jpg: truncated JPEG"]
    assert sum(len(batch.image_ids) for batch in others) == 8


def test_training_stops_at_a_broken_image_too():
    data = Numbered(broken=tuple(range(10)))
    loader = train_loader(data, lambda sample, _: resize(sample, SIZE), sampler(), workers=1, bad_data=BadData.stop)
    with pytest.raises(DataError, match=r"^/data/\d\.jpg: truncated JPEG$"):
        next(iter(loader))


def test_loader_can_be_read_twice():
    loader = eval_loader(Numbered(), INPUT, batch_size=4, workers=0, bad_data=BadData.stop)
    assert_same(list(loader), list(loader))
    assert len(loader) == 3


class Threads(Numbered):
    """Writes how many threads its process may use."""

    def __init__(self, folder: Path) -> None:
        super().__init__(2)
        self.folder = folder

    def read(self, index: int) -> Sample:
        (self.folder / str(os.getpid())).write_text(str(torch.get_num_threads()))
        return super().read(index)


def test_workers_use_one_thread_each(tmp_path: Path):
    list(eval_loader(Threads(tmp_path), INPUT, batch_size=1, workers=2, bad_data=BadData.stop))
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(found.values()) == {"1"}
    assert str(os.getpid()) not in found


def test_workers_run_where_there_are_no_process_groups(monkeypatch: pytest.MonkeyPatch):
    """As on Windows."""
    monkeypatch.delattr(os, "setpgrp")
    batches = list(eval_loader(Numbered(), INPUT, batch_size=4, workers=1, bad_data=BadData.stop))
    assert [len(batch.image_ids) for batch in batches] == [4, 4, 2]


def test_a_daemonic_process_loads_without_workers(monkeypatch: pytest.MonkeyPatch):
    """As a row of bench, which may not start processes."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    batches = list(eval_loader(Numbered(), INPUT, batch_size=4, workers=2, bad_data=BadData.stop))
    assert [len(batch.image_ids) for batch in batches] == [4, 4, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="forks workers on Linux only")
def test_a_worker_ignores_a_request_to_stop_but_not_its_parents_end(root: Path):
    # as where a signal strikes while a loader is being made: a worker runs, and nobody will tell it to go
    code = """
import multiprocessing, os, signal, time
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from mnv2det.config import BadData
from mnv2det.data.loader import eval_loader
from mnv2det.data.shapes import Shapes
from mnv2det.structures import Preprocess

data = Shapes(count=9, size=(32, 32))
batches = iter(eval_loader(data, Preprocess((32, 32)), batch_size=1, workers=1, bad_data=BadData.stop))
next(batches)
(worker,) = multiprocessing.active_children()
os.kill(worker.pid, signal.SIGTERM)
time.sleep(0.3)
assert worker.is_alive()
_MultiProcessingDataLoaderIter._shutdown_workers = lambda self: None
print(worker.pid)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=True)
    assert not Path(f"/proc/{int(done.stdout)}").exists()
