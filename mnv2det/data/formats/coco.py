"""COCO instance annotations: one json, category ids with gaps, crowds, masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mnv2det.config import BadData
from mnv2det.data.classes import class_list
from mnv2det.data.dataset import Arrays, BoxTable, Dataset
from mnv2det.data.images import inside, read_sized
from mnv2det.data.masks import VOC_NAMES, Region, RegionTable, bounds, encode, mask_list, whole
from mnv2det.errors import ConfigError, DataError, near
from mnv2det.ranges import NonNegativeInt
from mnv2det.registry import DATASETS
from mnv2det.structures import VOC_MASK_CLASSES, Sample


class _Row(NamedTuple):
    """One annotation; ``runs`` is empty where no mask is wanted of it."""

    image: int
    label: int
    crowd: bool
    area: float
    box: list[float]
    runs: bytes
    pixels: int


@DATASETS.register("coco")
class COCO(Dataset):
    """Images of a COCO-style json, in its order; crowds become ``ignore``.

    A mask is 0 where nothing is annotated. Smaller objects lie on larger ones, and a crowd is 255
    where no other object lies.

    Args:
        root: Data folder that no path leaves.
        bad_data: ``stop`` raises on a broken annotation, ``skip`` leaves it out and lists it.
        annotations: The json, below ``root``.
        images: Folder that ``file_name`` is relative to, below ``root``.
        names: Class list to hold to; null takes the json's categories in the order of their ids.
        masks: ``coco`` adds masks of background and the json's categories, ``voc`` of VOC's 21
            classes, the other categories being background; null adds none.
        mask_names: Class list to hold masks to; null takes the one ``masks`` says.
        least_pixels: Keeps only images of which the mask's classes, without crowds and background,
            cover so many pixels (DeepLabv3 was pre-trained on images of COCO with more than 1,000).

    Attributes:
        category_ids: int64 (K,): the json's own id of each label.

    Raises:
        ConfigError: ``least_pixels`` is negative or goes without ``masks``.
        DataError: The json is missing or not COCO's, an id has no name or image, a box is wrong, or
            a segmentation is wrong or missing where masks are wanted.
    """

    def __init__(
        self,
        *,
        root: Path,
        bad_data: BadData,
        annotations: str,
        images: str,
        names: tuple[str, ...] | None = None,
        masks: Literal["coco", "voc"] | None = None,
        mask_names: tuple[str, ...] | None = None,
        least_pixels: NonNegativeInt = 0,
    ) -> None:
        if least_pixels < 0 or (least_pixels and masks is None):
            raise ConfigError(f"data set coco: least_pixels {least_pixels}: expected 0, or more along with masks")
        self.problems: list[str] = []
        self._skip = bad_data is BadData.skip
        self.path = inside(root, annotations, where="data set coco: annotations")
        self.folder = inside(root, images, where="data set coco: images")
        data = load_json(self.path)
        self._read_images(data["images"])
        labels = self._read_categories(data["categories"], names)
        self._mask_ids = None if masks is None else self._mask_classes(masks, mask_names)
        rows = self._read_annotations(data["annotations"], labels)
        if least_pixels:
            rows = self._keep_large(rows, least_pixels)
        self._table = _boxes(rows, len(self))
        if self._mask_ids is not None:
            ids = self._mask_ids.tolist()
            regions = [Region(row.image, ids[row.label], row.crowd, row.runs, row.pixels) for row in rows if row.runs]
            self._regions = RegionTable(regions, len(self))

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
        sample = Sample(read_sized(path, (height, width)), self.target(index), self.image_id(index))
        if self._mask_ids is not None:
            sample.target["mask"] = self._regions.paint(index, (height, width))
        return sample

    def _read_images(self, entries: list[Any]) -> None:
        ids, files, sizes = [], [], []
        for position, entry in enumerate(entries):
            place = f"{self.path}: images[{position}]"
            try:
                identifier, name, size = entry["id"], entry["file_name"], (entry["height"], entry["width"])
            except (KeyError, TypeError):
                raise DataError(f"{place}: expected id, file_name, height and width") from None
            if not isinstance(name, str) or not whole(identifier) or not all(whole(n) and 0 < n < 1e6 for n in size):
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
        if not all(whole(identifier) and isinstance(name, str) for identifier, name in pairs):
            raise DataError(f"{self.path}: categories: an id is no whole number, or a name no string")
        if len({identifier for identifier, _ in pairs}) != len(pairs):
            raise DataError(f"{self.path}: categories: an id occurs twice")
        names = class_list([name for _, name in pairs], given, where=f"{self.path}: categories")
        by_name = {name: identifier for identifier, name in pairs}
        self.classes = {"labels": names}
        self.category_ids = np.array([by_name.get(name, -1) for name in names], np.int64)
        return {identifier: names.index(name) for identifier, name in pairs}

    def _mask_classes(self, masks: str, given: tuple[str, ...] | None) -> NDArray[np.int64]:
        """Sets the class list of masks; gives each label's id in it."""
        labels = self.classes["labels"]
        found = ["background", *labels] if masks == "coco" else list(VOC_MASK_CLASSES)
        names = mask_list(found, given, where=f"{self.path}: masks")
        if names[0] != "background":
            raise DataError(f"{self.path}: masks: the first class must be 'background', got '{names[0]}'")
        self.classes["mask"] = names
        called = labels if masks == "coco" else [VOC_NAMES.get(name, name) for name in labels]
        ids = np.array([names.index(name) if name in found else 0 for name in called], np.int64)
        if not ids.any():
            raise DataError(
                f"{self.path}: masks: no category is one of VOC's 20 classes{near(called[0], VOC_MASK_CLASSES)}"
            )
        return ids

    def _read_annotations(self, entries: list[Any], labels: Mapping[int, int]) -> list[_Row]:
        places = {int(identifier): index for index, identifier in enumerate(self._ids)}
        rows: list[_Row] = []
        disable = self._mask_ids is None or len(entries) < 20000
        for position, entry in enumerate(tqdm(entries, desc="reading COCO masks", disable=disable, leave=False)):
            try:
                rows.append(self._row(entry, position, places, labels))
            except DataError as error:
                if not self._skip:
                    raise
                self.problems.append(str(error))
        return rows

    def _keep_large(self, rows: list[_Row], least: int) -> list[_Row]:
        """Leaves out images with too little to learn from, and their rows."""
        pixels = np.zeros(len(self), np.int64)
        counted = [(row.image, row.pixels) for row in rows if not row.crowd]
        if counted:
            np.add.at(pixels, *np.array(counted).T)
        kept = np.flatnonzero(pixels >= least)
        if not len(kept):
            raise DataError(f"{self.path}: no image has {least} pixels of a mask's class, at most {pixels.max()}")
        self._ids, self._files, self._sizes = self._ids[kept], self._files[kept], self._sizes[kept]
        places = {int(old): new for new, old in enumerate(kept)}
        return [row._replace(image=places[row.image]) for row in rows if row.image in places]

    def _row(self, entry: Any, position: int, places: Mapping[int, int], labels: Mapping[int, int]) -> _Row:
        if not isinstance(entry, dict):
            raise DataError(f"{self.path}: annotations[{position}]: expected keys, got {str(entry)[:40]}")
        place = f"{self.path}: annotation {entry.get('id', f'[{position}]')}"
        image: Any = entry.get("image_id")
        category: Any = entry.get("category_id")
        if not whole(image) or image not in places:
            raise DataError(f"{place}: image_id {image!r} is not in images")
        if not whole(category) or category not in labels:
            raise DataError(f"{place}: category_id {category!r} has no name in categories")
        index = places[image]
        height, width = (int(n) for n in self._sizes[index])
        x, y, w, h = stated_box(entry, (height, width), place)
        if w <= 0 or h <= 0:
            raise DataError(f"{place} (image {image}): bbox {[x, y, w, h]} has no area")
        corners = [max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)]
        if corners[0] >= corners[2] or corners[1] >= corners[3]:
            raise DataError(f"{place} (image {image}): bbox {[x, y, w, h]} lies outside the {width}x{height} image")
        corners = np.array(corners, np.float32).tolist()  # as they are kept: here a sliver loses its width
        if corners[0] == corners[2] or corners[1] == corners[3]:
            raise DataError(f"{place} (image {image}): bbox {[x, y, w, h]} has no area")
        area = entry.get("area", w * h)
        if not real(area):
            raise DataError(f"{place}: area: expected a number, got {str(area)[:40]}")
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise DataError(f"{place}: iscrowd: expected 0 or 1, got {repr(crowd)[:40]}")
        label, runs, pixels = labels[category], b"", 0
        if self._mask_ids is not None and self._mask_ids[label]:
            if not entry.get("segmentation"):
                raise DataError(f"{place} (image {image}): no segmentation, but masks are wanted")
            runs, pixels = encode(entry["segmentation"], (height, width), place)
        return _Row(index, label, bool(crowd), float(area), corners, runs, pixels)


