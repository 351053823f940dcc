from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mnv2det.commands.predict import video as module
from mnv2det.commands.predict.video import Video, VideoWriter, is_video
from mnv2det.errors import DataError


def frame(number: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """RGB of a brightness that tells its number, red above and blue below."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, :, 0] = image[height // 2 :, :, 2] = 10 + 6 * number
    return image


def film(path: Path, frames: int = 30, *, codec: str = "MJPG", fps: float = 10) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (64, 48))
    if not writer.isOpened():
        pytest.skip(f"OpenCV has no {codec} encoder here: this check was NOT made")
    for number in range(frames):
        writer.write(frame(number)[:, :, ::-1])
    writer.release()
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def write(out: VideoWriter, frames: int, error: Exception | None = None) -> None:
    for number in range(frames):
        out.write(frame(number))
    if error:
        raise error


def frames_of(video: Video) -> list[Any]:
    return list(iter(video.read, None))


KINDS = [("a.avi", "MJPG"), ("a.mp4", "mp4v"), ("a.mkv", "MJPG"), ("a.mov", "mp4v")]


@pytest.mark.parametrize(("name", "codec"), KINDS)
def test_frames_are_rgb_with_number_and_time(tmp_path: Path, name: str, codec: str) -> None:
    video = Video(film(tmp_path / name, codec=codec))
    assert (video.count, video.fps, video.live) == (30, pytest.approx(10), False)
    found = frames_of(video)
    assert [read.number for read in found] == list(range(30))
    assert [read.seconds for read in found] == pytest.approx([n / 10 for n in range(30)], abs=0.01)
    for read in found:
        assert (read.image.shape, read.image.dtype) == ((48, 64, 3), np.uint8)
        np.testing.assert_allclose(read.image[5, 20], frame(read.number)[5, 20], atol=8)
        np.testing.assert_allclose(read.image[40, 20], frame(read.number)[40, 20], atol=8)
    assert (video.passed, video.shortfall()) == (30, None)
    video.close()


@pytest.mark.parametrize("every", [2, 7, 100])
def test_only_every_nth_frame_is_read(tmp_path: Path, every: int) -> None:
    video = Video(film(tmp_path / "a.avi"), every=every)
    found = frames_of(video)
    assert [read.number for read in found] == list(range(0, 30, every))
    assert [read.seconds for read in found] == pytest.approx([n / 10 for n in range(0, 30, every)], abs=0.01)
    np.testing.assert_allclose(found[-1].image[5, 20], frame(found[-1].number)[5, 20], atol=8)
    assert (video.passed, video.shortfall()) == (30, None)


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "MJPG"), ("a.mkv", "MJPG")])
@pytest.mark.parametrize("every", [1, 4])
def test_a_video_cut_short_says_what_is_missing(tmp_path: Path, name: str, codec: str, every: int) -> None:
    video = Video(cut(film(tmp_path / name, codec=codec), 0.6), every=every)
    assert 0 < len(frames_of(video)) < 30
    assert 10 < video.passed < 25
    assert video.shortfall() == f"{tmp_path / name}: cut short or damaged: {video.passed} of 30 frames could be read"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "the video file is empty"),
        (lambda path: path.write_text("hello\n" * 99), "not a video, a damaged one or one cut short"),
        (lambda path: cut(film(path, codec="mp4v"), 0.7), "not a video, a damaged one or one cut short"),
        (lambda path: None, "cannot read the video (No such file or directory)"),
        (lambda path: path.mkdir(), "cannot read the video (Is a directory)"),
    ],
    ids=["empty", "text", "mp4 without its end", "missing", "folder"],
)
def test_what_is_no_video_is_one_line(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path / "a.mp4")
    with pytest.raises(DataError) as caught:
        Video(tmp_path / "a.mp4")
    assert str(caught.value) == f"{tmp_path / 'a.mp4'}: {message}"


def test_a_name_that_looks_like_a_sequence_or_an_address_is_a_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clip_%03d.avi", "clip_001.avi", "file:x.avi"):
        film(tmp_path / "plain.avi", frames=3).rename(name)
        assert len(frames_of(Video(Path(name)))) == 3


def test_videos_are_known_by_suffix_or_content(tmp_path: Path) -> None:
    for name in ("a.MP4", "a.webm"):
        (tmp_path / name).touch()
        assert is_video(tmp_path / name)
    assert is_video(film(tmp_path / "a.avi").rename(tmp_path / "a.dat"))
    cv2.imwrite(str(tmp_path / "b.png"), frame(0))
    (tmp_path / "b.png").rename(tmp_path / "b.dat")
    (tmp_path / "notes.txt").write_text("a film of a terminal, to FFmpeg\n" * 20)
    (tmp_path / "zeros").write_bytes(bytes(500))
    (tmp_path / "empty").touch()
    for name in ("b.dat", "notes.txt", "zeros", "empty", "missing.dat"):
        assert not is_video(tmp_path / name)


class Capture:
    """What OpenCV offers of a camera, or of a file without a frame count."""

    def __init__(self, frames: int = 5, **facts: float) -> None:
        self.left, self.facts = frames, facts

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def get(self, key: int) -> float:
        names = {cv2.CAP_PROP_FPS: "fps", cv2.CAP_PROP_FRAME_COUNT: "count", cv2.CAP_PROP_POS_MSEC: "msec"}
        return self.facts.get(names[key], 0.0)

    def grab(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def retrieve(self) -> tuple[bool, NDArray[np.uint8]]:
        return True, frame(0)

    def release(self) -> None:
        pass


@pytest.mark.parametrize("count", [-9.2e18, 0.0, -1.0, float("nan"), 1e18])
@pytest.mark.parametrize("fps", [0.0, float("nan"), float("inf"), 90_000.0])
def test_what_the_file_does_not_say(tmp_path: Path, monkeypatch: Any, count: float, fps: float) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setattr(module, "_open", lambda source: Capture(count=count, fps=fps))
    video = Video(tmp_path / "a.mp4")
    assert (video.count, video.fps) == (None, 25.0)
    assert [read.seconds for read in frames_of(video)] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    assert video.shortfall() is None


def test_an_estimated_frame_count_may_be_wrong_where_the_time_is_right(tmp_path: Path, monkeypatch: Any) -> None:
    """A browser's recording claims 1000 frames a second: 10 s are no 10,000 frames."""
    capture = Capture(frames=300, count=10_000, fps=1000)
    monkeypatch.setattr(module, "_open", lambda source: capture)
    (tmp_path / "a.webm").write_bytes(b"x")
    video = Video(tmp_path / "a.webm")
    for number in range(300):
        capture.facts["msec"] = number * 1000 / 30
        assert video.read() is not None
    assert video.read() is None
    assert video.shortfall() is None


def test_a_camera_has_wall_time_and_no_end(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_open", lambda source: Capture(frames=2, count=99, fps=30))
    clock = iter([100.0, 100.0, 100.5, 100.5])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    video = Video(3)
    assert (video.name, video.live, video.count) == ("camera:3", True, None)
    assert [read.seconds for read in frames_of(video)] == [0.0, 0.5]
    assert video.shortfall() == "camera:3: gave no more frames after 2"


def test_a_camera_that_is_not_there_is_one_line(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_open", lambda source: cv2.VideoCapture())
    with pytest.raises(DataError, match=r"^camera:9: no such camera, or it is in use$"):
        Video(9)


@pytest.mark.parametrize("fps", [0.5, 7.5, 24000 / 1001, 29.97, 60.0, 59.94006, 240.0])
def test_what_is_written_can_be_read(tmp_path: Path, fps: float) -> None:
    with VideoWriter(tmp_path / "new" / "a", fps) as out:
        write(out, 9)
        assert not (tmp_path / "new" / "a.mp4").exists()
    assert out.written is not None
    assert [path.name for path in (tmp_path / "new").iterdir()] == [out.written.name]
    video = Video(out.written)
    assert (video.count, video.fps) == (9, pytest.approx(fps, rel=1e-3))
    for read in frames_of(video):
        np.testing.assert_allclose(read.image[5, 20], frame(read.number)[5, 20], atol=12)


def test_odd_sides_grow_by_a_pixel_and_other_sizes_are_scaled(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a", 10) as out:
        out.write(frame(20, 47, 63))
        out.write(frame(20, 94, 126))
    assert out.written is not None
    first, second = frames_of(Video(out.written))
    assert first.image.shape == second.image.shape == (48, 64, 3)
    np.testing.assert_allclose(first.image[-1, -1], frame(20)[-1, -1], atol=12)
    np.testing.assert_allclose(second.image[40, 20], frame(20)[40, 20], atol=12)


def test_a_timed_video_keeps_pace(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a", 10, timed=True) as out:
        for seconds in (0.0, 0.05, 0.5, 1.0):
            out.write(frame(1), seconds)
    assert out.written is not None
    assert Video(out.written).count == 11


def test_without_frames_or_with_an_error_nothing_is_left(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a", 10) as out:
        pass
    assert out.written is None
    with pytest.raises(ValueError, match="mine"), VideoWriter(tmp_path / "a", 10) as out:
        write(out, 2, ValueError("mine"))
    assert list(tmp_path.iterdir()) == []


def test_the_other_codec_is_taken_where_the_first_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "CODECS", ((".mp4", "ZZZZ"), (".avi", "MJPG")))
    with VideoWriter(tmp_path / "a.b", 10) as out:
        out.write(frame(0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.b.avi"]
    monkeypatch.setattr(module, "CODECS", ((".mp4", "ZZZZ"),))
    with (
        pytest.raises(DataError, match="OpenCV can encode no 64x48 video here"),
        VideoWriter(tmp_path / "c", 10) as out,
    ):
        out.write(frame(0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.b.avi"]


def test_a_full_disk_is_noticed(tmp_path: Path, monkeypatch: Any) -> None:
    keep = module.VideoWriter._move_into_place

    def lose(self: VideoWriter) -> None:
        cut(Path(self._temporary), 0.5)
        keep(self)

    monkeypatch.setattr(module.VideoWriter, "_move_into_place", lose)
    with pytest.raises(DataError, match=r"a.mp4: only 0 of 3 frames could be written; is the disk full\?"):  # noqa: SIM117
        with VideoWriter(tmp_path / "a", 9) as out:
            write(out, 3)
    assert list(tmp_path.iterdir()) == []
