"""Evaluation of results in files, without any model: COCO-style ground truth against a COCO results list."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

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
    """Figures of a results file.

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
            more keys do no harm.
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
    images, categories, classes, truths = _read_truths(
        ground_truth, ignored_by=("iscrowd", "ignore", "difficult") if voc else ("iscrowd",)
    )
    found = _read_found(detections, images, categories, known_from=ground_truth)
    if not voc:
        return coco_metrics(truths, found, classes=classes)
    if inclusive is None or inclusive:
        for table in (truths, found):
            table.boxes[:, 2:] += 1
    style: Literal["11point", "area"] = "11point" if protocol == "voc07" else "area"
    return voc_metrics(truths, found, classes=classes, style=style, iou=0.5 if iou is None else iou)


def _read_truths(path: PathLike, *, ignored_by: Sequence[str]) -> tuple[Ids, Ids, list[str], AnnotatedBoxes]:
    """Reads the ground truth.

    Returns:
        Position of each image id, label of each category id, class names and the boxes.
    """
    data = _load(path)
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected an object with images, annotations and categories, got {_kind(data)}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            raise DataError(f"{path}: expected a list '{key}', got {_kind(data[key]) if key in data else 'none'}")
    images = _positions(path, "images", data["images"])
    categories = _positions(path, "categories", data["categories"])
    named = _rows(path, "categories", data["categories"], lambda entry: (categories[_id(entry, "id")], _name(entry)))
    classes = [name for _, name in sorted(named)]
    twice = {name for name in classes if classes.count(name) > 1}
    if twice:
        raise DataError(f"{path}: categories: the name '{min(twice)}' occurs twice")

    def read(entry: Any) -> tuple[Any, ...]:
        box = _box(entry)
        area = _number(entry, "area") if "area" in entry else box[2] * box[3]
        flags = [_flag(entry, key) for key in ignored_by]
        return _known(entry, "image_id", images), _known(entry, "category_id", categories), box, any(flags), area

    rows = _rows(path, "annotations", data["annotations"], read)
    image, label, boxes, ignore, area = _columns(rows, np.int64, np.int64, np.float64, np.bool_, np.float64)
    truths = AnnotatedBoxes(image, label, boxes.reshape(-1, 4), ignore, area)
    return images, categories, classes, truths.pick(np.argsort(image, kind="stable"))


def _read_found(path: PathLike, images: Ids, categories: Ids, *, known_from: PathLike) -> DetectedBoxes:
    """Reads the results; ids must be among those of the ground truth."""
    data = _load(path)
    if not isinstance(data, list):
        raise DataError(f"{path}: expected a list of results, got {_kind(data)}")

    def read(entry: Any) -> tuple[Any, ...]:
        image = _known(entry, "image_id", images, known_from)
        label = _known(entry, "category_id", categories, known_from)
        return image, label, _box(entry), _number(entry, "score")

    rows = _rows(path, "results", data, read)
    image, label, boxes, score = _columns(rows, np.int64, np.int64, np.float64, np.float64)
    return DetectedBoxes(image, label, boxes.reshape(-1, 4), score).pick(np.argsort(image, kind="stable"))


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
    """What is wrong with an entry; whoever catches it knows which one."""


def _rows(path: PathLike, what: str, entries: list[Any], read: Callable[[Any], Any]) -> list[Any]:
    """Applies ``read`` to every entry and says which one it cannot read."""
    rows = []
    for index, entry in enumerate(entries):
        try:
            rows.append(read(entry))
        except _EntryError as error:
            raise DataError(f"{path}: {what}[{index}]: {error}") from None
    return rows


def _columns(rows: list[Any], *dtypes: type) -> list[NDArray[Any]]:
    columns = zip(*rows, strict=True) if rows else ([] for _ in dtypes)
    return [np.array(column, dtype) for column, dtype in zip(columns, dtypes, strict=True)]


def _positions(path: PathLike, what: str, entries: list[Any]) -> Ids:
    """Numbers the ids of a list in their sorted order."""
    ids = _rows(path, what, entries, lambda entry: _id(entry, "id"))
    positions = {key: position for position, key in enumerate(sorted(set(ids), key=order_of_id))}
    if len(positions) < len(ids):
        seen: set[int | str] = set()
        twice = next(key for key in ids if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DataError(f"{path}: {what}: the id {twice!r} occurs twice")
    return positions


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


def _known(entry: Any, key: str, positions: Ids, source: PathLike | None = None) -> int:
    value = _id(entry, key)
    if value not in positions:
        whose = f"the {len(positions)} ids in {source}" if source else f"the file's {len(positions)} ids"
        raise _EntryError(f"{key} {reprlib.repr(value)} is not among {whose}")
    return positions[value]


def _number(entry: Any, key: str) -> float:
    value = _get(entry, key)
    if not _finite(value):
        raise _EntryError(f"{key} must be a finite number, got {reprlib.repr(value)}")
    return float(value)


def _flag(entry: Any, key: str) -> bool:
    value = entry.get(key, 0)
    if value not in (0, 1):
        raise _EntryError(f"{key} must be 0 or 1, got {reprlib.repr(value)}")
    return bool(value)


def _name(entry: Any) -> str:
    value = _get(entry, "name")
    if not isinstance(value, str):
        raise _EntryError(f"name must be a string, got {reprlib.repr(value)}")
    return value


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
