from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

import mnv2det.models  # noqa: F401 - registers
from mnv2det.cli import main
from mnv2det.commands.predict import run as module
from mnv2det.commands.predict import video as video_module
from mnv2det.commands.predict.inputs import list_inputs
from mnv2det.commands.predict.run import predict
from mnv2det.commands.predict.video import Video
from mnv2det.data.formats.voc import VOC
from mnv2det.data.images import read_image
from mnv2det.errors import DataError
from mnv2det.models.build import assemble
from mnv2det.models.weight_file import save_weights
from mnv2det.report import text as text_module
from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import Preprocess

pytestmark = pytest.mark.heavy

HEADS = {
    "det": {"name": "ssdlite", "args": {"extras": [16, 16], "init_std": None, "prior": None}},
    "cls": {"name": "classifier", "args": {}},
}


def weights(folder: Path, task: str, names: tuple[str, ...] = ("cat", "dog")) -> str:
    torch.manual_seed(0)
    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35}},
        {task: HEADS[task]},
        classes={task: list(names)},
        preprocess=Preprocess((64, 64)),
    )
    save_weights(folder / f"{task}.safetensors", model.eval().state_dict(), model.header())
    return str(folder / f"{task}.safetensors")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    return weights(tmp_path_factory.mktemp("weights"), "det")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    return weights(tmp_path_factory.mktemp("weights"), "cls")


