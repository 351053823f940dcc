"""The JSON beside files that have no room for metadata."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import weights
from torch.testing import assert_close

from mnv2det.cli import main
from mnv2det.errors import WeightsError
from mnv2det.graphs.litert import merge
from mnv2det.graphs.program import ExportMetadata, ExportProgram
from mnv2det.graphs.sidecar import read_sidecar, write_sidecar
from mnv2det.models.build import from_file
from mnv2det.models.layers import Padding, subsample
from mnv2det.ops.boxes import decode
from mnv2det.runtime.base import is_export
from mnv2det.runtime.ncnn_runtime import _name_blobs


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("weights"), "det", "seg")


@pytest.fixture
def program(source: Path) -> ExportProgram:
    model, header = from_file(str(source))
    return ExportProgram(model, ExportMetadata(header, "raw")).halve()


@pytest.fixture
def files(program: ExportProgram, tmp_path: Path) -> list[Path]:
    """Something that was exported, with its JSON."""
    written = [tmp_path / "m.ncnn.param", tmp_path / "m.ncnn.bin"]
    for number, file in enumerate(written):
        file.write_bytes(bytes([number]) * 9)
    write_sidecar(program, written, {"image": {"layout": "CHW"}}, {"det.logits": (40, 2)})
    return written


def test_what_is_written_is_read(program: ExportProgram, files: list[Path]) -> None:
    metadata, facts = read_sidecar(files[0], files)
    assert metadata == program.metadata
    assert metadata.precision == "fp16"
    assert facts["outputs"] == {"det.logits": (40, 2)}
    assert facts["inputs"] == {"image": {"layout": "CHW"}}


def test_it_says_how_boxes_are_decoded(program: ExportProgram, files: list[Path]) -> None:
    ((name, told),) = json.loads(files[0].with_name("m.ncnn.param.json").read_text())["detectors"].items()
    head = program.model.heads["det"]
    assert (name, told["logits"], told["codes"], told["scores"]) == ("det", "det.logits", "det.codes", "sigmoid")
    assert (told["score_threshold"], told["nms_iou"]) == (0.3, 0.5)
    # the formula of docs/deploy.md
    codes, anchors = torch.randn(len(told["anchors"]), 4), torch.tensor(told["anchors"])
    size = anchors[:, 2:] - anchors[:, :2]
    center = (anchors[:, :2] + anchors[:, 2:]) / 2 + codes[:, :2] / told["center_scale"] * size
    half = (codes[:, 2:] / told["size_scale"]).exp() * size / 2
    wanted = decode(codes, head.constants((96, 128))["anchors"])
    assert_close(torch.cat([center - half, center + half], dim=1), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f["json"].unlink(), "m.ncnn.param.json must lie beside it"),
        (lambda f: f["bin"].unlink(), "m.ncnn.bin must lie beside it"),
        (lambda f: f["bin"].write_bytes(b"x"), "m.ncnn.bin: damaged, or of another export than m.ncnn.param.json"),
        (lambda f: f["json"].write_bytes(b"{"), "m.ncnn.param.json: not written by mnv2det, or damaged"),
        (lambda f: f["json"].write_text("[]"), "m.ncnn.param.json: not written by mnv2det, or damaged"),
        (lambda f: f["json"].write_text('{"outputs": 3}'), "m.ncnn.param.json: not written by mnv2det, or damaged"),
    ],
)
def test_damage_is_one_line(files: list[Path], damage, message: str) -> None:
    damage({"json": files[0].with_name("m.ncnn.param.json"), "bin": files[1]})
    with pytest.raises(WeightsError) as error:
        read_sidecar(files[0], files)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_published_ncnn_file_is_no_export_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.param").write_text("7767517\n")
    (tmp_path / "a.bin").write_bytes(b"")
    assert is_export(tmp_path / "a.param")
    assert main(["predict", str(tmp_path / "a.param"), str(tmp_path)]) == 2
    assert "a.param.json must lie beside it, as mnv2det exports it; it is missing" in capsys.readouterr().err


def test_blobs_get_our_names_and_settings_are_kept() -> None:
    graph = "7767517\n3 4\nInput in0 0 1 in0\nSplit out0 1 2 in0 out1 2\nClip c 1 1 2 out0 0=0.0 1=out0\n"
    named = _name_blobs(graph, ["det.logits", "det.codes"]).splitlines()
    assert [line.split() for line in named[2:]] == [
        ["Input", "in0", "0", "1", "image"],
        ["Split", "out0", "1", "2", "image", "det.codes", "2"],
        ["Clip", "c", "1", "1", "2", "det.logits", "0=0.0", "1=out0"],
    ]


@pytest.mark.parametrize("pad", ["same", "symmetric"])
@pytest.mark.parametrize("size", [(8, 7), (5, 1)])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_keeps_every_second_position_as_the_model_does(pad: Padding, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    traced = torch.jit.trace(lambda value: subsample(value, 4, pad), (x,))
    assert "slice" not in str(traced.graph) or "max_pool2d" in str(traced.graph)
    assert_close(traced(x), subsample(x, 4, pad), rtol=0, atol=0)


def test_a_network_of_planes_is_that_of_pixels(program: ExportProgram) -> None:
    module, pixels = program.module(), torch.randint(0, 256, (1, 96, 128, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert_close(module.of_planes(pixels.permute(0, 3, 1, 2).float()), module(pixels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "ncnn", "--form", "complete"], "--form complete: the format ncnn has raw files only"),
        (["--fp16"], "--fp16: written as .tflite or .param, not .onnx"),
        (["--format", "ncnn", "--int8", "--calibrate", "x"], "--int8: written as .tflite or .onnx or .xml, not .param"),
        (["--format", "ncnn"], "pnnx is not installed"),
        (["--format", "litert"], "litert_torch is not installed"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    for package in ("pnnx", "litert_torch"):
        monkeypatch.setitem(sys.modules, package, None)
    suffixes = {"ncnn": "ncnn.param", "litert": "tflite"}
    name = arguments[1] if arguments[0] == "--format" else "onnx"
    path = tmp_path / f"m.{suffixes.get(name, name)}"
    assert main(["export", str(source), "-o", str(path), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert "not installed" not in message or f"pip install 'mnv2det[{name}]'" in error
    assert list(tmp_path.iterdir()) == []


def test_ranges_of_several_pictures_are_their_extremes() -> None:
    ranges: dict[str, dict[str, np.ndarray]] = {}
    for low, high in ((-1.0, 2.0), (-3.0, 1.0), (0.0, 9.0)):
        merge(ranges, {"a": {"min": np.array([low]), "max": np.array([high])}, "weights": {}})
    assert (float(ranges["a"]["min"][0]), float(ranges["a"]["max"][0])) == (-3, 9)
    assert ranges["weights"] == {}
