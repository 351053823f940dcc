"""Predicts files, folders, videos and cameras."""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from mnv2det.commands.predict.inputs import Input, list_inputs, pillow_knows, refuse_overwriting, too_long
from mnv2det.commands.predict.outputs import ImageInfo, Outputs, choose_formats, write
from mnv2det.commands.predict.video import Video, VideoWriter
from mnv2det.data.images import DAMAGED, EXTENSIONS, LARGEST_FILE, MOST_PIXELS, read_image
from mnv2det.errors import DataError
from mnv2det.io import is_watched
from mnv2det.registry import HEADS
from mnv2det.report.draw import encode
from mnv2det.report.text import font_note
from mnv2det.runtime.base import Precision
from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import TaskResult

T = TypeVar("T")
READERS = 2  # threads that decode pictures


def predict(
    source: str | os.PathLike[str],
    inputs: Sequence[str | os.PathLike[str]],
    *,
    output: str | os.PathLike[str],
    threshold: float = 0.3,
    batch_size: int = 8,
    pictures: bool = True,
    formats: Sequence[str] | None = None,
    every: int = 1,
    backend: str = "auto",
    precision: Precision = "fp32",
    threads: int | None = None,
    memory_budget: int | None = None,
    device: str | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Predicts pictures, videos and cameras, and writes the results.

    What cannot be read is listed and left out; the rest is still predicted. Threads decode pictures ahead; at most two
    batches of them are in memory, however many there are.

    Args:
        source: A run folder, a weight file or an exported model.
        inputs: Files, folders (with all pictures and videos below them), patterns such as ``day*/**/*.jpg``, and
            ``camera:0``, which runs until it is stopped.
        output: Folder for what is written. The files of a picture have its stem, with a number where two inputs have
            the same one.
        threshold: The lowest score that is drawn and written.
        batch_size: Pictures that are predicted together.
        pictures: Whether annotated pictures and videos are written.
        formats: What to write. ``json``: ``predictions.json``, COCO-style; the entry of a frame has its number from 0
            and its time. ``csv``: ``predictions.csv``, a row per box or per class of a picture. ``voc``:
            ``voc/STEM.xml``, for a frame ``voc/STEM/NUMBER.xml``. ``masks``: palette PNGs of class ids, with the same
            names below ``masks``. ``pictures``: annotated ones; for a video, an mp4 of its size and speed. None writes
            json, pictures and, for a segmenter, masks, but no masks of frames.
        every: Process every n-th frame of a video.
        backend: See `Predictor`.
        precision: See `Predictor`.
        threads: See `Predictor`.
        memory_budget: See `Predictor`.
        device: See `Predictor`.
        stop: Once it is set, the current batch is finished and what was done is kept.

    Returns:
        ``images`` (with frames) and ``detections`` that were written, ``best_score`` (of a box, written or not; 0
        without), ``detects`` (whether the model has a detector), ``output``, ``failed`` (a line each), ``left_out`` (a
        line for each file that is neither a picture nor a video), ``font_note`` (which characters of class names could
        not be drawn, or None), ``stopped``, and ``classes``: the best ones of each picture, from a classifier.

    Raises:
        ConfigError: A format is unknown, or the model has nothing to write in it; or as `Predictor`.
        DataError: An input does not exist or would be overwritten, or the folder cannot be written.
        WeightsError: As `Predictor`.
    """
    predictor = Predictor(
        source,
        backend=backend,
        device=device,
        threads=threads,
        precision=precision,
        memory_budget=memory_budget,
    )
    targets = {task: HEADS.get(head["name"]).target_key for task, head in predictor.header.heads.items()}
    chosen = choose_formats(formats, targets.values(), pictures=pictures)
    listed, left_out = list_inputs(inputs)
    folder, stop = Path(output), stop or threading.Event()
    refuse_overwriting(listed, folder, chosen)
    try:
        with (
            _silent_opencv(),
            Outputs(
                folder,
                formats=chosen,
                frame_formats=chosen if formats is not None else chosen - {"masks"},
                classes=predictor.classes,
                targets=targets,
                threshold=threshold,
            ) as outputs,
        ):
            run = _Run(predictor, outputs, batch_size, every, stop)
            run.failed += [line for item in listed if (line := too_long(item, folder, chosen))]
            writable = [item for item in listed if not too_long(item, folder, chosen)]
            run.predict_pictures([item for item in writable if not item.video])
            for item in writable:
                if item.video and not stop.is_set():
                    run.predict_video(item)
            outputs.finish()
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot write ({error.strerror})") from None
    return {
        "images": outputs.images,
        "detections": outputs.detections,
        "best_score": outputs.best_score,
        "detects": bool(outputs.categories),
        "output": os.fspath(output),
        "failed": run.failed,
        "left_out": left_out,
        "font_note": font_note(chain(*predictor.classes.values())) if "pictures" in chosen else None,
        "stopped": stop.is_set(),
        "classes": outputs.best_classes,
    }


@dataclass
class _Run:
    """Predicts inputs and collects what failed.

    Attributes:
        predictor: The model.
        outputs: Where results go.
        batch_size: Pictures that are predicted together.
        every: Process every n-th frame of a video.
        stop: Once it is set, the current batch is the last.
        failed: A line per input that could not be predicted.
    """

    predictor: Predictor
    outputs: Outputs
    batch_size: int
    every: int
    stop: threading.Event
    failed: list[str] = field(default_factory=list)

    def predict_pictures(self, inputs: Sequence[Input]) -> None:
        """Predicts pictures in batches."""
        if not inputs:
            return
        images = _ahead((partial(_read, item) for item in inputs), workers=READERS, depth=self.batch_size)
        with _progress(len(inputs), "image", "predicting") as bar, closing(images):
            for batch in _batches(zip(inputs, images, strict=True), self.batch_size):
                self.failed += [str(image) for _, image in batch if isinstance(image, DataError)]
                readable = [(item, image) for item, image in batch if not isinstance(image, DataError)]
                for (item, image), results in zip(readable, self.predict_batch(readable), strict=True):
                    if results is not None:
                        annotated = self.outputs.add(ImageInfo(item.name, item.stem), image, results)
                        if "pictures" in self.outputs.formats:
                            name = item.picture_name
                            write(self.outputs.folder / name, encode(annotated, Path(name).suffix))
                bar.update(len(batch))
                if self.stop.is_set():
                    return

    def predict_video(self, source: Input) -> None:
        """Predicts the frames of a video or camera."""
        try:
            video = Video(source.file, every=self.every)
        except DataError as error:
            self.failed.append(str(error))
            return
        total, before = None if video.count is None else -(-video.count // self.every), self.outputs.images
        # a camera's frames do not wait for each other
        size = 1 if video.live else self.batch_size
        frames = _ahead(repeat(video.read), workers=1, depth=size)
        annotated = VideoWriter(self.outputs.folder / source.stem, video.fps / self.every, timed=video.live)
        # left in reverse order: reading has ended when the video is closed
        with closing(video), _progress(total, "frame", source.name) as bar, closing(frames), annotated:
            for batch in _batches(iter(partial(next, frames), None), size):
                results = self.predictor.batch([frame.image for frame in batch])
                for frame, result in zip(batch, results, strict=True):
                    stem = f"{source.stem}/{frame.number:06d}"
                    info = ImageInfo(source.name, stem, frame.number, frame.seconds)
                    drawn = self.outputs.add(info, frame.image, result)
                    if "pictures" in self.outputs.frame_formats:
                        annotated.write(drawn, frame.seconds)
                bar.update(len(batch))
                if self.stop.is_set():
                    return
        if self.outputs.images == before:
            self.failed.append(f"{source.name}: no frame of it could be decoded")
        elif shortfall := video.shortfall():
            self.failed.append(shortfall)

    def predict_batch(self, batch: Sequence[tuple[Input, NDArray[np.uint8]]]) -> list[dict[str, TaskResult] | None]:
        """Results of pictures; None, and a line in `failed`, for a picture that needs more memory than there is."""
        try:
            return list(self.predictor.batch([image for _, image in batch]))
        except (MemoryError, RuntimeError) as error:
            known = isinstance(error, MemoryError | torch.OutOfMemoryError)
            if not known and "can't allocate memory" not in str(error):
                raise
        if len(batch) > 1:
            return [result for picture in batch for result in self.predict_batch([picture])]
        source, image = batch[0]
        self.failed.append(f"{source.name}: out of memory at {image.shape[1]}x{image.shape[0]} pixels")
        return [None]


def _read(source: Input) -> NDArray[np.uint8] | DataError:
    """The image, or the error that says why it cannot be read."""
    assert isinstance(source.file, Path)
    try:
        return read_image(source.file)
    except DataError as error:
        image = None if source.file.suffix.lower() in EXTENSIONS else _read_with_pillow(source.file)
        return error if image is None else image


def _read_with_pillow(path: Path) -> NDArray[np.uint8] | None:
    """Reads a picture of a kind that only Pillow decodes, such as gif and avif with some builds of OpenCV.

    Returns:
        The first picture in the file, upright, uint8 (H, W, 3), RGB; None if Pillow does not decode it either, or if
        it claims more pixels than `read_image` decodes.
    """
    try:
        if path.stat().st_size > LARGEST_FILE or not pillow_knows(path):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    return None
                return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except DAMAGED:
        return None


def _ahead(calls: Iterable[Callable[[], T]], *, workers: int, depth: int) -> Generator[T, None, None]:
    """Yields the results of calls in their order; threads make ``depth`` of them in advance."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for call in calls:
                waiting.append(pool.submit(call))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yields the items in lists of ``size``; the last may be shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _progress(total: int | None, unit: str, about: str) -> tqdm[Any]:
    """A progress bar with the time left, or with the rate alone where the total is unknown."""
    return tqdm(total=total, unit=unit, desc=about, disable=not is_watched())


@contextmanager
def _silent_opencv() -> Iterator[None]:
    """Silences OpenCV's own messages about files that cannot be read; ours say more."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
