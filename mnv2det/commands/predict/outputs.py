"""Writes predictions: COCO-style json, VOC xml, csv, masks and annotated pictures."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnv2det.commands.predict.voc_xml import voc_xml
from mnv2det.errors import ConfigError, near
from mnv2det.io import write_atomically
from mnv2det.report.draw import encode_mask
from mnv2det.runtime.result import Result
from mnv2det.structures import Scores, Segmentation, TaskResult

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
            results: As `Predictor.batch` returns them.

        Returns:
            The annotated picture, uint8 (H, W, 3); the picture itself unless ``pictures`` are written.
        """
        formats = self.formats if info.frame is None else self.frame_formats
        self.images += 1
        height, width = image.shape[:2]
        entry: dict[str, Any] = {"id": self.images, "file_name": info.file, "height": height, "width": width}
        if info.frame is not None:
            entry |= {"frame": info.frame, "time_s": round(info.seconds or 0.0, 4)}
        everything = Result(results, self.classes, image)
        result = everything.filter(threshold=self.threshold)
        detectors, content = result.detectors(), result.to_dict()
        for task, found in result.items():
            if isinstance(found, Segmentation):
                mask = found.mask.cpu().numpy()
                self._add_mask(entry, task, mask, content, info.stem if "masks" in formats else None)
            elif isinstance(found, Scores):
                entry["classes"] = content["classes"]
                self._append_csv(info, ((best["name"], best["score"], "", "", "", "") for best in content["classes"]))
                if info.frame is None:
                    self.best_classes[info.file] = content["classes"]
        if detectors:
            # the best box of each detector comes first
            best = [float(score) for found in everything.detectors().values() for score in found.scores[:1]]
            self.best_score = max([self.best_score, *best])
            self.detections += len(result)
            ids = [category["id"] for task in detectors for category in self.categories[task]]
            _append(self._annotations, map(json.dumps, result.to_coco(self.images, ids)))
            self._append_csv(info, ((box["name"], box["score"], *box["box"]) for box in content["boxes"]))
        if "voc" in formats:
            boxes = [(found, self.classes[task]) for task, found in detectors.items()]
            write(self.folder / "voc" / f"{info.stem}.xml", voc_xml(info.file, (height, width), boxes))
        _append(self._images, [json.dumps(entry)])
        return result.draw() if "pictures" in formats else image

    def _add_mask(
        self, entry: dict[str, Any], task: str, mask: NDArray[np.uint8], told: Mapping[str, Any], stem: str | None
    ) -> None:
        """Adds the classes of a mask to an image's entry, and writes the mask if it has a stem.

        Args:
            entry: Of the image.
            task: Whose mask it is.
            mask: uint8 (H, W).
            told: What `Result.to_dict` says of the picture.
            stem: As in `ImageInfo`; None writes no mask.
        """
        several = len(self.mask_classes) > 1
        content: dict[str, Any] = {"pixels": (told[task] if several else told)["pixels"]}
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


def write(path: Path, data: bytes) -> None:
    """Writes a file completely or not at all."""
    write_atomically(path, lambda file: file.write(data))


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
