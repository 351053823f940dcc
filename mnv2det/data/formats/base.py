"""The contract of an annotation format, and the data set that is made of what a format reads."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.config import BadData
from mnv2det.data.dataset import Arrays, BoxTable, Dataset
from mnv2det.data.formats.cleaning import Cleaning
from mnv2det.data.formats.index import Index, load
from mnv2det.data.formats.records import Records, clip_boxes
from mnv2det.data.images import read_image, read_sized
from mnv2det.data.masks import Region, RegionTable, read_mask
from mnv2det.errors import ConfigError, DataError
from mnv2det.structures import Sample


class Format(ABC):
    """Reads the annotations of a data set, once, for training, checking and evaluation of files alike.

    A format is registered in `mnv2det.registry.DATASETS`; its keyword-only arguments are what a config may set,
    apart from ``root: Path``, the data folder, which every registered format is given.
    """

    @abstractmethod
    def read(self) -> Records:
        """Reads pictures, boxes and classes to the end, whatever is wrong in them.

        Raises:
            DataError: Nothing can be read at all: a list or json is missing, or is none.
        """

    def dataset(self, bad_data: BadData = BadData.stop) -> RecordsDataset:
        """The data set to train on; see `RecordsDataset`.

        Raises:
            DataError: As `read`, and as `RecordsDataset`.
        """
        return RecordsDataset(self.read(), bad_data)

    def write_clean(self, records: Records, cleaning: Cleaning, root: Path, target: Path) -> None:
        """Writes a copy without what can be put right by rule.

        Args:
            records: What `read` gave.
            cleaning: What to leave out and what to correct.
            root: Data folder that is copied.
            target: Folder that stands for it in the copy.

        Raises:
            ConfigError: The format writes no copies.
        """
        raise ConfigError(f"--fix: the format of {records.where} writes no cleaned copy")


class RecordsDataset(Dataset):
    """What a format has read, as a data set to train on or evaluate.

    It keeps flat arrays alone; the records may be dropped. Boxes of pictures whose annotation states no size are
    clipped when the picture is read.

    Args:
        records: From `mnv2det.data.formats.base.Format.read`.
        bad_data: ``stop`` raises the first error, in reading order; ``skip`` leaves out what the errors
            name, a box or an image, and lists them in ``problems``.

    Attributes:
        category_ids: (K,): COCO's own id of each box label, -1 for a class without one, int64 unless one is a string;
            None for other formats.

    Raises:
        DataError: There is an error that may not be skipped, or no image is left.
    """

    def __init__(self, records: Records, bad_data: BadData = BadData.stop) -> None:
        problems, (pictures, rows) = records.all_problems(), records.kept()
        if records.pictures and not pictures.any() and bad_data is BadData.skip:
            raise DataError(f"{records.where}: no images left in it")
        for problem in problems:
            if problem.severity == "error" and (problem.fatal or bad_data is BadData.stop):
                raise DataError(problem.message)
        self.problems = [problem.message for problem in problems]
        self.classes = {key: list(names) for key, names in records.classes.items()}
        self.folder = records.folder
        kept = [picture for picture, keep in zip(records.pictures, pictures, strict=True) if keep]
        self._ids = _id_array([picture.id for picture in kept])
        self._files = _text_array([picture.file for picture in kept])
        self._masks = _text_array([picture.mask for picture in kept])
        self._sizes = np.array([picture.size or (0, 0) for picture in kept], np.int32)
        self._boxed = np.array([picture.boxed for picture in kept], np.bool_) & ("labels" in self.classes)
        self._labels = np.array([picture.label for picture in kept], np.int64) if "label" in self.classes else None
        self._table, self._regions = _tables(records, pictures, rows)
        ids = records.category_ids
        self.category_ids = None if ids is None else np.array(ids, np.int64 if _numbers(ids) else object)

        self._index: Path | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, for an index; `from_index` is the way back."""
        found = {name: getattr(self, f"_{name}") for name in ("ids", "files", "masks", "sizes", "boxed")}
        found |= {f"box_{name}": value for name, value in vars(self._table).items()}
        found |= {f"region_{name}": value for name, value in vars(self._regions).items()} if self._regions else {}
        optional = {"labels": self._labels, "category_ids": self.category_ids}
        return found | {name: value for name, value in optional.items() if value is not None}

    @classmethod
    def from_index(cls, index: Index, folder: Path) -> RecordsDataset:
        """The data set whose arrays an index holds, without problems.

        Args:
            index: Its ``about`` has the ``classes``.
            folder: Folder of the pictures.
        """
        made = cls.__new__(cls)
        arrays = index.arrays
        for name in ("ids", "files", "masks", "sizes", "boxed"):
            setattr(made, f"_{name}", arrays[name])
        made._labels, made.category_ids = arrays.get("labels"), arrays.get("category_ids")
        made._table, made._regions = BoxTable.__new__(BoxTable), None
        if "region_ids" in arrays:
            made._regions = RegionTable.__new__(RegionTable)
        for name, array in arrays.items():
            kind, _, attribute = name.partition("_")
            if kind in ("box", "region"):
                setattr(made._table if kind == "box" else made._regions, attribute, array)
        made.problems, made.classes = [], {key: list(names) for key, names in index.about["classes"].items()}
        made.folder, made._index = folder, index.folder
        return made

    def __getstate__(self) -> dict[str, Any]:
        # a process that is started anew maps the same file instead of getting a copy
        if self._index is None:
            return dict(vars(self))
        return {"index": self._index, "folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "index" in state:
            index = load(state["index"])
            if index is None:
                raise DataError(f"{state['index']}: the index of the annotations is gone; start again")
            state = vars(self.from_index(index, state["folder"]))
        vars(self).update(state)

    def __len__(self) -> int:
        return len(self._files)

    def image_id(self, index: int) -> int | str:
        """The format's own identifier: COCO's id, a path without suffix for VOC, one with suffix for class folders."""
        identifier = self._ids[index]
        return int(identifier) if self._ids.dtype.kind == "i" else json.loads(identifier)

    def target(self, index: int) -> Arrays:
        """See `Dataset.target`."""
        target = self._table.target(index) if self._boxed[index] else {}
        if self._labels is not None:
            target["label"] = self._labels[index]
        return target

    def read(self, index: int) -> Sample:
        """See `Dataset.read`.

        Raises:
            DataError: The image or its mask is missing or damaged, or has another size than stated.
        """
        path, target = self.folder / _text(self._files[index]), self.target(index)
        height, width = (int(n) for n in self._sizes[index])
        image = read_sized(path, (height, width)) if height else read_image(path)
        if not height and "boxes" in target:
            target["boxes"] = _hold_to_picture(target["boxes"], image, path)
        if self._regions is not None:
            target["mask"] = self._regions.paint(index, (height, width))
        elif self._masks[index]:
            mask_path = self.folder / _text(self._masks[index])
            mask = target["mask"] = read_mask(mask_path, len(self.classes["mask"]))
            if not height and image.shape[:2] != mask.shape == image.shape[1::-1]:
                image = read_sized(path, (mask.shape[0], mask.shape[1]))  # drawn on the stored pixels, maybe
            if mask.shape != image.shape[:2]:
                sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, image.shape)]
                raise DataError(f"{mask_path}: the mask is {sizes[0]}, its image {path.name} is {sizes[1]}")
        return Sample(image, target, self.image_id(index))


