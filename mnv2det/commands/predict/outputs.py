"""Writes predictions: COCO-style json, VOC xml, csv, masks and annotated pictures."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnv2det.commands.predict.voc_xml import voc_xml
from mnv2det.errors import ConfigError, near
from mnv2det.io import write_atomically
from mnv2det.report.draw import draw_detections, draw_mask, encode_mask
from mnv2det.structures import Detections, Scores, Segmentation, TaskResult

# formats, and which of a model's results they hold, by `Head.target_key`
FORMATS = {
    "json": {"labels", "mask", "label"},
    "voc": {"labels"},
    "csv": {"labels", "label"},
    "masks": {"mask"},
    "pictures": {"labels", "mask", "label"},
}
RESULTS = {"labels": "boxes", "mask": "masks", "label": "classes of pictures"}
COLUMNS = ("file", "frame", "class", "score", "x1", "y1", "x2", "y2")
BEST = 5  # classes that are written for a picture


class ImageInfo(NamedTuple):
    """Which picture or frame results belong to.

    Attributes:
        file: Name of the input.
        stem: Path of the files that are written for it alone, below the folders of their formats and without suffix:
            ``a``, or ``clip/000012``.
        frame: Number of the frame in a video, from 0; None for a picture.
        seconds: Time of the frame in the video.
    """

    file: str
    stem: str
    frame: int | None = None
    seconds: float | None = None


def choose_formats(formats: Sequence[str] | None, targets: Collection[str], *, pictures: bool = True) -> frozenset[str]:
    """Chooses the formats to write.

    Args:
        formats: Names among `FORMATS`; None chooses json, pictures and, for a segmenter, masks.
        targets: ``target_key`` of the model's heads.
        pictures: Whether annotated pictures are wanted.

    Raises:
        ConfigError: There is no such format, this model has nothing to write in it, or pictures are both named and not
            wanted.
    """
    if formats is None:
        return frozenset({"json"} | ({"pictures"} if pictures else set()) | ({"masks"} if "mask" in targets else set()))
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"formats: no format '{name}'{near(name, FORMATS)}")
        if not FORMATS[name] & set(targets):
            results = " and ".join(RESULTS[target] for target in RESULTS if target in targets)
            raise ConfigError(f"formats: nothing to write as {name}: this model finds {results}")
    if "pictures" in formats and not pictures:
        raise ConfigError("formats: names pictures, but no pictures are wanted")
    return frozenset(formats)


class Outputs:
    """Writes all files of a run, except for annotated pictures and videos.

    Rows of the json and the csv are kept in unnamed temporary files, so that memory does not grow with the run;
    `finish` puts them together.

    Args:
        folder: Made if it does not exist.
        formats: From `choose_formats`; for ``voc`` and ``masks`` a file per picture is written.
        frame_formats: The same for the frames of videos.
        classes: Task name to class names.
        targets: Task name to ``target_key`` of its head.
        threshold: The lowest score that is written and drawn.

    Attributes:
        images: Number of pictures and frames so far.
        detections: Number of boxes so far.
        best_score: The highest score of a box, written or not; 0 while there was none.
        best_classes: File to its best classes, from a classifier; for pictures only, not for frames.

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
        targets: Mapping[str, str],
        threshold: float,
    ) -> None:
        self.folder, self.formats, self.frame_formats = folder, formats, frame_formats
        self.classes, self.threshold = classes, threshold
        numbers = count(1)  # through the classes of all detecting tasks
        self.categories: dict[str, list[dict[str, Any]]] = {
            task: [{"id": next(numbers), "name": name} for name in classes[task]]
            for task, target in targets.items()
            if target == "labels"
        }
        self.mask_classes = {task: list(classes[task]) for task, target in targets.items() if target == "mask"}
        self.images, self.detections, self.best_score = 0, 0, 0.0
        self.best_classes: dict[str, list[dict[str, Any]]] = {}
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

    def add(self, info: ImageInfo, image: NDArray[np.uint8], results: Mapping[str, TaskResult]) -> NDArray[np.uint8]:
        """Writes the results of one picture.

        Args:
            info: Which picture it is.
            image: uint8 (H, W, 3), RGB.
            results: As `Predictor` returns them.

        Returns:
            The annotated picture, uint8 (H, W, 3); the picture itself unless ``pictures`` are written.
        """
        formats = self.formats if info.frame is None else self.frame_formats
        self.images += 1
        height, width = image.shape[:2]
        entry: dict[str, Any] = {"id": self.images, "file_name": info.file, "height": height, "width": width}
        if info.frame is not None:
            entry |= {"frame": info.frame, "time_s": round(info.seconds or 0.0, 4)}
        boxes: list[tuple[Detections, Sequence[str]]] = []
        # masks are drawn first, so that boxes lie on top
        for task, result in sorted(results.items(), key=lambda item: isinstance(item[1], Detections)):
            names = self.classes[task]
            if isinstance(result, Detections):
                kept = result.scores >= self.threshold
                self.best_score = max([self.best_score, *result.scores[:1].tolist()])  # the best comes first
                result = Detections(result.boxes[kept], result.scores[kept], result.labels[kept])
                boxes.append((result, names))
                self.detections += len(result.scores)
                ids = [category["id"] for category in self.categories[task]]
                _append(self._annotations, map(json.dumps, coco_results(result, self.images, ids)))
                self._append_csv(info, _box_rows(result, names))
                if "pictures" in formats:
                    image = draw_detections(image, result, names)
            elif isinstance(result, Segmentation):
                mask = result.mask.cpu().numpy()
                self._add_mask(entry, task, mask, info.stem if "masks" in formats else None)
                if "pictures" in formats:
                    image = draw_mask(image, mask, names)
            elif isinstance(result, Scores):
                entry["classes"] = _best_classes(result, names)
                self._append_csv(info, ((best["name"], best["score"], "", "", "", "") for best in entry["classes"]))
                if info.frame is None:
                    self.best_classes[info.file] = entry["classes"]
        if "voc" in formats:
            write(self.folder / "voc" / f"{info.stem}.xml", voc_xml(info.file, (height, width), boxes))
        _append(self._images, [json.dumps(entry)])
        return image

    def _add_mask(self, entry: dict[str, Any], task: str, mask: NDArray[np.uint8], stem: str | None) -> None:
        """Adds the classes of a mask to an image's entry, and writes the mask if it has a stem."""
        several = len(self.mask_classes) > 1
        content: dict[str, Any] = {"pixels": _class_shares(mask, self.mask_classes[task])}
        if stem is not None:
            content["mask"] = f"masks/{f'{task}/' if several else ''}{stem}.png"
            write(self.folder / content["mask"], encode_mask(mask))
        entry.update({task: content} if several else content)

    def finish(self) -> None:
        """Writes the json and the csv."""
        if "json" in self.formats:
            write_atomically(self.folder / "predictions.json", self._write_json)
        if "csv" in self.formats:
            write_atomically(self.folder / "predictions.csv", self._write_csv)

    def _append_csv(self, info: ImageInfo, rows: Iterable[Sequence[Any]]) -> None:
        frame = "" if info.frame is None else info.frame
        self._rows.write(_csv_lines((info.file, frame, *row) for row in rows))

    def _write_json(self, file: BinaryIO) -> None:
        file.write(b'{"images": [')
        _copy(self._images, file)
        file.write(b'],\n"annotations": [')
        _copy(self._annotations, file)
        categories = [*chain(*self.categories.values())]
        rest = {"categories": categories} | ({"mask_classes": self.mask_classes} if self.mask_classes else {})
        file.write(b"],\n" + json.dumps(rest)[1:].encode() + b"\n")

    def _write_csv(self, file: BinaryIO) -> None:
        file.write(_csv_lines([COLUMNS]))
        _copy(self._rows, file)


