"""Predicting files, folders, videos and cameras."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mnv2det.commands.predict.inputs import Source, refuse_overwriting, sources_of
from mnv2det.commands.predict.outputs import Outputs, Place, choose, write
from mnv2det.commands.predict.video import Video, VideoFile
from mnv2det.data.images import read_image
from mnv2det.errors import ConfigError, DataError
from mnv2det.registry import HEADS
from mnv2det.report.draw import encode
from mnv2det.runtime.base import Precision
from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import Result

T = TypeVar("T")
READERS = 2  # threads that decode pictures


def predict(
    source: str,
    inputs: Sequence[str],
    *,
    output: str,
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

    What cannot be read is listed and left out; the rest is still done. Pictures are decoded ahead
    by threads; at most two batches of them are in memory, however many there are.

    Args:
        source: A run folder, a weight file or an exported model.
        inputs: Files, folders (with all below them), patterns such as ``day*/**/*.jpg``, and
            ``camera:0``, which runs until it is stopped.
        output: Folder for what is written. A picture's files bear its stem, numbered where two
            inputs have the same.
        threshold: Least score that is drawn and written.
        batch_size: Pictures in one pass.
        pictures: Whether annotated pictures and videos are written.
        formats: ``json``: ``predictions.json``, COCO-style; a frame's entry has its number from 0
            and its time. ``csv``: ``predictions.csv``, a row per box or per class of a picture.
            ``voc``: ``voc/STEM.xml``, of a frame ``voc/STEM/NUMBER.xml``. ``masks``: palette PNGs
            of class ids, named likewise. ``pictures``: annotated ones; of a video, an mp4 of its
            size and speed. None takes json, pictures and, from a segmenter, masks, but those of
            frames only where they are named.
        every: Only every so-manieth frame of a video is looked at.
        backend: As in `Predictor`, as are the next four.
        precision: Likewise.
        threads: Likewise.
        memory_budget: Likewise.
        device: Likewise.
        stop: Once set, the batch is finished, and what is done is kept.

    Returns:
        ``images`` (and frames) done, ``detections`` written, ``output``, ``failed`` (one line
        each), ``stopped``, ``classes``: the best of each picture, from a classifier.

    Raises:
        ConfigError: A format is unknown, or the model has nothing to write in it.
        DataError: An input does not exist or would be overwritten, or the folder cannot be written.
        WeightsError: As `Predictor`, as are other ConfigErrors.
    """
    predictor = Predictor(
        source,
        backend=backend,
        device=device,
        threads=threads,
        precision=precision,
        memory_budget=memory_budget,
    )
    chosen = _formats(predictor, formats, pictures)
    sources = sources_of(inputs)
    folder, stop = Path(output), stop or threading.Event()
    refuse_overwriting(sources, folder, chosen)
    failed: list[str] = []
    try:
        with (
            _silent_opencv(),
            Outputs(
                folder,
                formats=chosen,
                frame_formats=chosen if formats is not None else chosen - {"masks"},
                classes=predictor.classes,
                categories=_categories(predictor),
                segmenters=_tasks(predictor, "mask"),
                threshold=threshold,
            ) as outputs,
        ):
            stills = [item for item in sources if not item.video]
            _pictures(predictor, stills, outputs, batch_size, stop, failed)
            for item in sources:
                if item.video and not stop.is_set():
                    _video(predictor, item, outputs, batch_size, every, stop, failed)
            outputs.finish()
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot write ({error.strerror})") from None
    return {
        "images": outputs.images,
        "detections": outputs.detections,
        "output": output,
        "failed": failed,
        "stopped": stop.is_set(),
        "classes": outputs.classes_of,
    }


def _pictures(
    predictor: Predictor,
    sources: Sequence[Source],
    outputs: Outputs,
    batch_size: int,
    stop: threading.Event,
    failed: list[str],
) -> None:
    if not sources:
        return
    read = _ahead((partial(_read, item) for item in sources), workers=READERS, depth=batch_size)
    with _bar(len(sources), "image", "predicting") as bar, closing(read):
        for chunk in _chunks(zip(sources, read, strict=True), batch_size):
            failed += [str(image) for _, image in chunk if isinstance(image, DataError)]
            good = [(item, image) for item, image in chunk if not isinstance(image, DataError)]
            results = _predicted(predictor, good, failed)
            for (item, image), found in zip(good, results, strict=True):
                if found is not None:
                    drawn = outputs.add(Place(item.name, item.stem), image, found)
                    if "pictures" in outputs.formats:
                        write(outputs.folder / item.picture, encode(drawn, Path(item.picture).suffix))
            bar.update(len(chunk))
            if stop.is_set():
                return


