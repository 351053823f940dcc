"""Evaluation of results in files, without any model: COCO-style ground truth against detections."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from mnv2det.data.formats.coco import CocoJson
from mnv2det.errors import ConfigError, DataError, near
from mnv2det.evaluation.boxes import AnnotatedBoxes, DetectedBoxes, order_of_id
from mnv2det.evaluation.coco import coco_metrics
from mnv2det.evaluation.voc import voc_metrics

Protocol = Literal["coco", "voc07", "voc10"]
PathLike = str | os.PathLike[str]
Ids = dict[int | str, int]

LARGEST = 1e100  # bounds products, too


def evaluate_files(
    ground_truth: PathLike,
    detections: PathLike,
    *,
    protocol: Protocol = "coco",
    iou: float | None = None,
    inclusive: bool | None = None,
) -> dict[str, float]:
    """Metrics of a results file.

    VOC's boxes are corner pixels that belong to the box. The published metrics of
    Object-Detection-Metrics' sample (24.56 % all points, 26.84 % 11 points at IoU .3) come out when
    ``[x, y, w, h]`` is read that way, from pixel x to pixel x + w, which makes it w + 1 wide;
    continuous boxes give 22.54 % and 26.84 %. The VOC protocols therefore read so by default. A file
    whose w is already ``xmax - xmin + 1``, as boxes of this package are, wants ``inclusive=False``
    and then gives what `VocAP` gives.

    Args:
        ground_truth: JSON object with ``images``, ``annotations`` and ``categories``; ``iscrowd``
            counts as ignored, under the VOC protocols ``ignore`` and ``difficult`` do, too;
            ``area`` is w * h where absent.
        detections: JSON list of ``{"image_id", "category_id", "bbox": [x, y, w, h], "score"}``;
            more keys do no harm. Or the ``predictions.json`` of `mnv2det.commands.predict.run.predict`, an object
            whose pictures and classes are those of the same name in the ground truth.
        protocol: ``coco``, ``voc07`` (11 recalls) or ``voc10`` (area under the curve).
        iou: Least overlap of the VOC protocols, by default .5.
        inclusive: VOC protocols: whether pixel x + w belongs to the box, by default yes.

    Returns:
        As `coco_metrics` or `voc_metrics` give them; classes go by the categories' names.

    Raises:
        ConfigError: A setting is unknown, or does not go with the protocol.
        DataError: A file cannot be read or an entry is wrong.
    """
    if protocol not in get_args(Protocol):
        raise ConfigError(f"no protocol '{protocol}'{near(protocol, get_args(Protocol))}")
    voc = protocol != "coco"
    for name, value in (("iou", iou), ("inclusive", inclusive)):
        if value is not None and not voc:
            raise ConfigError(f"{name} is for the protocols voc07 and voc10, COCO's defines its own")
    if iou is not None and not 0 < iou <= 1:
        raise ConfigError(f"iou must be above 0 and at most 1, got {iou}")
    truth = read_truth(ground_truth, ignored_by=("iscrowd", "ignore", "difficult") if voc else ("iscrowd",))
    results = read_results(detections, truth)
    if not voc:
        return coco_metrics(truth.boxes, results, classes=truth.classes)
    if inclusive is None or inclusive:
        for table in (truth.boxes, results):
            table.boxes[:, 2:] += 1
    style: Literal["11point", "area"] = "11point" if protocol == "voc07" else "area"
    return voc_metrics(truth.boxes, results, classes=truth.classes, style=style, iou=0.5 if iou is None else iou)


class Truth(NamedTuple):
    """The ground truth of an evaluation.

    Attributes:
        path: Where it was read from.
        images: Number of each image id, in the order of the ids.
        categories: Label of each category id.
        classes: Class names by label.
        boxes: All annotated boxes.
    """

    path: PathLike
    images: Ids
    categories: Ids
    classes: list[str]
    boxes: AnnotatedBoxes


def read_truth(path: PathLike, *, ignored_by: Sequence[str] = ("iscrowd",)) -> Truth:
    """Reads a ground truth by way of the coco format, without its pictures.

    Raises:
        DataError: The first thing that is wrong in it.
    """
    records = CocoJson(Path(path), None, ignored_by=ignored_by).read()
    if records.problems:
        raise DataError(records.problems[0].message)
    boxes = records.boxes
    negative = np.flatnonzero((boxes.stated[:, 2:] < 0).any(axis=1))
    if len(negative):
        row = int(negative[0])
        raise DataError(f"{path}: annotation {boxes.ids[row]}: bbox {boxes.stated[row].tolist()} has a negative side")
    ids = sorted((picture.id for picture in records.pictures), key=order_of_id)
    images = {identifier: number for number, identifier in enumerate(ids)}
    numbers = np.array([images[picture.id] for picture in records.pictures], np.int64)
    classes = records.classes["labels"]
    categories = {identifier: label for label, identifier in enumerate(records.category_ids or [])}
    truths = AnnotatedBoxes(numbers[boxes.image], boxes.labels_in(classes), boxes.stated, boxes.ignore, boxes.area)
    return Truth(path, images, categories, classes, truths.pick(np.argsort(truths.image, kind="stable")))


def read_results(path: PathLike, truth: Truth) -> DetectedBoxes:
    """Reads detections: a list of results, or the ``predictions.json`` of a prediction.

    Ids of a list must be among those of the ground truth; an image may also be named by its path. The object that a
    prediction writes has ids of its own: its pictures and classes are found by their names.

    Raises:
        DataError: The file cannot be read, or an entry is wrong.
    """
    content = _load(path)
    if isinstance(content, dict):
        key, ids = "annotations", _ids_of_predictions(path, content, truth)
        entries = content[key]
    elif isinstance(content, list):
        key, entries = "results", content
        ids = _ResultIds(_with_paths(path, content, truth), truth.categories, truth.path)
    else:
        raise DataError(f"{path}: expected a list of results or the object that predict writes, got {_kind(content)}")
    images, labels, boxes, scores = [], [], [], []
    for position, entry in enumerate(entries):
        try:
            images.append(_known(entry, "image_id", ids.images, ids.source))
            labels.append(_known(entry, "category_id", ids.categories, ids.source))
            boxes.append(_box(entry))
            scores.append(_number(entry, "score"))
        except _EntryError as error:
            raise DataError(f"{path}: {key}[{position}]: {error}") from None
    image = np.array(images, np.int64)
    table = np.array(boxes, np.float64).reshape(-1, 4)
    results = DetectedBoxes(image, np.array(labels, np.int64), table, np.array(scores, np.float64))
    return results.pick(np.argsort(image, kind="stable"))


class _ResultIds(NamedTuple):
    """What the ids of a results file stand for.

    Attributes:
        images: Number of the ground truth's image for each image id.
        categories: Label of each category id.
        source: The file that lists the ids, for messages.
    """

    images: Ids
    categories: Ids
    source: PathLike


def _ids_of_predictions(path: PathLike, content: dict[str, Any], truth: Truth) -> _ResultIds:
    """Finds the pictures and classes of a ``predictions.json`` in the ground truth by their names.

    Raises:
        DataError: A list is missing, or a picture or class has no counterpart.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{path}: {key}: expected a list, as predict writes it, got {_kind(content.get(key))}")
    images: Ids = {}
    taken: set[int] = set()
    number_of = _PictureNames(truth)
    for position, entry in enumerate(content["images"]):
        where = f"{path}: images[{position}]"
        try:
            identifier, name = _id(entry, "id"), _text(entry, "file_name")
        except _EntryError as error:
            raise DataError(f"{where}: {error}") from None
        if entry.get("frame") is not None:
            raise DataError(f"{where}: frame {entry['frame']} of {name}; only pictures can be measured")
        number = number_of.find(name, where)
        if number in taken:
            raise DataError(f"{where}: file_name '{name}' is the second picture of this name; {truth.path} has one")
        images[identifier] = number
        taken.add(number)
    categories: Ids = {}
    for position, entry in enumerate(content["categories"]):
        try:
            identifier, name = _id(entry, "id"), _text(entry, "name")
        except _EntryError as error:
            raise DataError(f"{path}: categories[{position}]: {error}") from None
        if name not in truth.classes:
            raise DataError(f"{path}: category '{name}' is none of {truth.path}'s{near(name, truth.classes)}")
        categories[identifier] = truth.classes.index(name)
    return _ResultIds(images, categories, path)


