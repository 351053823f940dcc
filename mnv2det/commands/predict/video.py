"""Reads videos and cameras frame by frame, and writes annotated videos."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mnv2det.errors import DataError

VIDEOS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})
# what OpenCV's wheels can always encode, best first
CODECS = ((".mp4", "mp4v"), (".avi", "MJPG"))
USUAL_FPS = 25.0


class VideoFrame(NamedTuple):
    """One frame of a video or camera.

    Attributes:
        image: uint8 (H, W, 3), RGB, upright.
        number: Number of the frame in the source, from 0.
        seconds: Time in the video; for a camera, since its first frame.
    """

    image: NDArray[np.uint8]
    number: int
    seconds: float


class Video:
    """A video file or a camera, read frame by frame.

    Args:
        source: The file, or the camera's number.
        every: Process every n-th frame; the others are not decoded.

    Attributes:
        fps: Frames per second; 25 where the source does not say.
        count: Number of frames according to the file, or None.
        passed: Number of frames that were read so far, with those that were not decoded.

    Raises:
        DataError: It cannot be opened.
    """

    def __init__(self, source: Path | int, *, every: int = 1) -> None:
        self.name = f"camera:{source}" if isinstance(source, int) else str(source)
        self.live = isinstance(source, int)
        if not isinstance(source, int):
            _check_file(source)
        self._capture = _open(source)
        if not self._capture.isOpened():
            what = "no such camera, or it is in use" if self.live else "not a video, a damaged one or one cut short"
            raise DataError(f"{self.name}: {what}")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0.01 <= fps <= 1000 else USUAL_FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = round(count) if not self.live and 1 <= count < 1e9 else None
        self.passed = 0
        self._every, self._seconds, self._start = every, 0.0, 0.0

    def read(self) -> VideoFrame | None:
        """The next frame; None at the end, or where no more can be decoded."""
        for _ in range(self._every if self.passed else 1):
            if not self._capture.grab():
                return None
            self._seconds = self._time(self.passed)
            self.passed += 1
        good, image = self._capture.retrieve()
        if not good:
            return None
        pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return VideoFrame(pixels, self.passed - 1, self._seconds)  # type: ignore[arg-type]

    def shortfall(self) -> str | None:
        """Says in one line that a camera has ended, or a file long before the end that it states; else None.

        Some containers hold no frame count, and it is estimated. Hence the tolerance, and frames and time must both be
        missing.
        """
        if self.live:
            return f"{self.name}: gave no more frames after {self.passed}"
        if self.count is None:
            return None
        frames = self.count - self.passed
        seconds = self.count / self.fps - (self._seconds + 1 / self.fps)
        if frames <= max(2, self.count // 100) or seconds <= max(0.1, 2 / self.fps, self.count / self.fps / 100):
            return None
        return f"{self.name}: cut short or damaged: {self.passed} of {self.count} frames could be read"

    def close(self) -> None:
        """Releases the file or camera."""
        self._capture.release()

    def _time(self, frame: int) -> float:
        if self.live:
            self._start = self._start or time.monotonic()
            return time.monotonic() - self._start
        # frames may come at uneven times; some containers do not say when
        stated = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return stated if stated > self._seconds else frame / self.fps


class VideoWriter:
    """Writes an annotated video, completely or not at all.

    At the end of the ``with`` block the file is moved into place; after an exception nothing is left of it.

    Args:
        path: The file without its suffix, which follows from the codec.
        fps: Frames per second.
        timed: Whether `write` repeats frames so that the video keeps pace with their times.

    Attributes:
        written: The file that was written; None if there was no frame.

    Raises:
        DataError: It cannot be encoded or written.
    """

    def __init__(self, path: Path, fps: float, *, timed: bool = False) -> None:
        self.path, self.fps, self.timed = path, fps, timed
        self.written: Path | None = None
        self._frames = 0
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._temporary, self._suffix = "", ""

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, image: NDArray[np.uint8], seconds: float = 0.0) -> None:
        """Appends a frame.

        Args:
            image: uint8 (H, W, 3), RGB. The first one determines the video's size, to which others are scaled. An odd
                side is made even, as codecs need it, by repeating its last pixels.
            seconds: Time of the frame, if ``timed``.
        """
        if self._writer is None:
            self._size = (image.shape[1], image.shape[0])
            self._writer = self._open((image.shape[1] + image.shape[1] % 2, image.shape[0] + image.shape[0] % 2))
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        odd = (self._size[1] % 2, self._size[0] % 2)
        even = cv2.copyMakeBorder(image, 0, odd[0], 0, odd[1], cv2.BORDER_REPLICATE)
        pixels = cv2.cvtColor(even, cv2.COLOR_RGB2BGR)
        for _ in range(max(1, round(seconds * self.fps) + 1 - self._frames) if self.timed else 1):
            self._writer.write(pixels)
            self._frames += 1

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._writer is None:
            return
        self._writer.release()
        try:
            if kind is None:
                self._move_into_place()
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)

    def _open(self, size: tuple[int, int]) -> cv2.VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for suffix, codec in CODECS:
            handle, self._temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".partial.", suffix=suffix)
            os.close(handle)
            writer = cv2.VideoWriter(self._temporary, cv2.VideoWriter.fourcc(*codec), self.fps, size)
            if writer.isOpened():
                self._suffix = suffix
                return writer
            os.unlink(self._temporary)
        raise DataError(f"{self.path}: OpenCV can encode no {size[0]}x{size[1]} video here (tried mp4v and MJPG)")

    def _move_into_place(self) -> None:
        # OpenCV does not say when the disk is full
        capture = _open(Path(self._temporary))
        readable = round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        path = self.path.with_name(self.path.name + self._suffix)
        if readable < self._frames:
            raise DataError(f"{path}: only {readable} of {self._frames} frames could be written; is the disk full?")
        os.chmod(self._temporary, 0o644)
        os.replace(self._temporary, path)
        self.written = path


def is_video(path: Path) -> bool:
    """Whether a file is a video: by its suffix or, if that is unknown, by whether OpenCV opens it as one."""
    if path.suffix.lower() in VIDEOS:
        return True
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except (OSError, ValueError):
        return False
    # FFmpeg would take a text file for a recording of a terminal
    if b"\0" not in start or cv2.haveImageReader(str(path)):
        return False
    capture = _open(path)
    opened = capture.isOpened()
    capture.release()
    return opened


def _open(source: Path | int) -> cv2.VideoCapture:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # silent: our own message says it
    if isinstance(source, int):
        return cv2.VideoCapture(source)
    # other backends take clip_01.mp4 for one of a sequence of pictures; an absolute path is never taken for an address
    return cv2.VideoCapture(str(source.absolute()), cv2.CAP_FFMPEG)


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(1)
    except OSError as error:
        raise DataError(f"{path}: cannot read the video ({error.strerror})") from None
    if not start:
        raise DataError(f"{path}: the video file is empty")