def _boxes(rows: list[_Row], images: int) -> BoxTable:
    owner = np.array([row.image for row in rows], np.int64)
    order = np.argsort(owner, kind="stable")
    return BoxTable(
        np.bincount(owner, minlength=images).astype(np.int64),
        np.array([row.box for row in rows], np.float32).reshape(-1, 4)[order],
        np.array([row.label for row in rows], np.int64)[order],
        np.array([row.crowd for row in rows], np.bool_)[order],
        np.array([row.area for row in rows], np.float32)[order],
    )


def load_json(path: Path) -> dict[str, list[Any]]:
    """A COCO-style json; its three lists are there, what they hold is not looked at.

    Raises:
        DataError: The file is missing, no json, or lacks one of the lists.
    """
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


def stated_box(entry: Mapping[str, Any], size: tuple[int, int], place: str) -> list[float]:
    """(x, y, w, h) as stated or, where there is no bbox, of the polygons or the run-length mask.

    Args:
        entry: One of the json's annotations.
        size: (H, W) of its image.
        place: File and annotation, for messages.

    Raises:
        DataError: It is no list of four numbers.
    """
    box = entry.get("bbox")
    if box is None and entry.get("segmentation"):
        box = bounds(entry["segmentation"], size, place)
    if not isinstance(box, list) or len(box) != 4 or not all(real(value) for value in box):
        raise DataError(f"{place}: bbox: expected [x, y, width, height], got {str(box)[:60]}")
    return [float(value) for value in box]


def real(value: Any) -> bool:
    """Whether a value from a json is a number that a coordinate may be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
