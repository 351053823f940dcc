"""What version 0.1 wrote still loads, predicts, goes on training and is measured.

tests/files/version_0_1 is the run folder of a tiny model after 4 steps, its two ONNX exports, and what that version
predicted for ``small_models.picture(96, 80, 3)``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import picture

from mnv2det.cli import main
from mnv2det.engine.checkpoint import load_checkpoint
from mnv2det.errors import ConfigError
from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import Detections, Segmentation

OLD = Path(__file__).parent / "files" / "version_0_1"
KEPT = json.loads((OLD / "predictions.json").read_text())
PIXELS = 4  # of 7680 at the border of two classes that may fall to the other one on another processor


def assert_predictions_are_those_kept(detections: Detections, segmentation: Segmentation) -> None:
    """Every box that version 0.1 kept is there, whatever the order: some scores differ by 1e-6 of their size only."""
    assert len(detections.boxes) > len(KEPT["boxes"])
    for box, score, label in zip(KEPT["boxes"], KEPT["scores"], KEPT["labels"], strict=True):
        distances = (detections.boxes - torch.tensor(box)).abs().amax(dim=1)
        nearest = int(distances.argmin())
        assert distances[nearest] < 96 * 1e-4  # the picture is 96 high
        assert float(detections.scores[nearest]) == pytest.approx(score, rel=1e-4)
        assert detections.labels[nearest] == label
    counts = torch.bincount(segmentation.mask.flatten().long(), minlength=6).tolist()
    assert sum(counts) == 96 * 80
    for class_id, count in enumerate(counts):
        assert abs(count - KEPT["mask_counts"].get(str(class_id), 0)) <= PIXELS, f"class {class_id}"


@pytest.mark.parametrize(
    ("file", "backend"),
    [
        ("best.safetensors", "torch"),
        ("raw.onnx", "onnxruntime"),
        ("raw.onnx", "openvino"),
        ("complete.onnx", "onnxruntime"),
        ("complete.onnx", "openvino"),
    ],
)
def test_files_of_version_0_1_predict_what_they_did(file: str, backend: str) -> None:
    # a complete export holds its thresholds; more boxes than were kept, since the last ones may change places
    heads: dict[str, Any] = {"det": {"score_threshold": 0.0, "max_detections": 30}}
    predictor = Predictor(OLD / file, backend=backend, device="cpu", heads=None if file == "complete.onnx" else heads)
    found = predictor(picture(96, 80, 3), threshold=0)
    detections, segmentation = found["det"], found["seg"]
    assert isinstance(detections, Detections)
    assert isinstance(segmentation, Segmentation)
    assert_predictions_are_those_kept(detections, segmentation)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run folder, without what training does not write."""
    names = ("config.yaml", "best.safetensors", "last.pt", "metrics.jsonl")
    (tmp_path / "run").mkdir()
    for name in names:
        shutil.copy(OLD / name, tmp_path / "run" / name)
    return tmp_path / "run"


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.training
def test_a_run_of_version_0_1_goes_on_where_it_stopped(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(run), "train.steps=8"]) == ConfigError.exit_code
    assert "train.steps (4 -> 8)" in capsys.readouterr().err
    # a learning rate of almost nothing, so that the weights stay those that were taken over
    more = ["train.steps=8", "train.log_every=1", "optim.optimizer.args.lr=1e-12", "--allow-changes"]
    assert main(["train", "--resume", str(run), *more]) == 0
    assert [record["step"] for record in records(run, "train")] == [4, 5, 6, 7, 8]
    before, after = load_checkpoint(OLD / "last.pt"), load_checkpoint(run / "last.pt")
    assert before["model"].keys() == after["model"].keys()
    for name, value in before["model"].items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(after["model"][name], value, rtol=1e-6, atol=1e-6)
    for state, moments in ((before, 4), (after, 8)):
        assert {int(parameter["step"]) for parameter in state["optimizer"]["state"].values()} == {moments}


@pytest.mark.training
def test_a_run_of_version_0_1_is_measured_as_it_was(run: Path, tmp_path: Path) -> None:
    assert main(["eval", str(run), "--json", str(tmp_path / "metrics.json")]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    (kept,) = records(run, "eval")
    assert metrics.keys() == kept.keys() - {"kind", "step", "seconds", "eval_seconds"}
    # of 16384 pixels a few at borders, of 25 boxes the order of some that are nearly alike
    assert metrics == pytest.approx({name: kept[name] for name in metrics}, abs=0.01)