def coco_results(detections: Detections, image_id: int | str, category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Detections in COCO's results format.

    Args:
        detections: Of one image.
        image_id: Goes into every row.
        category_ids: The json's id of each label.

    Yields:
        A row per box: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels) and ``score``.
    """
    corners = detections.boxes.cpu().double().numpy()
    boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
    for box, score, label in zip(boxes, detections.scores.cpu(), detections.labels.cpu(), strict=True):
        yield {
            "image_id": image_id,
            "category_id": int(category_ids[label]),
            "bbox": [round(value, 3) for value in box.tolist()],
            "score": round(float(score), 6),
        }


def write(path: Path, data: bytes) -> None:
    """Writes a file completely or not at all."""
    write_atomically(path, lambda file: file.write(data))


def _box_rows(detections: Detections, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Class name, score and corners of every box."""
    boxes = detections.boxes.cpu().double().numpy().round(3).tolist()
    scores = detections.scores.cpu().double().numpy().round(6).tolist()
    for box, score, label in zip(boxes, scores, detections.labels.tolist(), strict=True):
        yield names[label], score, *box


def _class_shares(mask: NDArray[np.uint8], names: Sequence[str]) -> dict[str, float]:
    """The share of the picture's pixels that each class of the mask has."""
    counts = np.bincount(mask.ravel(), minlength=len(names))
    return {names[label]: round(float(counts[label] / mask.size), 5) for label in np.flatnonzero(counts).tolist()}


def _best_classes(result: Scores, names: Sequence[str]) -> list[dict[str, Any]]:
    """Name and score of the best classes."""
    best = result.probabilities.topk(min(BEST, len(names)))
    return [
        {"name": names[int(index)], "score": round(float(score), 5)}
        for score, index in zip(best.values, best.indices, strict=True)
    ]


def _append(spool: BinaryIO, entries: Iterable[str]) -> None:
    """Adds elements of a JSON list."""
    for entry in entries:
        # names of files need not be unicode
        spool.write(((",\n" if spool.tell() else "") + entry).encode(errors="surrogateescape"))


def _copy(spool: BinaryIO, file: BinaryIO) -> None:
    spool.seek(0)
    shutil.copyfileobj(spool, file)


def _csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    """Lines of a csv file, quoted where RFC 4180 requires it."""
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows(rows)
    return lines.getvalue().encode(errors="surrogateescape")
