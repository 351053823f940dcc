"""The benchmark's table."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from small_models import picture, weights

from mnv2det.cli import main
from mnv2det.commands import bench as benchmark
from mnv2det.commands.bench import PARTS, Row, bench, time_parts
from mnv2det.errors import ConfigError, DataError, WeightsError
from mnv2det.runtime.predictor import Predictor

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("bench"), "det", size=(64, 64))


def test_parts_are_timed(source: Path):
    encoded = [cv2.imencode(".jpg", picture(50, 70))[1].tobytes()]
    found = time_parts(Predictor(source), encoded, 3, warm_up=1)
    assert list(found) == list(PARTS)
    assert all(len(times) == 3 and min(times) >= 0 for times in found.values())
    assert sum(map(sum, found.values())) > 0


def test_medians_are_of_whole_predictions():
    row = Row("torch", "fp32", Path("x"))
    row.seconds = {part: [0.001, 0.003, 0.002] for part in PARTS}
    found = row.summary()
    assert found["median_ms"] == pytest.approx(8)
    assert found["p90_ms"] == pytest.approx(8 + 0.8 * 4)
    assert found["network_ms"] == pytest.approx(2)
    assert found["predictions"] == 3


def test_nothing_is_timed_while_another_row_loads(source: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    ask = benchmark._ask
    monkeypatch.setattr(benchmark, "_ask", lambda child, *question: asked.append(question[0]) or ask(child, *question))
    bench(str(source), precisions=["fp32"], backends=["torch", "onnxruntime"], rounds=1, repeats=1, threads=1)
    assert asked == ["load", "load", "time", "time"]


def test_a_table_of_backends_and_precisions(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture(64, 64, number))
    arguments = ["bench", str(source), "--images", str(tmp_path), "--calibrate", str(tmp_path)]
    arguments += ["--precisions", "fp32,int8", "--backends", "torch,onnxruntime", "--rounds", "2", "--repeats", "3"]
    arguments += ["--size", "48", "60", "--threads", "1", "--json", str(tmp_path / "b.json")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "b.json").read_text())
    rows = {(row["backend"], row["precision"]): row for row in found["rows"]}
    assert list(rows) == [("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")]
    for row in rows.values():
        assert row["predictions"] == 6
        assert 0 < row["network_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert row["memory_bytes"] > 1e5
    assert rows["onnxruntime", "int8"]["file_bytes"] < 0.6 * rows["onnxruntime", "fp32"]["file_bytes"]
    assert "onnxruntime  int8" in out
    assert "1 threads; 3 pictures of 48x60" in out


def test_mistakes_are_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError, match=r"backend 'onnx': .* is run by torch, onnxruntime, openvino"):
        bench(str(source), backends=["onnx"])
    with pytest.raises(ConfigError, match="precisions: no 'fp64'"):
        bench(str(source), precisions=["fp64"])
    with pytest.raises(DataError, match="no such folder"):
        bench(str(source), images=str(tmp_path / "no"))
    with pytest.raises(WeightsError, match="no such weight file"):
        bench(str(tmp_path / "no.safetensors"))
    with pytest.raises(ConfigError, match="nothing to time"):
        bench(str(source), backends=["onnxruntime"], precisions=["bf16"])
    # found out in the measuring process
    with pytest.raises(ConfigError, match="threads: expected at least 1"):
        bench(str(source), backends=["torch"], precisions=["fp32"], threads=0, rounds=1, repeats=1)
    assert main(["bench", str(source), "--rounds", "0"]) == 2
    assert "--rounds, --repeats and --size must be at least 1" in capsys.readouterr().err
