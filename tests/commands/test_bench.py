"""The benchmark's table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from small_models import picture, weights

from mnv2det.cli import main
from mnv2det.commands import bench as benchmark
from mnv2det.commands import measure
from mnv2det.commands.bench import bench, make_rows, ways_to_run
from mnv2det.commands.measure import PARTS, Row, Settings, open_row, time_parts
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
    ask = benchmark.ask
    monkeypatch.setattr(benchmark, "ask", lambda child, *question: asked.append(question[0]) or ask(child, *question))
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


def test_without_a_picture_nothing_is_timed(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    assert main(["bench", str(source), "--images", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert f"{tmp_path}: not one picture can be read; left out: {tmp_path}/a.jpg" in error
    assert "\n" not in error


def test_memory_is_unknown_where_the_system_does_not_tell(root: Path):
    assert measure.peak_memory() > 1e6
    # as on Windows
    code = """if True:
        import pathlib, sys
        sys.modules["resource"] = None
        from mnv2det.commands.bench import bench
        from mnv2det.commands.measure import peak_memory
        def no_file(*args, **options): raise FileNotFoundError
        pathlib.Path.read_text = no_file
        assert peak_memory() is None
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_thresholds_hold_for_every_row(source: Path, tmp_path: Path):
    heads = {"det": {"max_detections": 2}}
    settings = Settings(threads=1, heads=heads, memory_budget=None, modules=[])
    ways = ways_to_run(source, ["torch", "onnxruntime"], ["fp32"], int8=False)
    for row in make_rows(source, tmp_path, ways, settings, lambda: iter(())):
        assert len(open_row(row, settings)(picture(64, 64))["det"].scores) == 2


def test_components_that_a_measuring_process_cannot_import_are_one_line(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benchmark, "component_modules", lambda: ["no_such_module"])
    with pytest.raises(ConfigError, match=r"no_such_module: it registers components, but bench cannot import it"):
        bench(source, backends=["torch"], precisions=["fp32"], rounds=1, repeats=1)


def test_mistakes_are_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError, match=r"backend 'onnx': .* is run by litert, ncnn, onnxruntime, openvino, torch"):
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