def _video(
    predictor: Predictor,
    source: Source,
    outputs: Outputs,
    batch_size: int,
    every: int,
    stop: threading.Event,
    failed: list[str],
) -> None:
    try:
        video = Video(source.file, every=every)
    except DataError as error:
        failed.append(str(error))
        return
    frames, before = None if video.count is None else -(-video.count // every), outputs.images
    # a camera's frames do not wait for each other
    size = 1 if video.live else batch_size
    read = _ahead(repeat(video.read), workers=1, depth=size)
    film = VideoFile(outputs.folder / source.stem, video.fps / every, timed=video.live)
    # left in reverse: reading has ended when the video is closed
    with closing(video), _bar(frames, "frame", source.name) as bar, closing(read), film:
        for chunk in _chunks(iter(partial(next, read), None), size):
            results = predictor.batch([shot.image for shot in chunk])
            for shot, found in zip(chunk, results, strict=True):
                place = Place(source.name, f"{source.stem}/{shot.frame:06d}", shot.frame, shot.seconds)
                drawn = outputs.add(place, shot.image, found)
                if "pictures" in outputs.frame_formats:
                    film.write(drawn, shot.seconds)
            bar.update(len(chunk))
            if stop.is_set():
                return
    if outputs.images == before:
        failed.append(f"{source.name}: no frame of it could be decoded")
    elif shortfall := video.shortfall():
        failed.append(shortfall)


def _predicted(
    predictor: Predictor, good: Sequence[tuple[Source, NDArray[np.uint8]]], failed: list[str]
) -> list[dict[str, Result] | None]:
    """Results of a batch; None, and a line in ``failed``, for a picture that memory is too small for."""
    try:
        return list(predictor.batch([image for _, image in good]))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
    if len(good) > 1:
        return [result for item in good for result in _predicted(predictor, [item], failed)]
    source, image = good[0]
    failed.append(f"{source.name}: out of memory at {image.shape[1]}x{image.shape[0]} pixels")
    return [None]


def _formats(predictor: Predictor, formats: Sequence[str] | None, pictures: bool) -> frozenset[str]:
    kinds = {HEADS.get(head["name"]).target_key for head in predictor.header.heads.values()}
    chosen = choose(formats, kinds)
    if not pictures and formats is not None and "pictures" in chosen:
        raise ConfigError("formats: names pictures, but no pictures are wanted")
    return chosen if pictures else chosen - {"pictures"}


def _read(source: Source) -> NDArray[np.uint8] | DataError:
    assert isinstance(source.file, Path)
    try:
        return read_image(source.file)
    except DataError as error:
        return error


def _ahead(calls: Iterable[Callable[[], T]], *, workers: int, depth: int) -> Generator[T, None, None]:
    """Results of the calls in their order, ``depth`` of them made in advance by threads."""
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


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def _bar(total: int | None, unit: str, about: str) -> tqdm[Any]:
    """Progress with the time left, or with the rate alone where the total is unknown."""
    return tqdm(total=total, unit=unit, desc=about, disable=not sys.stderr.isatty())


@contextmanager
def _silent_opencv() -> Iterator[None]:
    """Without OpenCV's own lines about files for which we have one."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def _tasks(predictor: Predictor, kind: str) -> list[str]:
    """The tasks whose heads have that ``target_key``."""
    return [task for task, head in predictor.header.heads.items() if HEADS.get(head["name"]).target_key == kind]


def _categories(predictor: Predictor) -> dict[str, list[dict[str, Any]]]:
    """By detecting task its classes, numbered from 1 through all of them."""
    numbers = count(1)
    return {
        task: [{"id": next(numbers), "name": name} for name in predictor.classes[task]]
        for task in _tasks(predictor, "labels")
    }