def _hold_to_picture(boxes: NDArray[np.float32], image: NDArray[np.uint8], path: Path) -> NDArray[np.float32]:
    """Clips the boxes of a picture whose size no annotation states."""
    size = np.array(image.shape[:2], np.int64)
    clipped = clip_boxes(boxes.astype(np.float64), np.tile(size, (len(boxes), 1)))
    wrong = np.flatnonzero(~clipped.valid)
    if len(wrong):
        box = boxes[wrong[0]].tolist()
        raise DataError(f"{path}: box {box} has no area in the {image.shape[1]}x{image.shape[0]} image")
    return clipped.corners


def _tables(
    records: Records, pictures: NDArray[np.bool_], rows: NDArray[np.bool_]
) -> tuple[BoxTable, RegionTable | None]:
    """Boxes, and the regions that masks are painted from, of the pictures and boxes that are kept."""
    boxes = records.boxes
    chosen = np.flatnonzero(rows)
    owner = (np.cumsum(pictures) - 1)[boxes.image[chosen]]
    order = np.argsort(owner, kind="stable")
    chosen, owner = chosen[order], owner[order]
    labels = boxes.labels_in(records.classes.get("labels", []))[chosen]
    corners = records.clipped(records.sizes()).corners[chosen]
    area = boxes.area[chosen].astype(np.float32)
    clipped_area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    area = np.where(np.isnan(area), clipped_area, area)
    count = int(pictures.sum())
    counts = np.bincount(owner, minlength=count).astype(np.int64)
    table = BoxTable(counts, corners, labels, boxes.ignore[chosen], area)
    if records.mask_ids is None:
        return table, None
    regions = [
        Region(image, records.mask_ids[label], bool(boxes.ignore[row]), boxes.runs[row], int(boxes.pixels[row]))
        for row, image, label in zip(chosen.tolist(), owner.tolist(), labels.tolist(), strict=True)
        if boxes.runs[row]
    ]
    return table, RegionTable(regions, count)


def _text_array(texts: Sequence[str]) -> NDArray[np.bytes_]:
    """Strings as bytes in one array, a quarter of what numpy's own strings take."""
    return np.array([text.encode("utf-8", "surrogatepass") for text in texts], np.bytes_)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogatepass")


def _id_array(ids: Sequence[int | str]) -> NDArray[Any]:
    """Ids in one array, as JSON where one is a string: 1 and "1" are two ids."""
    return np.array(ids, np.int64) if _numbers(ids) else np.array([json.dumps(value) for value in ids], np.bytes_)


def _numbers(ids: Sequence[int | str]) -> bool:
    return all(isinstance(value, int) for value in ids)
