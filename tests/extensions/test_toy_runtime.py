"""A runtime that one module outside the package registers takes part in everything."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import torch
from small_models import picture, weights

from mnv2det.cli import main
from mnv2det.errors import ConfigError, WeightsError
from mnv2det.registry import RUNTIMES
from mnv2det.runtime.predictor import Predictor

pytestmark = [pytest.mark.export, pytest.mark.process]


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    """Registers the runtime for the tests of this file alone: others count the runtimes."""
    importlib.import_module("extensions.toy_runtime")
    yield
    RUNTIMES._components.pop("toy")
    del sys.modules["extensions.toy_runtime"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("toy"), "det", size=(64, 64))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), picture(60, 80, number))
    return folder


@pytest.fixture(scope="module")
def exported(source: Path, pictures: Path) -> Path:
    """What ``export --format`` writes beside the weights, checked against torch."""
    arguments = ["export", str(source), "--format", "toyscript", "--form", "raw", "--images", str(pictures)]
    summary = source.parent / "summary.json"
    assert main([*arguments, "--json", str(summary)]) == 0
    path = source.with_suffix(".toy")
    assert json.loads(summary.read_text())["bytes"] == path.stat().st_size
    return path


def test_an_exported_file_and_weights_give_what_torch_gives(source: Path, exported: Path):
    shown = [picture(60, 80, number) for number in range(3)]
    wanted = Predictor(source, backend="torch", device="cpu").batch(shown)
    assert all(len(results["det"].scores) for results in wanted)
    for predictor in (Predictor(exported), Predictor(source, backend="toy")):
        assert type(predictor.session).__name__ == "ToySession"
        for results, expected in zip(predictor.batch(shown), wanted, strict=True):
            torch.testing.assert_close(results["det"].labels, expected["det"].labels)
            torch.testing.assert_close(results["det"].boxes, expected["det"].boxes, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(results["det"].scores, expected["det"].scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("of", ["weights", "export"])
def test_the_command_line_predicts_with_it(source: Path, exported: Path, pictures: Path, tmp_path: Path, of: str):
    arguments = ["predict", str(source if of == "weights" else exported), str(pictures), "--backend", "toy"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "predictions.json").read_text())


def test_bench_times_it_in_a_process_of_its_own(source: Path, exported: Path, pictures: Path, tmp_path: Path):
    arguments = ["--images", str(pictures), "--backends", "toy", "--rounds", "1", "--repeats", "2", "--threads", "1"]
    for model in (source, exported):
        assert main(["bench", str(model), *arguments, "--json", str(tmp_path / "b.json")]) == 0
        rows = json.loads((tmp_path / "b.json").read_text())["rows"]
        assert [(row["backend"], row["precision"], row["predictions"]) for row in rows] == [("toy", "fp32", 2)]
        assert rows[0]["file_bytes"] == pytest.approx(exported.stat().st_size, rel=0.01)


def test_choices_and_messages_know_it(source: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError, match=r"backend 'toys'; did you mean 'toy'\?"):
        Predictor(source, backend="toys")
    with pytest.raises(ConfigError, match=r"backend 'onnxruntime' does not read .*\.toy; toy does"):
        Predictor(exported, backend="onnxruntime")
    with pytest.raises(ConfigError, match="toy has no bf16; use openvino or torch"):
        Predictor(exported, precision="bf16")
    (tmp_path / "bad.toy").write_bytes(b"junk" * 9)
    with pytest.raises(WeightsError, match=r"bad\.toy: no TorchScript"):
        Predictor(tmp_path / "bad.toy")
    for arguments, message in (
        (["-o", "m.mlmodel"], r"ends in \.tflite or \.param or \.onnx or \.xml or (\.pt2 or \.toy|\.toy or \.pt2)"),
        (["-o", "m.toy", "--format", "onnx"], r"m\.toy: ends in \.toy, which is toyscript"),
        (["--format", "toyscrip"], "format 'toyscrip'; did you mean 'toyscript'"),
        (
            ["--format", "toyscript", "--int8", "--calibrate", "x"],
            r"--int8: written as \.tflite or \.onnx or \.xml, not \.toy",
        ),
        (["--format", "toyscript"], "toyscript has no complete export; use --form raw"),
    ):
        assert main(["export", str(source), *arguments]) == 2
        assert re.search(message, capsys.readouterr().err)
