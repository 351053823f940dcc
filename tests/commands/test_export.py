"""Exported models find what torch finds."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_models import picture, weights

from mnv2det.cli import main
from mnv2det.commands.compare import Differences, compare, unmatched
from mnv2det.commands.export import export
from mnv2det.errors import ConfigError, DataError, WeightsError
from mnv2det.graphs.int8 import kept_exact
from mnv2det.graphs.program import ExportMetadata, ExportProgram
from mnv2det.models.build import from_file
from mnv2det.models.weight_file import read_weights, save_weights
from mnv2det.runtime.base import write
from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import Detections

pytestmark = pytest.mark.export

onnx = pytest.importorskip("onnx")
SIZES = ((96, 128), (50, 70), (200, 150), (1, 1), (97, 33))
RUNTIMES = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",), ".pt2": ("torch",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


def pictures(sizes=SIZES):
    return [picture(height, width, seed) for seed, (height, width) in enumerate(sizes)]


def assert_same(differences: Differences, *, least: int) -> None:
    # where two classes are all but equal the last bits decide on a pixel
    pixels = differences.largest.pop("seg.pixels", 0.0)
    assert pixels < 5e-3
    assert differences.above(1e-3) == [], differences
    assert differences.detections >= least, "too few boxes for the comparison to mean something"


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "pad"])
@pytest.mark.parametrize("tasks", [("det",), ("seg",), ("det", "seg")], ids="+".join)
def test_a_complete_onnx_finds_what_torch_finds(folder: Path, tasks: tuple[str, ...], fit):
    source = weights(folder, *tasks, fit=fit)
    model, header = from_file(str(source))
    path = folder / f"{'_'.join(tasks)}_{fit}.onnx"
    write(model, ExportMetadata(header, "complete"), path)
    # a graph has no windows: pictures larger than an input that may not be scaled are the raw form's
    shown = pictures(SIZES if fit != "pad" else ((96, 128), (50, 70), (1, 1), (90, 33)))
    ours = Predictor(source)
    assert_same(compare(ours, Predictor(path), shown), least=20 * ("det" in tasks))
    if fit != "pad":
        assert_same(compare(ours, Predictor(path, backend="openvino"), shown), least=20 * ("det" in tasks))


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_a_graph_samples_corners_as_the_weights_say(folder: Path, fit):
    tensors, header = read_weights(weights(folder, "det", fit=fit))
    header.preprocess = dataclasses.replace(header.preprocess, sampling="corners")
    source = folder / f"corners_{fit}.safetensors"
    save_weights(source, tensors, header)
    model, header = from_file(str(source))
    assert model.preprocess.sampling == "corners"
    write(model, ExportMetadata(header, "complete"), folder / f"corners_{fit}.onnx")
    for backend in ("onnxruntime", "openvino"):
        exported = Predictor(folder / f"corners_{fit}.onnx", backend=backend)
        assert exported.preprocess.sampling == "corners"
        assert_same(compare(Predictor(source), exported, pictures()), least=20)


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
@pytest.mark.parametrize("form", ["raw", "complete"])
def test_every_format_and_form(folder: Path, suffix: str, form):
    source = weights(folder, "det", "cls")
    path = folder / f"{form}{suffix}"
    model, header = from_file(str(source))
    write(model, ExportMetadata(header, form), path)
    for backend in RUNTIMES[suffix]:
        exported = Predictor(path, backend=backend)
        assert exported.session.metadata.form == form
        assert exported.classes == {"det": ["cat", "dog"], "cls": ["one", "two", "three"]}
        assert_same(compare(Predictor(source), exported, pictures()), least=20)


def test_a_complete_classifier_sees_the_middle(folder: Path):
    source = weights(folder, "cls", fit="crop", size=(64, 64))
    model, header = from_file(str(source))
    write(model, ExportMetadata(header, "complete"), folder / "crop.onnx")
    for backend in ("onnxruntime", "openvino"):
        found = compare(Predictor(source), Predictor(folder / "crop.onnx", backend=backend), pictures())
        assert found.above(1e-4) == [], found


def test_a_raw_segmenter_takes_any_size_and_batch(folder: Path):
    source = weights(folder, "seg", fit="pad")
    model, header = from_file(str(source))
    write(model, ExportMetadata(header, "raw"), folder / "any.onnx")
    ours = Predictor(source)
    for backend in ("onnxruntime", "openvino"):
        theirs = Predictor(folder / "any.onnx", backend=backend)
        # larger than the input: windows
        assert_same(compare(ours, theirs, pictures(((96, 128), (150, 300), (40, 500)))), least=0)
        for size in ((64, 80), (200, 96)):
            inputs = np.stack([picture(*size, seed) for seed in range(3)])
            torch.testing.assert_close(theirs.run(inputs), ours.run(inputs), rtol=1e-4, atol=1e-4)


def test_a_batch_is_its_pictures(folder: Path):
    source = weights(folder, "det", "seg")
    model, header = from_file(str(source))
    for form in ("raw", "complete"):
        write(model, ExportMetadata(header, form), folder / f"batch_{form}.onnx")
        exported = Predictor(folder / f"batch_{form}.onnx")
        shown = pictures(((50, 70), (50, 70), (30, 60)))
        for one, together in zip((exported(image, threshold=0) for image in shown), exported.batch(shown), strict=True):
            torch.testing.assert_close(one["det"].boxes, together["det"].boxes, rtol=1e-4, atol=1e-3)
            assert (one["seg"].mask == together["seg"].mask).float().mean() > 0.999


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_threads_share_a_predictor(folder: Path, backend: str):
    predictor = Predictor(weights(folder, "det"), backend=backend, threads=1)
    shown = pictures(((96, 128), (50, 70), (64, 64), (120, 90)))
    alone = [predictor(image, threshold=0)["det"] for image in shown]
    found: list[list[Detections]] = [[] for _ in shown]

    def work(number: int) -> None:
        for _ in range(20):
            found[number].append(predictor(shown[number], threshold=0)["det"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(shown))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, many in zip(alone, found, strict=True):
        assert len(many) == 20
        for other in many:
            torch.testing.assert_close(
                (other.boxes, other.scores, other.labels), (one.boxes, one.scores, one.labels), rtol=0, atol=0
            )


def test_bytes_of_a_file_are_a_picture(folder: Path):
    predictor = Predictor(weights(folder, "det"))
    image = picture(50, 70)
    data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    torch.testing.assert_close(
        predictor(data, threshold=0)["det"].scores, predictor(image, threshold=0)["det"].scores, rtol=0, atol=0
    )
    with pytest.raises(DataError, match="picture of 3 bytes: not an image"):
        predictor(b"abc")
    with pytest.raises(DataError, match="expected a path, bytes, a picture of Pillow's, an array or a tensor, got int"):
        predictor(7)  # type: ignore[arg-type]


def test_an_export_is_checked_and_says_so(folder: Path, tmp_path: Path):
    source = weights(folder, "det")
    for number, image in enumerate(pictures()):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    (tmp_path / "5.jpg").write_bytes(b"no picture")
    done = export(source, tmp_path / "new" / "m.onnx", images=tmp_path)
    assert done["pictures"] == 5
    assert done["detections"] > 20
    assert done["differences"]["det.unmatched"] == 0
    assert done["differences"]["det.score"] < 1e-3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.onnx"]
    assert done["bytes"] == (tmp_path / "new" / "m.onnx").stat().st_size


def unreadable(folder: Path) -> Path:
    """A folder whose pictures are all broken."""
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(b"no picture")
    return folder


def test_without_a_picture_to_compare_on_nothing_is_written(folder: Path, tmp_path: Path):
    source, broken = weights(folder, "det"), unreadable(tmp_path / "broken")
    with pytest.raises(DataError, match=r"broken: not one picture can be read; left out: .*\.jpg"):
        export(source, tmp_path / "out" / "m.onnx", images=broken)
    with pytest.raises(ConfigError, match="count: expected at least 1 picture to compare on, got 0"):
        export(source, tmp_path / "out" / "m.onnx", count=0)
    with pytest.raises(DataError, match="no picture to compare on"):
        compare(Predictor(source), Predictor(source), [])
    assert not (tmp_path / "out").exists()


def test_without_a_picture_to_calibrate_on_nothing_is_written(folder: Path, tmp_path: Path):
    source, broken = weights(folder, "det"), unreadable(tmp_path / "broken")
    cv2.imwrite(str(tmp_path / "a.png"), picture(50, 70))
    for options, message in (
        ({"calibrate": broken}, r"broken: not one picture can be read"),
        ({"calibrate": tmp_path, "calibration": 0}, r"calibration: expected at least 1 picture, got 0"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            export(source, tmp_path / "out" / "m.onnx", int8=True, images=tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_without_a_picture_to_measure_on_nothing_is_written(folder: Path, root: Path, tmp_path: Path):
    for name in ("one", "two", "three"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "a.jpg").write_bytes(b"no picture")
    overrides = [f"data.root={tmp_path}", "data.val.args.images=data", "data.bad_data=skip", "model.weights=null"]
    labelled = (str(root / "configs/mobilenetv2_patches.yaml"), overrides)
    with pytest.raises(DataError, match=r"mobilenetv2_patches\.yaml: data\.val: not one picture can be read"):
        export(weights(folder, "cls"), tmp_path / "m.onnx", form="raw", count=1, labelled=labelled)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_every_kind_of_export_has_its_own_default_name(folder: Path, tmp_path: Path):
    source = tmp_path / "best.safetensors"
    source.write_bytes(weights(folder, "cls").read_bytes())
    for arguments in ([], ["--splits", "3"], ["--format", "torch"]):
        assert main(["export", str(source), "--form", "raw", "--count", "1", *arguments]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best-splits3.onnx",
        "best.onnx",
        "best.pt2",
        "best.safetensors",
    ]


def test_an_export_that_differs_is_not_written(folder: Path, tmp_path: Path):
    with pytest.raises(WeightsError, match=r"m\.onnx: not written, it differs from torch: det\.score .*tolerance -1"):
        export(str(weights(folder, "det")), str(tmp_path / "m.onnx"), tolerance=-1)
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_this_machine_is_in_the_file(folder: Path):
    model, header = from_file(str(weights(folder, "det", "seg")))
    proto = ExportProgram(model, ExportMetadata(header, "complete")).onnx
    data = proto.SerializeToString()
    for secret in (str(Path.cwd()), str(Path(torch.__file__).parent), "site-packages"):
        assert secret.encode() not in data
    assert [size.dim_param for size in proto.graph.input[0].type.tensor_type.shape.dim][:3] == [
        "batch",
        "height",
        "width",
    ]
    onnx.checker.check_model(proto)


def test_int8_keeps_the_ends_and_runs_everywhere(folder: Path, tmp_path: Path):
    source = weights(folder, "det")
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture(96, 128, number))
    sizes = {}
    for name in ("fp32.onnx", "int8.onnx", "int8.xml"):
        given = {"int8": True, "calibrate": str(tmp_path)} if name.startswith("int8") else {}
        sizes[name] = export(str(source), str(tmp_path / name), form="raw", images=str(tmp_path), **given)["bytes"]
    assert sizes["int8.onnx"] < 0.6 * sizes["fp32.onnx"]
    shown = np.stack([picture(96, 128, number) for number in range(4)])
    logits = Predictor(source).run(shown)["det.logits"].flatten()
    for name, backend in (("int8.onnx", "onnxruntime"), ("int8.onnx", "openvino"), ("int8.xml", "openvino")):
        small = Predictor(tmp_path / name, backend=backend)
        assert small.precision == "int8"
        assert small.session.metadata.precision == "int8"
        assert len(small(shown[0])["det"].scores) > 0
        other = small.run(shown)["det.logits"].flatten()
        assert torch.corrcoef(torch.stack([logits, other]))[0, 1] > 0.9
        assert (logits - other).abs().max() > 1e-3, "nothing was rounded"
    nodes = onnx.load(str(tmp_path / "int8.onnx")).graph.node
    made_by = {name: node for node in nodes for name in node.output}
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert len(convolutions) > 60
    assert all(made_by[name].op_type == "DequantizeLinear" for node in convolutions for name in node.input[:2])
    # a convolution's result is not rounded before it is clipped: ReLU6 became part of the rounding behind it
    assert not any(node.op_type == "Clip" for node in nodes)


def test_what_is_kept_exact_comes_first_or_last():
    from onnx import helper

    nodes = [
        helper.make_node("Clip", ["places"], ["inside"], name="before"),
        helper.make_node("Gather", ["image", "inside"], ["input"], name="resize"),
        helper.make_node("Conv", ["input", "w"], ["a"], name="first"),
        helper.make_node("Clip", ["a"], ["b"], name="relu6"),
        helper.make_node("Conv", ["b", "w"], ["c"], name="middle"),
        helper.make_node("Add", ["b", "c"], ["d"], name="shortcut"),
        helper.make_node("Conv", ["d", "w"], ["e"], name="last one"),
        helper.make_node("Conv", ["c", "w"], ["f"], name="other last one"),
        helper.make_node("Clip", ["f"], ["g"], name="its relu6"),
        helper.make_node("Add", ["e", "g"], ["h"], name="behind"),
        helper.make_node("Clip", ["h"], ["i"], name="decoding"),
    ]
    proto = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert kept_exact(proto) == {"before", "resize", "behind", "decoding"}


def test_thresholds_go_into_the_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = weights(folder, "det")
    arguments = ["export", str(source), "-o", str(tmp_path / "few.onnx"), "--max-detections", "3", "--json"]
    assert main([*arguments, str(tmp_path / "e.json")]) == 0
    assert "largest difference to torch on 8 pictures" in capsys.readouterr().out
    few = Predictor(tmp_path / "few.onnx")
    assert len(few(picture(96, 128))["det"].scores) == 3
    assert few.header.heads["det"]["args"]["max_detections"] == 3
    assert json.loads((tmp_path / "e.json").read_text())["precision"] == "fp32"
    with pytest.raises(ConfigError, match="a complete export holds its thresholds"):
        Predictor(tmp_path / "few.onnx", heads={"det": {"max_detections": 4}})


@pytest.mark.parametrize("form", ["raw", "complete"])
def test_a_split_export_is_checked_like_any(folder: Path, tmp_path: Path, form: str):
    source = weights(folder, "det", "seg")
    out = tmp_path / "parts.onnx"
    assert main(["export", str(source), "-o", str(out), "--form", form, "--splits", "3", "--count", "2"]) == 0
    convolutions = [node for node in onnx.load(out).graph.node if node.op_type == "Conv"]
    whole = tmp_path / "whole.onnx"
    assert main(["export", str(source), "-o", str(whole), "--form", form, "--count", "2"]) == 0
    # 15 of the 17 bottlenecks: the first has no expansion, the fourteenth's is read by the detector
    assert len(convolutions) > len([node for node in onnx.load(whole).graph.node if node.op_type == "Conv"]) + 15 * 3


MISTAKES = [
    (
        ["m.safetensors", "-o", "m.mlmodel"],
        r"m\.mlmodel: expected a name that ends in \.tflite or \.param or \.onnx or \.xml or \.pt2",
    ),
    (["m.safetensors", "-o", "m.pt2", "--format", "onnx"], r"m\.pt2: ends in \.pt2, which is torch"),
    (["m.safetensors", "--int8"], r"m\.safetensors is no run folder .* name pictures with --calibrate FOLDER"),
    (["m.safetensors", "--calibrate", "x"], r"--calibrate FOLDER is for --int8"),
    (
        ["m.safetensors", "--int8", "--calibrate", "x", "--format", "torch"],
        r"--int8: written as \.tflite or \.onnx or \.xml",
    ),
    (["m.safetensors", "--images", "nowhere"], r"nowhere: no such folder"),
    (["m.safetensors", "--count", "0"], r"--count must be at least 1"),
    (["m.safetensors", "data.root=x"], r"data\.root=x: overrides are for the config of --accuracy"),
    (["m.safetensors", "--splits", "0"], r"splits: expected at least 1, got 0"),
    (["m.safetensors", "--splits", "2", "--int8", "--calibrate", "x"], r"--splits: .* not with --int8"),
    (["nothing.safetensors"], r"nothing\.safetensors: no such weight file"),
    (["m.safetensors", "--accuracy", "nothing.yaml"], r"nothing\.yaml: no such config"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistakes_are_one_line(
    folder: Path,
    tmp_path: Path,
    arguments,
    message,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "m.safetensors").write_bytes(weights(folder, "det").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    import re

    assert re.search(message, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_damaged_and_foreign_files_are_one_line(folder: Path, tmp_path: Path):
    for suffix in (".onnx", ".xml", ".pt2"):
        path = tmp_path / f"bad{suffix}"
        with pytest.raises(WeightsError, match="no such exported model"):
            Predictor(path)
        for data in (b"", b"junk" * 100):
            path.write_bytes(data)
            with pytest.raises(WeightsError, match=rf"bad\{suffix}: .*") as raised:
                Predictor(path)
            assert "\n" not in str(raised.value)
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1])
    foreign = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["image"], ["y"])],
            "g",
            [value],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(foreign, tmp_path / "foreign.onnx")
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(WeightsError, match="not exported by mnv2det"):
            Predictor(tmp_path / "foreign.onnx", backend=backend)


def test_what_a_backend_has_not_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch):
    source = weights(folder, "det")
    for arguments, message in (
        ({"backend": "openvinos"}, "backend 'openvinos'; did you mean 'openvino'"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "onnxruntime has no bf16"),
        ({"precision": "fp16"}, "precision 'fp16': expected fp32 or bf16"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Predictor(source, **arguments)  # type: ignore[arg-type]
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime is not installed .*pip install 'mnv2det\["):
        Predictor(source, backend="onnxruntime")


def test_partners_of_boxes():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    ours = Detections(boxes, torch.tensor([0.9, 0.5]), torch.tensor([0, 1]))
    theirs = Detections(boxes[[1, 0]], torch.tensor([0.9, 0.4]), torch.tensor([0, 0]))
    apart, needed = unmatched(ours, theirs, full=100, near=1e-3)
    torch.testing.assert_close(apart, torch.tensor([0.5, torch.inf]))
    assert needed.tolist() == [True, True]
    assert unmatched(ours, theirs, full=2, near=1e-3)[1].tolist() == [True, False]
    # where two boxes have no area, overlap and union are both zero
    flat = Detections(torch.tensor([[5.0, 5, 5, 9]]), torch.tensor([0.9]), torch.tensor([0]))
    other = Detections(torch.tensor([[70.0, 5, 70, 9]]), torch.tensor([0.9]), torch.tensor([0]))
    assert unmatched(flat, other, full=9, near=0)[0].isinf().all()
    assert unmatched(flat, flat, full=9, near=0)[0].tolist() == [0.0]
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert unmatched(ours, empty, full=9, near=0)[0].isinf().all()
    assert unmatched(empty, ours, full=9, near=0)[0].shape == (0,)
    assert Differences(largest={"a": float("nan"), "b": 0.0}).above(1) == ["a"]
