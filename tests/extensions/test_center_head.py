"""A head that no file of mnv2det knows does all that the heads of mnv2det do."""

from __future__ import annotations

import json
from pathlib import Path

import equal_steps
import pytest
import torch
from extensions.center_head import CenterHead
from small_models import picture
from torch.testing import assert_close

from mnv2det import Predictor, testing
from mnv2det.cli import main
from mnv2det.config import Config, load_config
from mnv2det.engine.dist import Processes
from mnv2det.models.head import Head
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.structures import Detections

pytestmark = [pytest.mark.training, pytest.mark.export]

SIZES = ((64, 64), (50, 70), (120, 90), (33, 97))
OVERRIDES = (
    "model.backbone.args.width=0.35",
    "model.input_size=[64,64]",
    "tasks.det.head={name: center, args: {}}",
    "data.train.args.count=16",
    "data.train.args.size=[64,64]",
    "data.val.args.count=16",
    "data.val.args.split=train",  # so few steps suffice to learn the pictures by heart
    "data.val.args.size=[64,64]",
    "data.batch_size=8",
    "data.workers=0",
    "train.amp=fp32",
    "train.ema_decay=null",
    "train.log_every=1",
    "train.steps=60",
    "optim.warmup_steps=2",
)


def config_path(root: Path) -> str:
    return str(root / "configs" / "ssdlite_shapes.yaml")


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "center"
    assert main(["train", config_path(root), *OVERRIDES, "--device", "cpu", "--out", str(folder)]) == 0
    return folder


def results(predictor: Predictor) -> list[Detections]:
    found = [predictor(picture(height, width, seed), threshold=0)["det"] for seed, (height, width) in enumerate(SIZES)]
    assert all(isinstance(result, Detections) for result in found)
    return found  # type: ignore[return-value]


def assert_equal_results(found: list[Detections], expected: list[Detections]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-4)
        assert_close(ours.labels, theirs.labels)
        assert_close(ours.boxes, theirs.boxes, rtol=1e-3, atol=1e-2)


def test_it_keeps_the_contract():
    testing.assert_head(CenterHead, MobileNetV2(width=0.35))


def test_training_lowers_its_loss_and_evaluation_measures_it(run: Path, tmp_path: Path):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["det/cls"] + record["det/box"] for record in records if record["kind"] == "train"]
    assert losses[-1] < 0.2 * losses[0]
    assert main(["eval", str(run), "--device", "cpu", "--json", str(tmp_path / "report.json")]) == 0
    metrics = json.loads((tmp_path / "report.json").read_text())["metrics"]
    assert metrics["det/AP50"] > 0.2


@pytest.mark.parametrize("form", ["raw", "complete"])
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_runtimes_find_what_torch_finds(run: Path, tmp_path: Path, form: str, suffix: str):
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    expected = results(Predictor(run, backend="torch"))
    assert sum(len(result.scores) for result in expected) > 5
    path = tmp_path / f"model{suffix}"
    assert main(["export", str(run), "--output", str(path), "--form", form]) == 0
    for backend in ("onnxruntime", "openvino") if suffix == ".onnx" else ("openvino",):
        assert_equal_results(results(Predictor(path, backend=backend)), expected)


def test_two_accumulated_batches_give_the_gradient_of_one(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(equal_steps, "STEPS", 3)
    sgd = "optim.optimizer={name: sgd, args: {lr: 0.1, momentum: 0.0, weight_decay: 0.0}}"
    config = load_config(config_path(root), [*OVERRIDES, sgd, "optim.warmup_steps=0", "train.steps=3"])

    def learn(accumulate: int) -> dict[str, torch.Tensor]:
        return equal_steps.learn(config, Processes(0, 1, torch.device("cpu")), accumulate)

    whole = learn(1)
    assert_close(learn(2), whole, rtol=1e-4, atol=1e-5)
    # the batches hold different numbers of objects, so a plain mean is another gradient
    monkeypatch.setattr(CenterHead, "loss_normalizer", Head.loss_normalizer)
    assert max(float((value - whole[name]).abs().max()) for name, value in learn(2).items()) > 1e-3


def test_weights_of_other_classes_keep_its_layers(run: Path, root: Path):
    from mnv2det.engine.build import build_model

    config: Config = load_config(config_path(root), [*OVERRIDES, f"model.weights={run / 'best.safetensors'}"])
    model = build_model(config)
    stored = Predictor(run).heads["det"].state_dict()
    loaded = model.heads["det"].state_dict()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)


def test_thresholds_of_the_command_line_reach_it(run: Path, tmp_path: Path):
    path = tmp_path / "few.onnx"
    assert main(["export", str(run), "--output", str(path), "--max-detections", "2"]) == 0
    assert {len(result.scores) for result in results(Predictor(path))} <= {0, 1, 2}
