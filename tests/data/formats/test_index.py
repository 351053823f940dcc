"""What was read of a large json is kept on disk, is never out of date, and damage to it does no harm."""

from __future__ import annotations

import json
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnv2det.data.formats import coco, index
from mnv2det.data.formats.base import RecordsDataset
from mnv2det.data.formats.coco import CocoJson
from mnv2det.errors import DataError


def write(folder: Path, shift: int = 0) -> Path:
    images = [{"id": n + 10, "file_name": f"{n}.jpg", "height": 60, "width": 80} for n in range(20)]
    annotations = [
        {
            "id": n + 1,
            "image_id": 10 + n % 19,
            "category_id": 3 + n % 2,
            "bbox": [n + shift, 10, 20, 30],
            "area": 500 + n,
            "iscrowd": 0,
            "segmentation": [[n, 10, n + 20, 10, n + 20, 40]],
        }
        for n in range(50)
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]
    path = folder / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MNV2DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(coco, "LEAST", 0)
    return write(tmp_path)


def load(path: Path, **arguments: Any) -> RecordsDataset:
    return CocoJson(path, path.parent / "images", **arguments).dataset()


def assert_equal(ours: RecordsDataset, theirs: RecordsDataset) -> None:
    assert (ours.classes, ours.problems, ours.folder) == (theirs.classes, theirs.problems, theirs.folder)
    found, expected = ours.arrays(), theirs.arrays()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def plain(path: Path, **arguments: Any) -> RecordsDataset:
    return RecordsDataset(CocoJson(path, path.parent / "images", **arguments).read())


def folders() -> list[Path]:
    return [path.parent for path in index.indices().glob(f"*/{index.ABOUT}")]


@pytest.mark.parametrize("arguments", [{}, {"masks": "coco"}, {"names": ["dog", "cat"]}], ids=str)
def test_the_second_time_is_read_from_disk(path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    first = load(path, **arguments)
    assert_equal(first, plain(path, **arguments))
    monkeypatch.setattr(CocoJson, "read", None)
    monkeypatch.setattr(CocoJson, "_read_quickly", None)
    again = load(path, **arguments)
    assert_equal(again, first)
    assert isinstance(again._table.boxes.base, np.memmap | memoryview | bytes) or isinstance(
        again._table.boxes, np.memmap
    )
    assert again.target(3)["boxes"].tolist() == first.target(3)["boxes"].tolist()
    assert again.image_id(3) == 13


def test_an_edit_in_place_of_the_same_size_and_time_is_seen(path: Path):
    before, times = load(path), (path.stat().st_atime, path.stat().st_mtime)
    size = path.stat().st_size
    path.write_text(path.read_text().replace('"area": 549', '"area": 550'))
    os.utime(path, times)
    assert path.stat().st_size == size
    after = load(path)
    assert before.arrays()["box_area"].max() == 549
    assert after.arrays()["box_area"].max() == 550
    assert len(folders()) == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "missing", "about", "no about"])
def test_a_damaged_index_is_made_anew(path: Path, damage: str):
    expected = plain(path)
    load(path)
    (folder,) = folders()
    file = folder / "box_boxes.npy"
    if damage == "cut":
        os.truncate(file, 100)
    elif damage == "bit":
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    elif damage == "about":
        (folder / index.ABOUT).write_text("[]")
    else:
        (folder / index.ABOUT).unlink()
    assert_equal(load(path), expected)
    assert_equal(load(path), expected)


def test_a_full_disk_costs_nothing_but_the_index(path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index.np, "save", full)
    assert_equal(load(path), plain(path))
    assert not folders()
    assert not list(index.indices().glob(".*"))


def test_a_cache_that_cannot_be_written_to_costs_nothing_but_the_index(path: Path, monkeypatch: pytest.MonkeyPatch):
    (path.parent / "file").write_text("")
    monkeypatch.setenv("MNV2DET_CACHE", str(path.parent / "file"))
    assert_equal(load(path), plain(path))


def test_several_at_once_make_one(path: Path):
    found: list[RecordsDataset] = []
    threads = [threading.Thread(target=lambda: found.append(load(path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for dataset in found:
        assert_equal(dataset, found[0])
    assert len(folders()) == 1


def test_a_process_that_is_started_anew_maps_the_same_file(path: Path):
    dataset = load(path)
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    assert_equal(pickle.loads(data), dataset)
    assert_equal(pickle.loads(pickle.dumps(plain(path))), dataset)
    for folder in folders():
        (folder / index.ABOUT).unlink()
    with pytest.raises(DataError, match="the index of the annotations is gone"):
        pickle.loads(data)


def test_data_with_problems_has_none(path: Path):
    path.write_text(path.read_text().replace('"bbox": [7, 10, 20, 30]', '"bbox": [7, 10, 0, 30]'))
    with pytest.raises(DataError, match="has no area"):
        load(path)
    assert not folders()


def test_the_oldest_are_removed(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index, "MOST_KEPT", 2)
    for shift in range(4):
        load(write(path.parent, shift))
        for number, folder in enumerate(sorted(folders(), key=lambda f: f.stat().st_mtime)):
            os.utime(folder, (number, number))
    assert len(folders()) == 2
