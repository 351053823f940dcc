"""Files of predictions: COCO-style json, VOC xml, csv, masks and annotated pictures."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from mnv2det.errors import ConfigError, near
from mnv2det.io import write_atomically
from mnv2det.report.draw import draw_detections, draw_mask, encode_mask
from mnv2det.runtime.predictor import coco_results
from mnv2det.structures import Detections, Result, Scores, Segmentation

# what a model must find for a format to have anything in it: keys of `Head.target_key`
NEEDS = {
    "json": {"labels", "mask", "label"},
    "voc": {"labels"},
    "csv": {"labels", "label"},
    "masks": {"mask"},
    "pictures": {"labels", "mask", "label"},
}
FINDS = {"labels": "boxes", "mask": "masks", "label": "classes of pictures"}
COLUMNS = ("file", "frame", "class", "score", "x1", "y1", "x2", "y2")
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
BEST = 5  # classes written for a picture


class Place(NamedTuple):
    """What a picture or frame is called.

    Attributes:
        file: The input's name as it was given.
        stem: Of the files written for it alone, below their folders: ``a``, or ``clip/000012``.
        frame: Its number in a video, from 0.
        seconds: Its time there.
    """

    file: str
    stem: str
    frame: int | None = None
    seconds: float | None = None


def choose(formats: Sequence[str] | None, kinds: Collection[str]) -> frozenset[str]:
    """The formats to write.

    Args:
        formats: As named; None takes json, pictures and, from a segmenter, masks.
        kinds: ``target_key`` of the model's heads.

    Raises:
        ConfigError: There is no such format, or this model has nothing to write in it.
    """
    if formats is None:
        return frozenset({"json", "pictures"} | ({"masks"} if "mask" in kinds else set()))
    for name in formats:
        if name not in NEEDS:
            raise ConfigError(f"formats: no format '{name}'{near(name, NEEDS)}")
        if not NEEDS[name] & set(kinds):
            finds = " and ".join(FINDS[kind] for kind in FINDS if kind in kinds)
            raise ConfigError(f"formats: nothing to write as {name}: this model finds {finds}")
    return frozenset(formats)


class Outputs:
    """All that a run writes, but for the pictures and videos themselves.

    Rows are kept in nameless temporary files, so that memory does not grow with the run, and put
    in place by `finish`.

    Args:
        folder: Made if it is missing.
        formats: Among those of `choose`; of ``voc`` and ``masks`` there is a file per picture.
        frame_formats: Likewise, for the frames of videos.
        classes: Task name to class names.
        categories: By detecting task, the json's ``{id, name}`` of its classes.
        segmenters: The tasks that find masks.
        threshold: Least score that is written and drawn.

    Attributes:
        images: Pictures and frames so far.
        detections: Boxes so far.
        classes_of: File to its best classes; pictures only, not frames.

    Raises:
        OSError: A file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        formats: Collection[str],
        frame_formats: Collection[str],
        classes: Mapping[str, Sequence[str]],
        categories: Mapping[str, Sequence[Mapping[str, Any]]],
        segmenters: Sequence[str],
        threshold: float,
    ) -> None:
        self.folder, self.formats, self.frame_formats = folder, formats, frame_formats
        self.classes, self.categories, self.threshold = classes, categories, threshold
        self.mask_classes = {task: list(classes[task]) for task in segmenters}
        self.images, self.detections = 0, 0
        self.classes_of: dict[str, list[dict[str, Any]]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._spools = contextlib.ExitStack()
        self._images, self._annotations, self._rows = (
            self._spools.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - it is one
            for _ in range(3)
        )

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._spools.close()

    def add(self, place: Place, image: NDArray[np.uint8], found: Mapping[str, Result]) -> NDArray[np.uint8]:
        """Writes what was found in one picture.

        Args:
            place: What it is called.
            image: uint8 (H, W, 3), RGB.
            found: As `Predictor` gives it.

        Returns:
            The annotated picture, uint8 (H, W, 3); the picture itself unless ``pictures`` are wanted.
        """
        formats = self.formats if place.frame is None else self.frame_formats
        self.images += 1
        height, width = image.shape[:2]
        entry: dict[str, Any] = {"id": self.images, "file_name": place.file, "height": height, "width": width}
        if place.frame is not None:
            entry |= {"frame": place.frame, "time_s": round(place.seconds or 0.0, 4)}
        boxes: list[tuple[Detections, Sequence[str]]] = []
        # masks lie below boxes
        for task, result in sorted(found.items(), key=lambda item: isinstance(item[1], Detections)):
            names = self.classes[task]
            if isinstance(result, Detections):
                kept = result.scores >= self.threshold
                result = Detections(result.boxes[kept], result.scores[kept], result.labels[kept])
                boxes.append((result, names))
                self.detections += len(result.scores)
                ids = [category["id"] for category in self.categories[task]]
                _append(self._annotations, map(json.dumps, coco_results(result, self.images, ids)), ",\n")
                self._append_csv(place, _box_rows(result, names))
                if "pictures" in formats:
                    image = draw_detections(image, result, names)
            elif isinstance(result, Segmentation):
                mask = result.mask.cpu().numpy()
                self._add_mask(entry, task, mask, place if "masks" in formats else None)
                if "pictures" in formats:
                    image = draw_mask(image, mask, names)
            elif isinstance(result, Scores):
                entry["classes"] = _best_classes(result, names)
                self._append_csv(place, [(best["name"], best["score"]) for best in entry["classes"]])
                if place.frame is None:
                    self.classes_of[place.file] = entry["classes"]
        if "voc" in formats:
            write(self.folder / "voc" / f"{place.stem}.xml", voc_xml(place, (height, width), boxes))
        _append(self._images, [json.dumps(entry)], ",\n")
        return image

    def _add_mask(self, entry: dict[str, Any], task: str, mask: NDArray[np.uint8], place: Place | None) -> None:
        """Notes what a mask holds, and writes it if it has a place."""
        several = len(self.mask_classes) > 1
        found: dict[str, Any] = {"pixels": _shares(mask, self.mask_classes[task])}
        if place is not None:
            found["mask"] = f"masks/{f'{task}/' if several else ''}{place.stem}.png"
            write(self.folder / found["mask"], encode_mask(mask))
        entry.update({task: found} if several else found)

    def finish(self) -> None:
        """Puts the json and the csv in place."""
        if "json" in self.formats:
            write_atomically(self.folder / "predictions.json", self._write_json)
        if "csv" in self.formats:
            write_atomically(self.folder / "predictions.csv", self._write_csv)

    def _append_csv(self, place: Place, rows: Iterable[Sequence[Any]]) -> None:
        frame = "" if place.frame is None else place.frame
        _append(self._rows, (_csv_line((place.file, frame, *row)) for row in rows), "")

    def _write_json(self, file: BinaryIO) -> None:
        file.write(b'{"images": [')
        _copy(self._images, file)
        file.write(b'],\n"annotations": [')
        _copy(self._annotations, file)
        categories = [category for part in self.categories.values() for category in part]
        rest = {"categories": categories} | ({"mask_classes": self.mask_classes} if self.mask_classes else {})
        file.write(b"],\n" + json.dumps(rest)[1:].encode() + b"\n")

    def _write_csv(self, file: BinaryIO) -> None:
        file.write(_csv_line(COLUMNS).encode())
        _copy(self._rows, file)


def voc_xml(place: Place, size: tuple[int, int], found: Sequence[tuple[Detections, Sequence[str]]]) -> bytes:
    """An annotation as PASCAL VOC's tools and our data set ``voc`` read it, with a ``score`` in addition.

    VOC counts whole pixels from 1 and includes the last. Boxes are rounded to them and made two
    pixels wide where the picture has room, because readers take ``xmin = xmax`` for a slip.

    Args:
        place: ``file`` is noted; characters that xml cannot hold become question marks.
        size: (H, W) of the picture.
        found: Detections with their class names.
    """
    parts = [
        f"<annotation>\n  <filename>{_text(Path(place.file).name)}</filename>\n"
        f"  <size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>\n"
        "  <segmented>0</segmented>\n"
    ]
    for detections, names in found:
        boxes = _voc_boxes(detections.boxes.cpu().numpy(), size).tolist()
        for box, score, label in zip(boxes, detections.scores.tolist(), detections.labels.tolist(), strict=True):
            corners = "".join(
                f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            )
            parts.append(
                f"  <object><name>{_text(names[label])}</name><pose>Unspecified</pose><truncated>0</truncated>"
                f"<difficult>0</difficult><score>{score:.6f}</score><bndbox>{corners}</bndbox></object>\n"
            )
    return "".join([*parts, "</annotation>\n"]).encode()


def write(path: Path, data: bytes) -> None:
    """Puts a file in place, whole or not at all."""
    write_atomically(path, lambda file: file.write(data))


def _voc_boxes(boxes: NDArray[Any], size: tuple[int, int]) -> NDArray[np.int64]:
    """xmin, ymin, xmax, ymax, int64 (N, 4), from continuous boxes."""
    room = np.array([size[1], size[0]])
    least = np.minimum(2, room)
    boxes = boxes.reshape(-1, 4).astype(np.float64)
    ends = np.rint(boxes).astype(np.int64)
    around = np.rint(boxes[:, :2] / 2 + boxes[:, 2:] / 2 - least / 2).astype(np.int64)
    low = np.clip(np.where(ends[:, 2:] - ends[:, :2] < least, around, ends[:, :2]), 0, room - least)
    high = np.clip(np.maximum(ends[:, 2:], low + least), 0, room)
    return np.hstack([low + 1, high])


def _box_rows(found: Detections, names: Sequence[str]) -> Iterable[tuple[Any, ...]]:
    boxes = found.boxes.cpu().double().numpy().round(3).tolist()
    scores = found.scores.cpu().double().numpy().round(6).tolist()
    for box, score, label in zip(boxes, scores, found.labels.tolist(), strict=True):
        yield names[label], score, *box


def _shares(mask: NDArray[np.uint8], names: Sequence[str]) -> dict[str, float]:
    """Share of the picture's pixels that each class found there has."""
    counts = np.bincount(mask.ravel(), minlength=len(names))
    return {names[label]: round(float(counts[label] / mask.size), 5) for label in np.flatnonzero(counts).tolist()}


def _best_classes(result: Scores, names: Sequence[str]) -> list[dict[str, Any]]:
    best = result.probabilities.topk(min(BEST, len(names)))
    return [
        {"name": names[int(index)], "score": round(float(score), 5)}
        for score, index in zip(best.values, best.indices, strict=True)
    ]


def _append(spool: BinaryIO, rows: Iterable[str], between: str) -> None:
    for row in rows:
        # names of files need not be unicode
        spool.write(((between if spool.tell() else "") + row).encode(errors="surrogateescape"))


def _copy(spool: BinaryIO, file: BinaryIO) -> None:
    spool.seek(0)
    shutil.copyfileobj(spool, file)


def _csv_line(row: Iterable[Any]) -> str:
    """One line as RFC 4180 has it, quoted where it must be."""
    line = io.StringIO()
    csv.writer(line).writerow(row + ("",) * (len(COLUMNS) - len(row)) if isinstance(row, tuple) else row)
    return line.getvalue()


def _text(name: str) -> str:
    return escape(NOT_XML.sub("?", name))
