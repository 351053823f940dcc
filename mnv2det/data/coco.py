"""COCO instance annotations: one json, category ids with gaps, crowds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.config import BadData
from mnv2det.data.classes import class_list
from mnv2det.data.dataset import Arrays, BoxTable, Dataset
from mnv2det.data.images import inside, read_sized
from mnv2det.errors import DataError
from mnv2det.registry import DATASETS
from mnv2det.structures import Sample


@DATASETS.register("coco")
class COCO(Dataset):
    """Images of a COCO-style json, in its order; crowds become ``ignore``.

    Args:
        root: Data folder that no path leaves.
        bad_data: ``stop`` raises on a broken annotation, ``skip`` leaves it out and lists it.
        annotations: The json, below ``root``.
        images: Folder that ``file_name`` is relative to, below ``root``.
        names: Class list to hold to; null takes the json's categories in the order of their ids.

    Attributes:
        category_ids: int64 (K,): the json's own id of each label.

    Raises:
        DataError: The json is missing or not COCO's, an id has no name or image, a box is wrong.
    """

    def __init__(
        self, *, root: Path, bad_data: BadData, annotations: str, images: str, names: tuple[str, ...] | None = None
    ) -> None:
        self.problems: list[str] = []
        self._skip = bad_data is BadData.skip
        self.path = inside(root, annotations, where="data set coco: annotations")
        self.folder = inside(root, images, where="data set coco: images")
        data = _load(self.path)
        self._read_images(data["images"])
        ids = self._read_categories(data["categories"], names)
        self._table = self._read_boxes(data["annotations"], ids)

    def __len__(self) -> int:
        return len(self._ids)

    def image_id(self, index: int) -> int:
        """The json's own id."""
        return int(self._ids[index])

    def target(self, index: int) -> Arrays:
        """See `Dataset.target`."""
        return self._table.target(index)

    def read(self, index: int) -> Sample:
        """See `Dataset.read`."""
        height, width = (int(n) for n in self._sizes[index])
        path = inside(self.folder, str(self._files[index]), where=f"{self.path}: image {self.image_id(index)}")
        return Sample(read_sized(path, (height, width)), self.target(index), self.image_id(index))

    def _read_images(self, entries: list[Any]) -> None:
        ids, files, sizes = [], [], []
        for position, entry in enumerate(entries):
            place = f"{self.path}: images[{position}]"
            try:
                identifier, name, size = entry["id"], entry["file_name"], (entry["height"], entry["width"])
            except (KeyError, TypeError):
                raise DataError(f"{place}: expected id, file_name, height and width") from None
            if not isinstance(name, str) or not _whole(identifier) or not all(_whole(n) and 0 < n < 1e6 for n in size):
                raise DataError(f"{place}: id, height and width must be whole numbers, file_name a string")
            inside(self.folder, name, where=place)
            ids.append(identifier)
            files.append(name)
            sizes.append(size)
        if not ids:
            raise DataError(f"{self.path}: no images in it")
        if len(set(ids)) != len(ids):
            raise DataError(f"{self.path}: an image id occurs twice")
        self._ids, self._files = np.array(ids, np.int64), np.array(files)
        self._sizes = np.array(sizes, np.int32)

    def _read_categories(self, entries: list[Any], given: tuple[str, ...] | None) -> dict[int, int]:
        try:
            pairs = sorted((entry["id"], entry["name"]) for entry in entries)
        except (KeyError, TypeError):
            raise DataError(f"{self.path}: categories: expected entries of id and name") from None
        if not all(_whole(identifier) and isinstance(name, str) for identifier, name in pairs):
            raise DataError(f"{self.path}: categories: an id is no whole number, or a name no string")
        if len({identifier for identifier, _ in pairs}) != len(pairs):
            raise DataError(f"{self.path}: categories: an id occurs twice")
        names = class_list([name for _, name in pairs], given, where=f"{self.path}: categories")
        by_name = {name: identifier for identifier, name in pairs}
        self.classes = {"labels": names}
        self.category_ids = np.array([by_name.get(name, -1) for name in names], np.int64)
        return {identifier: names.index(name) for identifier, name in pairs}

    def _read_boxes(self, entries: list[Any], labels: Mapping[int, int]) -> BoxTable:
        places = {int(identifier): index for index, identifier in enumerate(self._ids)}
        columns: list[tuple[int, int, bool, float, list[float]]] = []
        for position, entry in enumerate(entries):
            try:
                columns.append(self._row(entry, position, places, labels))
            except DataError as error:
                if not self._skip:
                    raise
                self.problems.append(str(error))
        images = np.array([row[0] for row in columns], np.int64)
        order = np.argsort(images, kind="stable")
        boxes: NDArray[np.float32] = np.array([row[4] for row in columns], np.float32).reshape(-1, 4)
        return BoxTable(
            np.bincount(images, minlength=len(self)).astype(np.int64),
            boxes[order],
            np.array([row[1] for row in columns], np.int64)[order],
            np.array([row[2] for row in columns], np.bool_)[order],
            np.array([row[3] for row in columns], np.float32)[order],
        )

    def _row(
        self, entry: Any, position: int, places: Mapping[int, int], labels: Mapping[int, int]
    ) -> tuple[int, int, bool, float, list[float]]:
        if not isinstance(entry, dict):
            raise DataError(f"{self.path}: annotations[{position}]: expected keys, got {str(entry)[:40]}")
        place = f"{self.path}: annotation {entry.get('id', f'[{position}]')}"
        image: Any = entry.get("image_id")
        category: Any = entry.get("category_id")
        if not _whole(image) or image not in places:
            raise DataError(f"{place}: image_id {image!r} is not in images")
        if not _whole(category) or category not in labels:
            raise DataError(f"{place}: category_id {category!r} has no name in categories")
        index = places[image]
        height, width = (int(n) for n in self._sizes[index])
        x, y, w, h = _box(entry, (height, width), place)
        if w <= 0 or h <= 0:
            raise DataError(f"{place} (image {image}): bbox {[x, y, w, h]} has no area")
        corners = [max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)]
        if corners[0] >= corners[2] or corners[1] >= corners[3]:
            raise DataError(f"{place} (image {image}): bbox {[x, y, w, h]} lies outside the {width}x{height} image")
        corners = np.array(corners, np.float32).tolist()  # as they are kept: here a sliver loses its width
        if corners[0] == corners[2] or corners[1] == corners[3]:
            raise DataError(f"{place} (image {image}): bbox {[x, y, w, h]} has no area")
        area = entry.get("area", w * h)
        if not _real(area):
            raise DataError(f"{place}: area: expected a number, got {str(area)[:40]}")
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise DataError(f"{place}: iscrowd: expected 0 or 1, got {repr(crowd)[:40]}")
        return index, labels[category], bool(crowd), float(area), corners


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotations ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a json file ({str(error)[:120] or type(error).__name__})") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DataError(f"{path}: no list '{key}' at the top; expected COCO's images, annotations and categories")
    return data