def run(source: str, *arguments: object, out: Path, code: int = 0) -> Any:
    """Exit code as expected; the json that was written, if any."""
    assert main(["predict", source, *map(str, arguments), "--out", str(out)]) == code
    path = out / "predictions.json"
    return json.loads(path.read_text()) if path.exists() else None


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def scene(height: int = 60, width: int = 80) -> Image.Image:
    """Smooth, red at the left and blue at the bottom."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    return Image.fromarray((np.stack([1 - x, 0.2 + 0 * x, y], axis=2) * 255).astype(np.uint8))


def film(path: Path, frames: int = 20, *, codec: str = "MJPG", size: tuple[int, int] = (48, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, size[::-1])
    if not writer.isOpened():
        pytest.skip(f"OpenCV has no {codec} encoder here: this check was NOT made")
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    for number in range(frames):
        writer.write(noise // 2 + 5 * (number % 25))
    writer.release()
    return path


# every kind of picture


def sixteen(mode: str) -> bytes:
    values = np.linspace(0, 65535, 80).astype(np.uint16) * np.ones((60, 1), np.uint16)
    pixels = {"grey": values, "colour": np.dstack([values] * 3), "alpha": np.dstack([values] * 4)}[mode]
    return cv2.imencode(".png", pixels)[1].tobytes()


def saved(image: Image.Image, kind: str, orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif)
    return stream.getvalue()


def upright(data: bytes) -> NDArray[Any]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


RAMP = np.linspace(0, 255, 80)[:, None].repeat(3, axis=1) * np.ones((60, 1, 1))
TRANSPARENT = scene().convert("RGBA")
TRANSPARENT.putalpha(30)
KINDS: dict[str, tuple[bytes, Any]] = {
    "1x1.png": (saved(scene(1, 1), "PNG"), upright(saved(scene(1, 1), "PNG"))),
    "1x300.png": (saved(scene(300, 1), "PNG"), upright(saved(scene(300, 1), "PNG"))),
    "16 bit grey.png": (sixteen("grey"), RAMP),
    "16 bit colour.png": (sixteen("colour"), RAMP),
    "16 bit alpha.png": (sixteen("alpha"), RAMP),
    "grey.png": (saved(scene().convert("L"), "PNG"), upright(saved(scene().convert("L"), "PNG"))),
    "grey.jpg": (saved(scene().convert("L"), "JPEG"), upright(saved(scene().convert("L"), "JPEG"))),
    "alpha.png": (saved(TRANSPARENT, "PNG"), np.asarray(scene())),
    "palette.png": (saved(scene().convert("P"), "PNG"), upright(saved(scene().convert("P"), "PNG"))),
    "one bit.png": (saved(scene().convert("1"), "PNG"), upright(saved(scene().convert("1"), "PNG"))),
    "cmyk.jpg": (saved(scene().convert("CMYK"), "JPEG"), np.asarray(scene())),
    **{f"exif {n}.jpg": (data := saved(scene(), "JPEG", n), upright(data)) for n in range(1, 9)},
    "exif.png": (data := saved(scene(), "PNG", 6), upright(data)),
    "panorama.jpg": (data := saved(scene(600, 12000), "JPEG"), upright(data)),
    "picture.dat": (saved(scene(), "PNG"), np.asarray(scene())),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_comes_out_right(detector: str, tmp_path: Path, name: str) -> None:
    data, wanted = KINDS[name]
    (tmp_path / name).write_bytes(data)
    # no score exceeds 1: the picture is written as it was read
    run(detector, tmp_path / name, "--threshold", 1, out=tmp_path / "plain")
    seen = read_image(next((tmp_path / "plain").glob(f"{Path(name).stem}.*")))
    assert seen.shape == wanted.shape
    np.testing.assert_allclose(seen.astype(float), wanted, atol=12 if name.endswith("jpg") else 1)
    found = run(detector, tmp_path / name, "--threshold", 0.01, out=tmp_path / "out")
    (entry,) = found["images"]
    assert (entry["height"], entry["width"]) == wanted.shape[:2]
    boxes = np.array([row["bbox"] for row in found["annotations"]])
    assert len(boxes)
    assert (boxes[:, 0] + boxes[:, 2]).max() <= wanted.shape[1] + 1e-3
    assert (boxes[:, 1] + boxes[:, 3]).max() <= wanted.shape[0] + 1e-3


def test_boxes_refer_to_the_upright_picture(detector: str, tmp_path: Path) -> None:
    (tmp_path / "turned.png").write_bytes(data := saved(scene(40, 90), "PNG", 6))
    found = run(detector, tmp_path / "turned.png", "--threshold", 0.01, out=tmp_path / "out")
    result = Predictor(detector, device="cpu")(upright(data).copy(), threshold=0)["det"]
    wanted = result.boxes[result.scores >= 0.01].numpy()
    wanted[:, 2:] -= wanted[:, :2]
    np.testing.assert_allclose([row["bbox"] for row in found["annotations"]], wanted, atol=0.01)


BROKEN = {
    "empty.jpg": (b"", "the image file is empty"),
    "text.jpg": (b"no picture\n" * 9, "not an image, or a damaged one (99 bytes)"),
    "cut.jpg": (saved(scene(), "JPEG")[:700], "truncated JPEG (no end-of-image marker in 700 bytes)"),
    "cut.png": (saved(scene(), "PNG")[:90], "truncated PNG (no IEND chunk in 90 bytes)"),
    "cut.bmp": (saved(scene(), "BMP")[:999], "not an image, or a damaged one (999 bytes)"),
    "cut.tiff": (saved(scene(), "TIFF")[:999], "not an image, or a damaged one (999 bytes)"),
    "empty.mp4": (b"", "the video file is empty"),
    "text.mp4": (b"no film\n" * 9, "not a video, a damaged one or one cut short"),
    "pages.tif": (b"II*\0" + bytes(96), "not an image, or a damaged one (100 bytes)"),
}


@pytest.mark.process
def test_a_folder_run_goes_on_lists_what_failed_and_exits_1(detector: str, tmp_path: Path) -> None:
    for name, (data, _) in BROKEN.items():
        (folder := tmp_path / "in").mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    for name in ("a.png", "m.png", "z.png"):
        (folder / name).write_bytes(saved(scene(), "PNG"))
    film(folder / "good.avi", 5)
    # as its own process, because FFmpeg can only be silenced before its first use
    command = [sys.executable, "-m", "mnv2det", "predict", detector, folder, "--batch-size", "2", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    names = [Path(entry["file_name"]).name for entry in found["images"]]
    assert names == ["a.png", "m.png", "z.png"] + ["good.avi"] * 5
    assert [entry["id"] for entry in found["images"]] == list(range(1, 9))
    errors = done.stderr.splitlines()
    wanted = {f"mnv2det: failed: {folder / name}: {message}" for name, (_, message) in BROKEN.items()}
    # and nothing else: neither OpenCV nor FFmpeg speaks
    assert set(errors) == wanted
    assert len(errors) == len(wanted)


def test_memory_that_is_too_small_for_one_picture_stops_no_other(
    detector: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, width in (("a", 80), ("big", 900), ("c", 80)):
        (tmp_path / f"{name}.png").write_bytes(saved(scene(60, width), "PNG"))
    batch = Predictor.batch

    def small(self: Predictor, pictures: Any) -> Any:
        if any(picture.shape[1] > 500 for picture in pictures):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate a lot")
        return batch(self, pictures)

    monkeypatch.setattr(Predictor, "batch", small)
    found = run(detector, tmp_path, out=tmp_path / "out", code=1)
    assert [Path(entry["file_name"]).stem for entry in found["images"]] == ["a", "c"]
    assert f"failed: {tmp_path / 'big.png'}: out of memory at 900x60 pixels\n" in capsys.readouterr().err


def test_other_errors_of_the_model_are_not_hidden(detector: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    monkeypatch.setattr(Predictor, "batch", lambda self, pictures: 1 / torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError):
        predict(detector, [str(tmp_path / "a.png")], output=str(tmp_path / "out"))


# what inputs may be


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    home = tmp_path / "tree"
    for name in ("a.png", "day1/b.png", "day1/deep/c.png", "day2/d.png", "odd[1].png"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(saved(scene(), "PNG"))
    film(home / "day1/e.avi", 2)
    (home / "day1/notes.txt").write_text("not for us")
    return home


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.png", ["a.png", "odd[1].png"]),
        ("day*", None),
        ("day1/*", ["b.png", "e.avi"]),
        ("day*/**/*.png", ["b.png", "c.png", "d.png"]),
        ("**", ["a.png", "b.png", "c.png", "e.avi", "d.png", "odd[1].png"]),
        ("day?/[bd].png", ["b.png", "d.png"]),
        ("odd[1].png", ["odd[1].png"]),
        ("day1", ["b.png", "c.png", "e.avi"]),
        ("*.gif", None),
    ],
)
def test_patterns_files_and_folders(
    detector: str, tree: Path, tmp_path: Path, pattern: str, wanted: list[str] | None, capsys: Any
) -> None:
    if wanted is None:
        assert main(["predict", detector, str(tree / pattern), "--out", str(tmp_path / "out")]) == 2
        message = f"mnv2det: {tree / pattern}: no image or video matches (looked for .avi, .bmp, "
        assert capsys.readouterr().err.startswith(message)
        return
    seen = [item.file for item in list_inputs([str(tree / pattern)]).inputs]
    assert [path.name for path in seen if isinstance(path, Path)] == wanted


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("http://host/a.jpg", "addresses are not fetched; expected a file, folder, pattern or camera:0"),
        ("rtsp://host/live", "addresses are not fetched; expected a file, folder, pattern or camera:0"),
        ("FILE:///etc/a.jpg", "addresses are not fetched; expected a file, folder, pattern or camera:0"),
        ("camera:front", "expected camera: and a number, such as camera:0"),
        ("camera:", "expected camera: and a number, such as camera:0"),
        ("none.jpg", "no such image, video or folder"),
    ],
)
def test_inputs_that_are_none(item: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        list_inputs([item])
    assert str(caught.value) == f"{item}: {message}"


def test_a_name_too_long_for_any_file_is_one_line() -> None:
    with pytest.raises(DataError, match=r": no such image, video or folder$"):
        list_inputs(["n" * 300 + ".png"])


def test_hidden_and_system_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    names = ("._a.jpg", ".thumbnails/x.png", "@eaDir/a.jpg/s.jpg", "__MACOSX/a.png", ".ipynb_checkpoints/a.png")
    for name in (*names, "a.png", "below/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(saved(scene(), "PNG"))
    wanted = ["a.png", "below/b.png"]
    for item in (tmp_path, tmp_path / "**"):
        inputs, left_out = list_inputs([item])
        assert [Path(entry.name).relative_to(tmp_path).as_posix() for entry in inputs] == wanted
        assert left_out == []
    for item in (tmp_path / ".thumbnails", tmp_path / ".thumbnails" / "*.png", tmp_path / ".thumbnails/x.png"):
        assert [Path(entry.name).name for entry in list_inputs([item]).inputs] == ["x.png"]


def test_class_names_that_no_font_has_are_said_once(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(text_module, "_fonts", lambda: [])
    text_module._best_font.cache_clear()
    monkeypatch.setitem(HEADS, "named", HEADS["det"])
    detector = weights(tmp_path, "named", ("\U00017000", "cat"))
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(saved(scene(), "PNG"))
    run(detector, tmp_path / "a.png", tmp_path / "b.png", "--threshold", 0, out=tmp_path / "out")
    assert capsys.readouterr().err.count("no font here has") == 1
    run(detector, tmp_path / "a.png", "--no-pictures", out=tmp_path / "none")
    assert capsys.readouterr().err == ""
    text_module._best_font.cache_clear()


def test_every_file_of_a_folder_is_predicted_or_named(detector: str, tmp_path: Path, capsys: Any) -> None:
    (folder := tmp_path / "in").mkdir()
    kinds = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c.gif": "GIF", "d.jp2": "JPEG2000", "e.dat": "PNG", "f.tga": "TGA"}
    for name, kind in kinds.items():
        (folder / name).write_bytes(saved(scene(), kind))
    (folder / "labels.txt").write_text("cat")
    (folder / "page.eps").write_bytes(saved(scene(), "EPS"))
    found = run(detector, folder, out=tmp_path / "out")
    assert [Path(entry["file_name"]).name for entry in found["images"]] == sorted(kinds)
    assert all((entry["height"], entry["width"]) == (60, 80) for entry in found["images"])
    assert capsys.readouterr().err.splitlines() == [
        f"mnv2det: left out: {folder / name}: neither a picture nor a video that can be read here"
        for name in ("labels.txt", "page.eps")
    ]


def test_of_many_files_left_out_ten_are_named(detector: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    for number in range(14):
        (tmp_path / f"{number:02d}.txt").write_text("cat")
    run(detector, tmp_path, "--json", tmp_path / "s.json", out=tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "mnv2det: left out: 4 more files like these (--json FILE lists all)"
    assert len(json.loads((tmp_path / "s.json").read_text())["left_out"]) == 14


def test_pictures_that_only_pillow_decodes_are_upright_rgb(
    detector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "a.jfif").write_bytes(data := saved(scene(), "JPEG", 6))

    def refuse(path: Path) -> NDArray[np.uint8]:
        raise DataError(f"{path}: not an image")

    monkeypatch.setattr(module, "read_image", refuse)
    found = run(detector, path, out=tmp_path / "out")
    assert [(entry["height"], entry["width"]) for entry in found["images"]] == [(80, 60)]
    np.testing.assert_array_equal(module._read(list_inputs([path]).inputs[0]), upright(data))


@pytest.mark.shared
def test_a_folder_as_tools_leave_it_is_predicted(detector: str, shared: Path, tmp_path: Path, capsys: Any) -> None:
    found = run(detector, shared / "cases/c28/in", out=tmp_path / "out")
    names = [Path(entry["file_name"]).name for entry in found["images"]]
    assert names == ["a.jpg", "b.JPE", "b.avif", "b.gif", "b.jfif", "b.jp2"]
    assert capsys.readouterr().err == ""


def test_a_picture_with_a_long_name_is_predicted(detector: str, tmp_path: Path) -> None:
    name = "n" * 247
    (tmp_path / f"{name}.png").write_bytes(saved(scene(), "PNG"))
    run(detector, tmp_path, "--formats", "json,pictures,voc", out=tmp_path / "out")
    assert files(tmp_path / "out") == {"predictions.json", f"{name}.png", f"voc/{name}.xml"}


def test_a_picture_whose_results_have_too_long_a_name_stops_no_other(
    detector: str, tmp_path: Path, capsys: Any
) -> None:
    (folder := tmp_path / "in").mkdir()
    long = "n" * 251
    for name in (f"{long}.png", f"{long}.jpg", "z.png"):
        (folder / name).write_bytes(saved(scene(), "PNG"))
    found = run(detector, folder, "--formats", "json,pictures", out=tmp_path / "out", code=1)
    assert [Path(entry["file_name"]).name for entry in found["images"]] == [f"{long}.jpg", "z.png"]
    expected = f"{folder / long}.png: cannot write {long}_2.png: the file system takes no name of 257 characters"
    assert capsys.readouterr().err.splitlines() == [f"mnv2det: failed: {expected}"]


def test_a_video_with_a_long_name_becomes_a_video(detector: str, tmp_path: Path) -> None:
    film(tmp_path / "f.avi", 2).rename(tmp_path / ("n" * 246 + ".avi"))
    run(detector, tmp_path, out=tmp_path / "out")
    assert files(tmp_path / "out") == {"predictions.json", "n" * 246 + ".mp4"}


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r": no images or videos in it \(looked for "):
        list_inputs([str(tmp_path)])


def test_names_are_unique_by_stem_whatever_the_kind(detector: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(saved(scene(), "PNG"))
    film(tmp_path / "x.avi", 2)
    film(tmp_path / "sub/x.mkv", 2)
    found = run(detector, tmp_path, "--formats", "json,voc,pictures", out=tmp_path / "out")
    # in the order of sub/x.mkv, x.avi, x.png
    frames = {f"voc/{stem}/00000{number}.xml" for stem in ("x", "x_2") for number in range(2)}
    assert files(tmp_path / "out") == {"predictions.json", "x.mp4", "x_2.mp4", "x_3.png", "voc/x_3.xml", *frames}
    assert len(found["images"]) == 5


@pytest.mark.parametrize(
    ("name", "formats"),
    [("a.mp4", "pictures"), ("a.avi", "pictures"), ("predictions.csv", "csv"), ("voc/a.xml", "json,voc")],
)
def test_no_input_is_overwritten(detector: str, tmp_path: Path, name: str, formats: str, capsys: Any) -> None:
    home = tmp_path / "home"
    film(home / "sub/a.avi", 2)
    (home / name).parent.mkdir(parents=True, exist_ok=True)
    (home / name).write_bytes(b"mine")
    inputs = [str(home / "sub/a.avi"), str(home / name)]
    assert main(["predict", detector, *inputs, "--out", str(home), "--formats", formats]) == 2
    assert f"would overwrite the picture {home / name}; choose another folder" in capsys.readouterr().err
    assert (home / name).read_bytes() == b"mine"


# what is written


def test_voc_and_csv_of_a_run_say_what_the_json_says(detector: str, tmp_path: Path) -> None:
    home = tmp_path / "VOCdevkit" / "Mine"
    (home / "JPEGImages").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (home / "JPEGImages" / name).write_bytes(saved(scene(), "PNG"))
    options = ("--formats", "json, voc,csv", "--threshold", 0.3)
    found = run(detector, home / "JPEGImages", *options, out=tmp_path / "out")
    assert files(tmp_path / "out") == {"predictions.json", "predictions.csv", "voc/a.xml", "voc/b.xml"}
    (tmp_path / "out/voc").rename(home / "Annotations")
    (home / "ImageSets/Main").mkdir(parents=True)
    (home / "ImageSets/Main/all.txt").write_text("a\nb\n")
    data = VOC(root=tmp_path, sets=("Mine/all",), suffix=".png", names=("cat", "dog")).dataset()
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(found["annotations"]) > 2
    for index, entry in enumerate(found["images"]):
        rows = [row for row in found["annotations"] if row["image_id"] == entry["id"]]
        boxes = np.array([row["bbox"] for row in rows])
        boxes[:, 2:] += boxes[:, :2]
        lines = [line for line in table if line["file"] == entry["file_name"]]
        np.testing.assert_allclose(
            [[float(line[key]) for key in ("x1", "y1", "x2", "y2")] for line in lines], boxes, atol=2e-3
        )
        assert [line["class"] for line in lines] == [["cat", "dog"][row["category_id"] - 1] for row in rows]
        assert [float(line["score"]) for line in lines] == [row["score"] for row in rows]
        target = data.target(index)
        np.testing.assert_array_equal(target["labels"] + 1, [row["category_id"] for row in rows])
        np.testing.assert_allclose(target["boxes"], boxes, atol=2.01)


def test_a_classifier_writes_classes(classifier: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    film(tmp_path / "clip.avi", 2)
    found = run(classifier, tmp_path, "--formats", "json,csv", out=tmp_path / "out")
    assert all({best["name"] for best in entry["classes"]} == {"cat", "dog"} for entry in found["images"])
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(Path(row["file"]).name, row["frame"], row["x1"]) for row in table[::2]] == [
        ("a.png", "", ""),
        ("clip.avi", "0", ""),
        ("clip.avi", "1", ""),
    ]
    assert len([line for line in capsys.readouterr().out.splitlines() if "cat 0." in line]) == 1


def test_formats_and_no_pictures(detector: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    for number, (options, wanted) in enumerate(
        [
            ((), {"predictions.json", "a.png"}),
            (("--no-pictures",), {"predictions.json"}),
            (("--formats", "pictures"), {"a.png"}),
            (("--formats", "csv", "--no-pictures"), {"predictions.csv"}),
        ]
    ):
        run(detector, tmp_path / "a.png", *options, out=(out := tmp_path / f"out{number}"))
        assert files(out) == wanted
    for options, message in (
        (("--formats", "json,pictures", "--no-pictures"), "formats: names pictures, but no pictures are wanted"),
        (("--formats", "json,"), "formats: no format ''; expected one of csv, json, masks, pictures, voc"),
        (("--formats", "masks"), "formats: nothing to write as masks: this model finds boxes"),
        (("--every", "0"), "--threshold must be from 0 to 1, --batch-size and --every at least 1"),
    ):
        run(detector, tmp_path / "a.png", *options, out=tmp_path / "none", code=2)
        assert capsys.readouterr().err == f"mnv2det: {message}\n"
    assert not (tmp_path / "none").exists()


# videos and cameras


@pytest.mark.parametrize("every", [1, 3])
def test_a_video_becomes_a_video_and_an_entry_per_frame(detector: str, tmp_path: Path, every: int) -> None:
    film(tmp_path / "clip.avi", 20)
    options = ("--batch-size", 3, "--every", every, "--threshold", 0.01, "--formats", "json,csv,pictures")
    found = run(detector, tmp_path / "clip.avi", *options, out=tmp_path / "out")
    assert files(tmp_path / "out") == {"predictions.json", "predictions.csv", "clip.mp4"}
    frames = list(range(0, 20, every))
    assert [entry["frame"] for entry in found["images"]] == frames
    assert [entry["time_s"] for entry in found["images"]] == pytest.approx([frame / 10 for frame in frames], abs=0.01)
    assert {(e["file_name"], e["height"], e["width"]) for e in found["images"]} == {
        (str(tmp_path / "clip.avi"), 48, 64)
    }
    assert {row["image_id"] for row in found["annotations"]} == set(range(1, len(frames) + 1))
    video = Video(tmp_path / "out/clip.mp4")
    assert (video.count, video.fps) == (len(frames), pytest.approx(10 / every, rel=1e-3))
    first = video.read()
    assert first is not None
    assert first.image.shape == (48, 64, 3)
    # a batch rounds otherwise than a picture by itself
    first = Video(tmp_path / "clip.avi").read()
    assert first is not None
    alone = Predictor(detector, device="cpu")(first.image, threshold=0)["det"].scores
    together = [row["score"] for row in found["annotations"] if row["image_id"] == 1]
    np.testing.assert_allclose(together[:5], alone[:5], atol=1e-4)
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        assert {int(row["frame"]) for row in csv.DictReader(file)} == set(frames)


def test_a_video_cut_short_is_done_as_far_as_it_goes(detector: str, tmp_path: Path, capsys: Any) -> None:
    data = film(tmp_path / "clip.avi", 40).read_bytes()
    (tmp_path / "clip.avi").write_bytes(data[: len(data) * 6 // 10])
    (tmp_path / "z.png").write_bytes(saved(scene(), "PNG"))
    found = run(detector, tmp_path, out=tmp_path / "out", code=1)
    done = len(found["images"]) - 1
    assert 15 < done < 35
    assert Video(tmp_path / "out/clip.mp4").count == done
    wanted = f"mnv2det: failed: {tmp_path / 'clip.avi'}: cut short or damaged: {done} of 40 frames could be read\n"
    assert capsys.readouterr().err == wanted


def test_a_video_without_a_readable_frame_leaves_no_video(detector: str, tmp_path: Path, capsys: Any) -> None:
    data = film(tmp_path / "clip.avi", 20).read_bytes()
    (tmp_path / "clip.avi").write_bytes(data[: data.index(b"movi") + 8])
    found = run(detector, tmp_path / "clip.avi", out=tmp_path / "out", code=1)
    assert files(tmp_path / "out") == {"predictions.json"}
    assert found["images"] == []
    assert capsys.readouterr().err.startswith(f"mnv2det: failed: {tmp_path / 'clip.avi'}: ")


class Bar:
    """Stands in for tqdm and notes what it was told."""

    made: ClassVar[list[Bar]] = []

    def __init__(self, **options: Any) -> None:
        self.options, self.done = options, 0
        Bar.made.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        self.done += count


def test_progress_counts_pictures_and_the_frames_that_are_looked_at(
    detector: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    (tmp_path / "b.png").write_bytes(b"")
    film(tmp_path / "clip.avi", 20)
    run(detector, tmp_path, "--every", 3, out=tmp_path / "out", code=1)
    counted = [(bar.options["total"], bar.done, bar.options["unit"], bar.options["disable"]) for bar in Bar.made]
    assert counted == [(2, 2, "image", True), (7, 7, "frame", True)]
    monkeypatch.setattr(Bar, "made", [])
    monkeypatch.setattr(video_module, "_open", lambda source: Camera(5))
    run(detector, tmp_path / "clip.avi", "--no-pictures", out=tmp_path / "out")
    assert [(bar.options["total"], bar.done) for bar in Bar.made] == [(None, 5)]


class Camera:
    """An OpenCV capture without a frame count; after some frames someone presses Ctrl-C."""

    def __init__(self, frames: int, interrupt: Callable[[], None] | None = None) -> None:
        self.left, self.interrupt, self.released = frames, interrupt, False

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def get(self, key: int) -> float:
        return 30.0 if key == cv2.CAP_PROP_FPS else 0.0

    def grab(self) -> bool:
        self.left -= 1
        if self.left < 0 and self.interrupt:
            self.interrupt()
            time.sleep(0.01)
        return self.left >= 0 or self.interrupt is not None

    def retrieve(self) -> tuple[bool, NDArray[np.uint8]]:
        return True, np.zeros((48, 64, 3), np.uint8)

    def release(self) -> None:
        self.released = True


def press_ctrl_c() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.parametrize("item", ["camera:0", "clip.mp4"])
def test_ctrl_c_keeps_what_was_done(detector: str, tmp_path: Path, monkeypatch: Any, item: str, capsys: Any) -> None:
    pressed = threading.Event()

    def once() -> None:
        if not pressed.is_set():
            pressed.set()
            press_ctrl_c()

    camera = Camera(6, once)
    opened = video_module._open
    monkeypatch.setattr(
        video_module, "_open", lambda source: camera if source in (0, tmp_path / item) else opened(source)
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    name = item if item == "camera:0" else str(tmp_path / item)
    arguments = ["predict", detector, "a.png", name, "--out", "out", "--batch-size", "2", "--json", "summary.json"]
    assert main(arguments) == 130
    assert pressed.is_set()
    assert camera.released
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [entry["file_name"] for entry in found["images"][:2]] == ["a.png", name]
    assert [entry["frame"] for entry in found["images"][1:]] == list(range(len(found["images"]) - 1))
    stem = "camera0" if item == "camera:0" else "clip"
    assert files(tmp_path / "out") == {"predictions.json", "a.png", f"{stem}.mp4"}
    assert (Video(tmp_path / f"out/{stem}.mp4").count or 0) >= len(found["images"]) - 1
    assert json.loads((tmp_path / "summary.json").read_text())["stopped"] is True
    assert "interrupted; what was done is written" in capsys.readouterr().err


def test_a_camera_that_goes_away_is_a_failure(detector: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    opened = video_module._open
    monkeypatch.setattr(video_module, "_open", lambda source: Camera(3) if source == 0 else opened(source))
    found = run(detector, "camera:0", out=tmp_path / "out", code=1)
    assert [entry["file_name"] for entry in found["images"]] == ["camera:0"] * 3
    assert capsys.readouterr().err == "mnv2det: failed: camera:0: gave no more frames after 3\n"


def test_an_interrupted_folder_keeps_what_was_done(detector: str, tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(saved(scene(), "PNG"))
    film(tmp_path / "clip.avi", 2)
    stop = threading.Event()
    stop.set()
    summary = predict(detector, [str(tmp_path)], output=str(tmp_path / "out"), batch_size=4, stop=stop)
    assert (summary["images"], summary["stopped"], summary["failed"]) == (4, True, [])
    assert files(tmp_path / "out") == {"predictions.json", "0.png", "1.png", "2.png", "3.png"}


# reading ahead


def test_results_keep_their_order_and_few_are_made_in_advance() -> None:
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        time.sleep(0.002 * (number % 3))
        return number

    results = module._ahead((partial(work, number) for number in range(40)), workers=4, depth=5)
    for number, result in enumerate(results):
        assert result == number
        assert len(started) <= number + 6
    assert sorted(started) == list(range(40))


def test_reading_ahead_ends_when_nobody_asks_any_more() -> None:
    started: list[int] = []
    results = module._ahead((partial(started.append, number) for number in range(1000)), workers=1, depth=3)
    next(results)
    results.close()
    assert len(started) <= 5


def test_an_error_while_reading_ahead_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(module._ahead([lambda: 1, lambda: 1 // 0], workers=2, depth=4))