def _with_paths(path: PathLike, entries: list[Any], truth: Truth) -> Ids:
    """The ground truth's ids of images and, for results that name an image by its path, these paths."""
    ids = [entry.get("image_id") for entry in entries if isinstance(entry, dict)]
    paths = {value for value in ids if isinstance(value, str) and value not in truth.images}
    if not paths:
        return truth.images
    number_of = _PictureNames(truth)
    known = (name for name in paths if _parts(name)[-1] in number_of.by_name)
    return {**truth.images, **{name: number_of.find(name, f"{path}: image_id") for name in known}}


class _PictureNames:
    """Finds pictures of the ground truth by their paths, of which only the ends need to be the same.

    Args:
        truth: The ground truth; its file is read once more.
    """

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.by_name: dict[str, list[tuple[list[str], int]]] = {}
        for entry in _load(truth.path)["images"]:
            identifier = _id(entry, "id")
            name = entry.get("file_name", identifier)
            if isinstance(name, str) and identifier in truth.images:
                parts = _parts(name)
                self.by_name.setdefault(parts[-1], []).append((parts, truth.images[identifier]))

    def find(self, name: str, where: str) -> int:
        """The number of the picture whose path has the most last names in common with ``name``.

        Raises:
            DataError: There is none, or more than one.
        """
        parts = _parts(name)
        candidates = self.by_name.get(parts[-1], [])
        if not candidates:
            raise DataError(
                f"{where}: no picture '{parts[-1]}' among the {len(self.truth.images)} of {self.truth.path};"
                " expected detections of its pictures alone"
            )
        common = [_common_end(parts, theirs) for theirs, _ in candidates]
        best = [number for (_, number), length in zip(candidates, common, strict=True) if length == max(common)]
        if len(best) > 1:
            raise DataError(f"{where}: '{name}' may be any of {len(best)} pictures of {self.truth.path}")
        return best[0]