def _box(entry: Mapping[str, Any], size: tuple[int, int], place: str) -> list[float]:
    """(x, y, w, h) as stated or, where there is no bbox, of the polygons or the run-length mask."""
    box = entry.get("bbox")
    if box is None and entry.get("segmentation"):
        box = _box_of_mask(entry["segmentation"], size, place)
    if not isinstance(box, list) or len(box) != 4 or not all(_real(value) for value in box):
        raise DataError(f"{place}: bbox: expected [x, y, width, height], got {str(box)[:60]}")
    return [float(value) for value in box]


def _box_of_mask(segmentation: Any, size: tuple[int, int], place: str) -> list[float]:
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            points = [np.asarray(part, np.float64).reshape(-1, 2) for part in segmentation]
            low, high = np.min([p.min(0) for p in points], 0), np.max([p.max(0) for p in points], 0)
            return [*low.tolist(), *(high - low).tolist()]
        if list(segmentation["size"]) != list(size):
            raise ValueError(f"its size {segmentation['size']} is not the image's {list(size)}")
        encoded = segmentation
        if isinstance(segmentation["counts"], list):
            counts = segmentation["counts"]
            if not all(_whole(n) and n >= 0 for n in counts) or sum(counts) != size[0] * size[1]:
                raise ValueError("its counts do not add up to the image")
            encoded = mask.frPyObjects(segmentation, *size)
        else:
            # pycocotools reads beyond a text that ends within a number
            codes = [ord(letter) - 48 for letter in segmentation["counts"]]
            if not codes or not all(0 <= code < 64 for code in codes) or codes[-1] & 32:
                raise ValueError("its counts are no run lengths")
        return mask.toBbox(encoded).tolist()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(f"{place}: segmentation: not polygons or a run-length mask ({str(error)[:80]})") from None


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
