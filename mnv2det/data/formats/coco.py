"""COCO instance annotations: one json, category ids with gaps, crowds, masks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from mnv2det.config import BadData
from mnv2det.data.classes import class_list, mask_list
from mnv2det.data.formats.base import Format, RecordsDataset
from mnv2det.data.formats.cleaning import Cleaning, copy_pictures, copy_place
from mnv2det.data.formats.coco_quick import read_quickly
from mnv2det.data.formats.coco_values import (
    LARGEST_NUMBER,
    SIDES,
    WATCHED_MASKS,
    EntryError,
    Id,
    as_whole,
    encode_all,
    encode_outline,
    file_below,
    load_json,
    read_content,
    read_id,
    real,
)
from mnv2det.data.formats.index import LEAST, indices, key_of, load, save
from mnv2det.data.formats.problems import shown
from mnv2det.data.formats.records import Box, Boxes, Picture, Records
from mnv2det.data.images import inside
from mnv2det.data.masks import VOC_NAMES, bounds, whole
from mnv2det.errors import ConfigError, DataError, near
from mnv2det.io import is_watched
from mnv2det.ranges import NonNegativeInt
from mnv2det.registry import DATASETS
from mnv2det.structures import VOC_MASK_CLASSES

UNSIZED = (1, 1)  # stands for the size of an image that states none
UNSIZED = (1, 1)  # stands for the size of an image that states none


class _Annotation(NamedTuple):
    """An entry of ``annotations`` that names an image and a category, and has a box of numbers."""

    picture: int
    category: Id
    box: list[float]
    area: float
    ignore: bool


class CocoJson(Format):
    """A json with COCO's ``images``, ``annotations`` and ``categories``.

    Args:
        path: The json.
        images: Folder that ``file_name`` is relative to. None reads for evaluation, which looks at no
            picture: images need neither file name nor size.
        names: Class list to hold to; None takes the json's categories in the order of their ids.
        masks: As in `COCO`.
        mask_names: As in `COCO`.
        least_pixels: As in `COCO`.
        crowds: As in `COCO`.
        ignored_by: Keys whose value 1 or true makes a box an ignored one.
    """

    def __init__(
        self,
        path: Path,
        images: Path | None,
        *,
        names: Sequence[str] | None = None,
        masks: Literal["coco", "voc"] | None = None,
        mask_names: Sequence[str] | None = None,
        least_pixels: int = 0,
        crowds: Literal["ignore", "objects"] = "ignore",
        ignored_by: Sequence[str] = ("iscrowd",),
    ) -> None:
        self.path, self.images, self.names = path, images, names
        self.masks, self.mask_names, self.least_pixels = masks, mask_names, least_pixels
        self.crowds, self.ignored_by = crowds, ignored_by

    def read(self) -> Records:
        """See `Format.read`; boxes are corners, ``stated`` is the json's ``[x, y, w, h]``."""
        return self._judge(self._read_quickly(read_content(self.path)) or self._read_slowly())

    def dataset(self, bad_data: BadData = BadData.stop) -> RecordsDataset:
        """See `Format.dataset`; what was read of a large json is kept on disk."""
        if self.images is None or not self.path.is_file() or self.path.stat().st_size < LEAST:
            return super().dataset(bad_data)
        content, names = (
            read_content(self.path),
            ("names", "masks", "mask_names", "least_pixels", "crowds", "ignored_by"),
        )
        folder = indices() / key_of(content, {name: getattr(self, name) for name in names})
        if (index := load(folder)) is not None:
            return RecordsDataset.from_index(index, self.images)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                folder.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(f"{folder}.lock"))  # the other processes wait for the first one
            if (index := load(folder)) is not None:
                return RecordsDataset.from_index(index, self.images)
            records = self._read_quickly(content)
            del content
            if records is None:
                return RecordsDataset(self._judge(self._read_slowly()), bad_data)
            made = RecordsDataset(self._judge(records), bad_data)
            if not made.problems:
                with contextlib.suppress(OSError):  # of a full disk, or of a cache that cannot be written to
                    save(folder, made.arrays(), {"classes": made.classes})
        index = None if made.problems else load(folder)
        return made if index is None else RecordsDataset.from_index(index, self.images)

    def _judge(self, records: Records) -> Records:
        """Reports what is wrong with all of them together, and leaves out pictures that are not wanted."""
        if self.images is not None and len(records.boxes) and records.boxes.ignore.all():
            count = len(records.boxes)
            what = f"all {count} boxes are crowds (iscrowd 1): ignored; crowds=objects takes them as objects"
            records.add_problem("crowds_only", self.path, what, fatal=True)
        if self.least_pixels:
            self._select_large(records)
        return records

    def _new_records(self) -> Records:
        folder = self.images or self.path.parent
        about = f"COCO json {self.path}, images in {folder}"
        if self.masks:
            about += ", masks from segmentations"
        records = Records(folder, str(self.path), about, [self.path], [folder])
        records.box_place = "annotation {id} (image {image}): bbox {box}"
        return records

    def _read_slowly(self) -> Records:
        """Reads entry by entry, and reports what is wrong with each."""
        data, records = load_json(self.path), self._new_records()
        images = self._read_images(records, data["images"])
        if not records.pictures:
            reason = records.problems[0].message if records.problems else f"{self.path}: no images in it"
            raise DataError(reason)
        categories = self._read_categories(records, data["categories"])
        if self.masks:
            self._read_mask_classes(records)
        self._read_annotations(records, data["annotations"], images, categories)
        return records

    def _read_quickly(self, content: bytes) -> Records | None:
        """Reads in arrays; None where the json has anything that has to be looked at entry by entry."""
        if self.images is None or tuple(self.ignored_by) != ("iscrowd",):
            return None
        quick = read_quickly(content, outlines=self.masks is not None)
        if quick is None or not (np.abs(quick.boxes) < LARGEST_NUMBER).all():
            return None
        if not (np.abs(quick.area) < LARGEST_NUMBER).all() or not np.isin(quick.sizes, SIDES).all():
            return None
        try:
            files = [file_below(self.images, name) for name in quick.files]
        except DataError:
            return None
        records = self._new_records()
        records.pictures = [
            Picture(identifier, file, (height, width), entry=position)
            for position, (identifier, file, (height, width)) in enumerate(
                zip(quick.ids.tolist(), files, quick.sizes.tolist(), strict=True)
            )
        ]
        names = list(self._read_categories(records, quick.categories).values())
        runs, pixels = [b""], np.zeros(len(quick.boxes), np.int64)
        if self.masks:
            self._read_mask_classes(records)
            painted = dict(zip(records.classes["labels"], records.mask_ids or [], strict=False))
            try:
                runs, pixels = encode_all(quick, [bool(painted.get(name)) for name in names])
            except DataError:
                return None
        first = np.unique(quick.category, return_index=True)
        order = first[0][np.argsort(first[1])]  # classes are named in the order of their first box
        label = np.full(len(names), -1)
        label[order] = np.arange(len(order))
        count = len(quick.boxes)
        records.boxes = Boxes(
            image=quick.image,
            label=label[quick.category],
            names=[names[category] for category in order.tolist()],
            corners=np.concatenate([quick.boxes[:, :2], quick.boxes[:, :2] + quick.boxes[:, 2:]], axis=1),
            stated=quick.boxes,
            ignore=quick.crowd & (self.crowds == "ignore"),
            area=quick.area,
            ids=quick.annotation_ids.tolist(),
            position=np.arange(count),
            runs=runs if self.masks else runs * count,
            pixels=pixels,
            problems_before=np.full(count, len(records.problems)),
        )
        return records

    def _read_images(self, records: Records, entries: list[Any]) -> dict[Id, int]:
        """Adds the pictures; gives the index of each id."""
        indices: dict[Id, int] = {}
        for position, entry in enumerate(entries):
            report = partial(self._report, records, f"images[{position}]")
            try:
                identifier = self._new_id(entry, indices, "annotation_broken", "image_twice")
            except EntryError as error:
                report(error, image=entry["id"] if error.kind == "image_twice" else None)
                continue
            index = indices[identifier] = len(records.pictures)
            size = (as_whole(entry.get("height")), as_whole(entry.get("width")))
            sized = all(whole(side) and side in SIDES for side in size)
            records.pictures.append(Picture(identifier, "", size if sized else None, entry=position))
            if self.images is None:
                continue
            if not sized:
                what = f"height {shown(size[0], 20)}, width {shown(size[1], 20)}: expected whole numbers of pixels"
                report(EntryError("image_size", what, index=index))
            try:
                file = self._file(entry.get("file_name"))
                records.pictures[index] = records.pictures[index]._replace(file=file)
            except EntryError as error:
                report(error, index=index)
        return indices

    def _file(self, name: Any) -> str:
        """A picture's path below the folder of images."""
        assert self.images is not None
        if not isinstance(name, str):
            raise EntryError("annotation_broken", f"file_name {shown(name)}: expected a string")
        try:
            return file_below(self.images, name)
        except DataError as error:
            raise EntryError("path_outside", str(error)) from None

    def _read_categories(self, records: Records, entries: list[Any]) -> dict[Id, str]:
        """Sets the class list; gives the name of each id."""
        names: dict[Id, str] = {}
        for position, entry in enumerate(entries):
            try:
                identifier = self._new_id(entry, names, "class_broken", "class_broken")
                if not isinstance(entry.get("name"), str):
                    raise EntryError("class_broken", f"name {shown(entry.get('name'))}: expected a string")
                names[identifier] = entry["name"]
            except EntryError as error:
                self._report(records, f"categories[{position}]", error, fatal=True)
        ids = sorted(names, key=lambda identifier: (isinstance(identifier, str), identifier))
        listed = [names[identifier] for identifier in ids]
        labels, issues = class_list(listed, self.names, where=f"{self.path}: categories")
        if not any(problem.kind == "class_broken" for problem in records.problems):
            records.add_class_issues(issues, self.path)
        records.classes["labels"] = labels
        by_name = dict(zip(listed, ids, strict=True))
        records.category_ids = [by_name.get(name, -1) for name in labels]
        return names

    def _read_mask_classes(self, records: Records) -> None:
        """Sets the class list of masks and each label's id in it."""
        labels = records.classes["labels"]
        # a category called background is the background
        expected = list(dict.fromkeys(["background", *labels])) if self.masks == "coco" else list(VOC_MASK_CLASSES)
        names, issues = mask_list(expected, self.mask_names, where=f"{self.path}: masks")
        records.add_class_issues(issues, self.path)
        records.classes["mask"] = names
        called = labels if self.masks == "coco" else [VOC_NAMES.get(name, name) for name in labels]
        records.mask_ids = [names.index(name) if name in expected and name in names else 0 for name in called]
        if names and names[0] != "background":
            what = f"masks: the first class must be 'background', got '{names[0]}'"
            records.add_problem("class_broken", self.path, what, fatal=True)
        elif called and not any(records.mask_ids):
            what = f"masks: no category is one of VOC's 20 classes{near(called[0], VOC_MASK_CLASSES)}"
            if self.masks == "coco":
                what = "masks: no category is a class of them, apart from background"
            records.add_problem("class_broken", self.path, what, fatal=True)

    def _read_annotations(
        self, records: Records, entries: list[Any], images: Mapping[Id, int], categories: Mapping[Id, str]
    ) -> None:
        painted = dict(zip(records.classes["labels"], records.mask_ids or [], strict=False))
        quiet = not self.masks or len(entries) < WATCHED_MASKS or not is_watched()
        for position, entry in enumerate(tqdm(entries, desc="reading COCO masks", disable=quiet, leave=False)):
            try:
                identifier: Id = read_id(entry, "id", "")
            except EntryError:
                identifier = f"[{position}]"
            report = partial(
                self._report, records, f"annotation {identifier}", annotation=identifier, position=position
            )
            try:
                annotation = self._annotation(records, entry, images, categories)
            except EntryError as error:
                report(error)
                continue
            index, name = annotation.picture, categories[annotation.category]
            size, runs, pixels = records.pictures[index].size, b"", 0
            if painted.get(name) and size is not None:
                try:
                    runs, pixels = encode_outline(entry.get("segmentation"), size)
                except DataError as error:
                    # the box itself may be good
                    report(EntryError("segmentation_broken", str(error), index=index))
            x, y, width, height = stated = annotation.box
            corners = (x, y, x + width, y + height)
            ignore, area = annotation.ignore, annotation.area
            records.add_box(Box(index, name, corners, stated, ignore, area, identifier, position, runs, pixels))

    def _report(self, records: Records, place: str, error: EntryError, *, index: int = -1, **other: Any) -> None:
        index = max(index, error.index)
        value = str(error) if index >= 0 or "position" in other else f"{place}: {error}"
        records.add_problem(error.kind, self.path, str(error), place=place, value=value, index=index, **other)

    def _annotation(
        self, records: Records, entry: Any, images: Mapping[Id, int], categories: Mapping[Id, str]
    ) -> _Annotation:
        """Checks an entry of ``annotations``, apart from its segmentation."""
        if not isinstance(entry, dict):
            raise EntryError("annotation_broken", f"expected keys, got {shown(entry, 40)}")
        image = self._known(entry, "image_id", images, "is not in images", "annotation_orphan", -1)
        index = images[image]
        category = self._known(entry, "category_id", categories, "has no name in categories", "class_unknown", index)
        box = entry.get("bbox")
        try:
            if box in (None, []) and entry.get("segmentation"):
                box = bounds(entry["segmentation"], records.pictures[index].size or UNSIZED)
        except DataError as error:
            raise EntryError("box_malformed", str(error), index=index) from None
        if not isinstance(box, list) or len(box) != 4 or not all(real(value) for value in box):
            what = f"bbox: expected [x, y, width, height], got {shown(box)}"
            raise EntryError("box_malformed", what, index=index)
        area = box[2] * box[3] if entry.get("area") is None else entry["area"]
        if not real(area):
            raise EntryError("annotation_broken", f"area: expected a number, got {shown(area, 40)}", index=index)
        for key in self.ignored_by:
            if entry.get(key) not in (None, 0, 1):
                what = f"{key}: expected 0 or 1, got {repr(entry[key])[:40]}"
                raise EntryError("annotation_broken", what, index=index)
        ignore = self.crowds == "ignore" and any(entry.get(key) for key in self.ignored_by)
        return _Annotation(index, category, [float(value) for value in box], float(area), ignore)

    def _new_id(self, entry: Any, known: Mapping[Id, Any], kind: str, kind_of_second: str) -> Id:
        """An id that no earlier entry has."""
        identifier = read_id(entry, "id", kind)
        if identifier in known:
            raise EntryError(kind_of_second, f"the id {identifier!r} occurs twice")
        return identifier

    def _known(self, entry: Any, key: str, known: Mapping[Id, Any], lacking: str, kind: str, index: int) -> Id:
        try:
            value = read_id(entry, key, kind)
            if value in known:
                return value
        except EntryError:
            pass
        raise EntryError(kind, f"{key} {shown(repr(entry.get(key)), 30)} {lacking}", index=index)

    def _select_large(self, records: Records) -> None:
        """Leaves out pictures with too few pixels to learn from."""
        boxes = records.boxes
        counted = records.kept()[1] & ~boxes.ignore
        pixels = np.bincount(boxes.image[counted], boxes.pixels[counted], len(records.pictures)).astype(np.int64)
        large = pixels >= self.least_pixels
        if large.any():
            records.select(large)
        else:
            what = f"no image has {self.least_pixels} pixels of a mask's class, at most {pixels.max()}"
            records.add_problem("images_none", self.path, what, fatal=True)

    def write_clean(self, records: Records, cleaning: Cleaning, root: Path, target: Path) -> None:
        """Writes the json without what is left out, and copies the pictures."""
        data: dict[str, Any] = dict(load_json(self.path))
        images = []
        for index in copy_pictures(records, cleaning, root, target):
            entry = data["images"][records.pictures[index].entry]
            if index in cleaning.sizes:
                height, width = cleaning.sizes[index]
                entry = {**entry, "height": height, "width": width}
            images.append(entry)
        known = {entry["id"] for entry in images}
        left_out = {position for _, position in cleaning.annotations}
        clipped = {position: corners for (_, position), corners in cleaning.corners.items()}
        annotations = []
        for position, entry in enumerate(data["annotations"]):
            if position in left_out or entry["image_id"] not in known:
                continue
            if position in clipped:
                x1, y1, x2, y2 = clipped[position]
                entry = {**entry, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            annotations.append(entry)
        data |= {"images": images, "annotations": annotations}
        copy_place(self.path, root, target).write_text(json.dumps(data), "utf-8")


@DATASETS.register("coco")
class COCO(CocoJson):
    """Images of a COCO-style json, in its order; crowds become ``ignore``.

    A mask is 0 where nothing is annotated, and where a category called ``background`` is. Smaller objects lie on
    larger ones, and a crowd is 255 where no other object lies. Ids are whole numbers or strings, and 1.0 is 1.

    Args:
        root: Data folder that no path leaves.
        annotations: The json, below ``root``.
        images: Folder that ``file_name`` is relative to, below ``root``.
        names: Class list to hold to; null takes the json's categories in the order of their ids.
        masks: ``coco`` adds masks of background and the json's categories, ``voc`` of VOC's 21
            classes, the other categories being background; null adds none.
        mask_names: Class list to hold masks to; null takes the one ``masks`` says.
        least_pixels: Keeps only images of which the mask's classes, without crowds and background,
            cover so many pixels (DeepLabv3 was pre-trained on images of COCO with more than 1,000).
        crowds: ``ignore`` neither learns nor penalises what has ``iscrowd: 1``; ``objects`` takes it as any other
            object, for tools that export every brush mask so.

    Raises:
        ConfigError: ``least_pixels`` goes without ``masks``.
        DataError: A path leaves the data folder.
    """

    def __init__(
        self,
        *,
        root: Path,
        annotations: str,
        images: str,
        names: tuple[str, ...] | None = None,
        masks: Literal["coco", "voc"] | None = None,
        mask_names: tuple[str, ...] | None = None,
        least_pixels: NonNegativeInt = 0,
        crowds: Literal["ignore", "objects"] = "ignore",
    ) -> None:
        if least_pixels and masks is None:
            raise ConfigError(f"data set coco: least_pixels {least_pixels}: expected 0 where there are no masks")
        super().__init__(
            inside(root, annotations, where="data set coco: annotations"),
            inside(root, images, where="data set coco: images"),
            names=names,
            masks=masks,
            mask_names=mask_names,
            least_pixels=least_pixels,
            crowds=crowds,
        )
