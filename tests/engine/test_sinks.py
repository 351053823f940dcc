"""The numbers of a run in TensorBoard, MLflow and Weights & Biases, each with its real library and local files."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mnv2det.engine import sinks
from mnv2det.engine.log import RunLog
from mnv2det.engine.sinks import Sink, check_sinks, numbers_of, open_sinks
from mnv2det.errors import ConfigError

CONFIG = {"seed": 0, "train": {"steps": 20, "log_to": ["tensorboard"]}, "classes": ["a" * 800]}
RECORDS: list[dict[str, Any]] = [
    {"kind": "train", "step": 10, "seconds": 1.5, "lr": 0.1, "det/box": 2.0},
    {"kind": "eval", "step": 20, "seconds": 3.0, "eval_seconds": 1.0, "det/AP": 0.5, "det/AP50": -1.0},
    {"kind": "change", "step": 20, "key": "train.steps", "old": 1, "new": 2},
]


def test_numbers_of_training_and_evaluation_are_passed_on(tmp_path: Path):
    got: list[tuple[int, Mapping[str, float]]] = []
    closed: list[bool] = []
    sink = Sink(lambda step, values: got.append((step, values)), lambda: closed.append(True))
    log = RunLog(tmp_path, active=True, sinks=[sink])
    for record in RECORDS:
        log.write(**record)
    log.close()
    assert got == [
        (10, {"train/seconds": 1.5, "train/lr": 0.1, "train/det/box": 2.0}),
        (20, {"val/seconds": 3.0, "val/eval_seconds": 1.0, "val/det/AP": 0.5, "val/det/AP50": -1.0}),
    ]
    assert closed == [True]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb is not installed .*pip install 'mnv2det\[wandb\]'"):
        check_sinks(["wandb"])
    assert sinks.MODULES.keys() == sinks.SINKS.keys()


def write_twice(name: str, folder: Path) -> None:
    """A run that is resumed."""
    for step, records in ((0, RECORDS[:1]), (10, RECORDS[1:2])):
        (sink,) = open_sinks([name], folder, CONFIG, step)
        for record in records:
            sink.write(record["step"], numbers_of(record))
        sink.close()


def test_tensorboard(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'mnv2det[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_twice("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/det/box")] == [(10, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("val/det/AP")] == [(20, 0.5)]


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: pip install 'mnv2det[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_twice("mlflow", tmp_path)
    client = mlflow.tracking.MlflowClient()
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.data.params["train.steps"] == "20"
    assert run.data.metrics["val/det/AP"] == 0.5
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/lr")] == [
        (10, 0.1)
    ]
    assert run.info.status == "FINISHED"


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb", reason="needs wandb: pip install 'mnv2det[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_twice("wandb", tmp_path)
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    # another process writes them
    deadline = time.monotonic() + 20
    while b"".join(file.read_bytes() for file in files).count(b"det/") < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"train/det/box" in files[0].read_bytes()
    assert b"val/det/AP50" in files[1].read_bytes()