def _parts(name: str) -> list[str]:
    """The names in a path, with either separator."""
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")] or [name]


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    """How many of their last names two paths have in common."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((length for length, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _load(path: PathLike) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror})") from None
    except RecursionError:
        raise DataError(f"{path}: not usable JSON (nested too deeply)") from None
    except ValueError as error:  # bad syntax, bad UTF-8, a number of thousands of digits
        raise DataError(f"{path}: not JSON ({error})") from None


class _EntryError(ValueError):
    """What is wrong with an entry, without its position."""


def _get(entry: Any, key: str) -> Any:
    if not isinstance(entry, dict):
        raise _EntryError(f"expected an object, got {_kind(entry)}")
    if key not in entry:
        raise _EntryError(f"{key} is missing")
    return entry[key]


def _id(entry: Any, key: str) -> int | str:
    value = _get(entry, key)
    if isinstance(value, float) and value.is_integer():  # tables written by pandas
        return int(value)
    if type(value) not in (int, str):
        raise _EntryError(f"{key} must be a whole number or a string, got {reprlib.repr(value)}")
    return value


def _text(entry: Any, key: str) -> str:
    value = _get(entry, key)
    if not isinstance(value, str):
        raise _EntryError(f"{key} must be a string, got {reprlib.repr(value)}")
    return value


def _known(entry: Any, key: str, numbers: Ids, source: PathLike) -> int:
    value = _id(entry, key)
    if value not in numbers:
        raise _EntryError(f"{key} {reprlib.repr(value)} is not among the {len(numbers)} ids in {source}")
    return numbers[value]


def _number(entry: Any, key: str) -> float:
    value = _get(entry, key)
    if not _finite(value):
        raise _EntryError(f"{key} must be a finite number, got {reprlib.repr(value)}")
    return float(value)


def _box(entry: Any) -> list[float]:
    value = _get(entry, "bbox")
    if not isinstance(value, list) or len(value) != 4 or not all(map(_finite, value)):
        raise _EntryError(f"bbox must be four finite numbers [x, y, w, h], got {reprlib.repr(value)}")
    if value[2] < 0 or value[3] < 0:
        raise _EntryError(f"bbox has a negative width or height, {reprlib.repr(value)}")
    return value


def _finite(value: Any) -> bool:
    """Whether this is a number; not NaN, infinity or an integer beyond what a double holds."""
    return type(value) in (int, float) and abs(value) <= LARGEST


def _kind(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
