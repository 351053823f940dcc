"""Files for ncnn and LiteRT, which phones run. `make test-export` installs what writing them needs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_models import picture, weights
from torch.testing import assert_close

from mnv2det.cli import main
from mnv2det.commands.compare import compare
from mnv2det.registry import RUNTIMES
from mnv2det.runtime.predictor import Predictor

SUFFIX = {"ncnn": ".ncnn.param", "litert": ".tflite"}
SIZES = ((96, 128), (50, 70), (200, 150), (97, 33))

pytestmark = [pytest.mark.export, pytest.mark.export_heavy]


@pytest.fixture(scope="module", params=list(SUFFIX))
def name(request: pytest.FixtureRequest) -> str:
    """Of a format, whose packages are installed."""
    runtime = RUNTIMES.get(request.param)(request.param)
    for package in (runtime.library, runtime.converter):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: exports to {request.param} were NOT checked; make test-export")
    return request.param


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        cv2.imwrite(str(folder / f"{number}.png"), picture(*size, number))
    return folder


@pytest.fixture(scope="module")
def source(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint model with a head of each kind: a conversion takes half a minute and more."""
    return weights(tmp_path_factory.mktemp("weights"), "det", "seg", "cls")


@pytest.fixture(scope="module")
def exported(name: str, source: Path, photos: Path) -> Path:
    """What one command writes beside the weights."""
    assert main(["export", str(source), "--format", name, "--images", str(photos)]) == 0
    return source.with_name(source.stem + SUFFIX[name])


def test_a_file_computes_what_torch_computes(source: Path, exported: Path) -> None:
    ours, theirs = Predictor(source), Predictor(exported)
    assert theirs.classes == ours.classes
    inputs = np.stack([picture(96, 128, seed) for seed in range(2)])
    wanted, found = ours.run(inputs), theirs.run(inputs)
    assert list(found) == list(wanted)
    for name in wanted:
        assert_close(found[name], wanted[name], rtol=0, atol=5e-4)
    same = compare(ours, theirs, [picture(*size, seed) for seed, size in enumerate(SIZES)])
    assert same.largest.pop("seg.pixels", 0.0) < 5e-3
    assert same.above(1e-3) == []


def test_weights_of_half_the_size_find_nearly_the_same(name: str, source: Path, exported: Path, photos: Path) -> None:
    path = source.with_name(f"{source.stem}-fp16{SUFFIX[name]}")
    assert main(["export", str(source), "--format", name, "--fp16", "--images", str(photos)]) == 0
    runtime = RUNTIMES.get(name)(name)
    half, whole = (max(file.stat().st_size for file in runtime.files(each)) for each in (path, exported))
    assert half < 0.6 * whole
    predictor, inputs = Predictor(path), picture(96, 128)[None]
    assert predictor.session.metadata.precision == "fp16"
    for output, value in Predictor(source).run(inputs).items():
        assert isinstance(value, torch.Tensor)
        assert_close(predictor.run(inputs)[output], value, rtol=0, atol=0.02 * float(value.abs().max()))


def test_int8_finds_nearly_the_same(name: str, source: Path, exported: Path, photos: Path) -> None:
    if not RUNTIMES.get(name).int8:
        pytest.skip(f"{name} files have no int8")
    path = source.with_name(f"{source.stem}-int8{SUFFIX[name]}")
    arguments = ["--int8", "--calibrate", str(photos), "--images", str(photos)]
    assert main(["export", str(source), "--format", name, *arguments]) == 0
    assert path.stat().st_size < 0.5 * exported.stat().st_size
    predictor, inputs = Predictor(path), picture(96, 128, 1)[None]
    assert predictor.precision == "int8"
    for output, value in Predictor(source).run(inputs).items():
        assert isinstance(value, torch.Tensor)
        found = predictor.run(inputs)[output]
        assert torch.corrcoef(torch.stack([found.flatten(), value.flatten()]))[0, 1] > 0.9


def test_the_command_line_predicts_and_times(name: str, exported: Path, photos: Path, tmp_path: Path) -> None:
    assert main(["predict", str(exported), str(photos), "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "predictions.json").read_text())
    timed = ["--images", str(photos), "--rounds", "1", "--repeats", "2", "--threads", "1"]
    assert main(["bench", str(exported), *timed, "--json", str(tmp_path / "b.json")]) == 0
    (row,) = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert (row["backend"], row["precision"]) == (name, "fp32")
    assert row["file_bytes"] > exported.stat().st_size


def test_a_damaged_file_is_one_line(
    exported: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in exported.parent.glob(f"{exported.name.split('.')[0]}*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = tmp_path / exported.name
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert main(["predict", str(damaged), str(photos), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"{damaged}: damaged, or of another export than {damaged.name}.json\n")
    assert error.count("\n") == 1


def test_only_pictures_of_the_inputs_size_are_taken(exported: Path) -> None:
    header = json.loads(exported.with_name(f"{exported.name}.json").read_text())
    (taken,) = header["inputs"].values()
    assert taken["shape"] == ([96, 128, 3] if taken["layout"] == "HWC" else [3, 96, 128])
    assert not Predictor(exported).session.any_size
