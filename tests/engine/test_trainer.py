import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import TINY, random_moments, wait_for

from mnv2det.config import Config, load_config
from mnv2det.engine.checkpoint import load_checkpoint
from mnv2det.engine.trainer import train
from mnv2det.errors import ConfigError, TrainingError, WeightsError
from mnv2det.models.weight_file import read_header

pytestmark = [pytest.mark.process, pytest.mark.training]


@pytest.fixture
def tiny(root: Path) -> Config:
    return load_config(root / "configs" / "ssdlite_shapes.yaml", TINY)


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(run / "last.pt")
    return {
        **{f"model.{k}": v for k, v in state["model"].items()},
        **{f"ema.{k}": v for k, v in state["average"].items()},
    }


def assert_identical(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert different == []
    assert load_checkpoint(first / "last.pt")["progress"]["step"] == 12


def start(root: Path, run: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "tools/train.py", "configs/ssdlite_shapes.yaml", *TINY, "--out", str(run), *more]
    return subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, in a process of its own like the others."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    process = start(root, run)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    return run


def test_a_run_folder_holds_what_is_promised(undisturbed: Path):
    assert {"config.yaml", "metrics.jsonl", "last.pt", "best.safetensors"} <= {p.name for p in undisturbed.iterdir()}
    records = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
    assert [r["step"] for r in records if r["kind"] == "eval"] == [6, 12]  # 24 images, 4 a step
    assert {"det/cls", "det/box", "lr", "seconds"} <= records[0].keys()
    assert "det/AP50" in records[-1]


@pytest.mark.parametrize("loss", ["det/cls", "det/box"])
def test_each_loss_is_lower_in_the_second_epoch_than_in_the_first(undisturbed: Path, loss: str):
    records = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    losses = [record[loss] for record in records if record["kind"] == "train"]
    # six steps of four images are an epoch: both sums are over the same images; measured: 0.66 and 0.75
    assert sum(losses[6:]) < 0.9 * sum(losses[:6])


def test_sigint_saves_says_how_to_resume_and_the_result_is_bit_identical(root, tmp_path, undisturbed):
    run = tmp_path / "run"
    process = start(root, run)
    wait_for(run, 4, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert f"mnv2det train --resume {run}" in errors.decode()
    assert "Traceback" not in errors.decode()
    assert 4 <= load_checkpoint(run / "last.pt")["progress"]["step"] < 12
    subprocess.run([sys.executable, "tools/train.py", "--resume", str(run)], cwd=root, check=True, capture_output=True)
    assert_identical(run, undisturbed)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_kill_at_a_random_moment_and_resume_is_bit_identical(root, tmp_path, undisturbed):
    run = tmp_path / "run"
    chance = random_moments()
    process = start(root, run)
    wait_for(run, chance.randrange(2, 10), process)
    time.sleep(chance.random() * 0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=600)
    subprocess.run([sys.executable, "tools/train.py", "--resume", str(run)], cwd=root, check=True, capture_output=True)
    assert_identical(run, undisturbed)


def test_a_run_folder_is_not_overwritten(tiny: Config, undisturbed: Path):
    with pytest.raises(ConfigError, match=r"holds a run already; choose another --out, or go on with --resume"):
        train(tiny, undisturbed)


def test_resume_without_checkpoint(tiny: Config, tmp_path: Path):
    with pytest.raises(WeightsError, match="no checkpoint there"):
        train(tiny, tmp_path, resume=True)


def test_damaged_checkpoint_is_one_line(tiny: Config, tmp_path: Path, undisturbed: Path):
    whole = (undisturbed / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="damaged or foreign checkpoint") as caught:
        train(tiny, tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_never_executed(tiny: Config, tmp_path: Path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "last.pt").write_bytes(pickle.dumps({"format": 1, "x": Bomb()}))
    torch.save({"format": 1, "x": Bomb()}, tmp_path / "zip.pt")
    with pytest.raises(WeightsError):
        train(tiny, tmp_path, resume=True)
    with pytest.raises(WeightsError):
        load_checkpoint(tmp_path / "zip.pt")
    assert not (tmp_path / "executed").exists()


def test_non_finite_loss_names_step_and_images(tiny: Config, tmp_path: Path):
    tiny.optim.optimizer.args["lr"] = 1e30
    tiny.optim.warmup_steps = 0
    tiny.optim.clip_norm = None
    with pytest.raises(
        TrainingError, match=r"non-finite loss or gradient at step \d+ .* on images \[.*\]; .* lower optim"
    ):
        train(tiny, tmp_path / "run")


def test_broken_data_stops_or_is_counted(tmp_path: Path, tiny: Config, root: Path):
    from test_cli import make_voc  # a small real folder with one truncated JPEG

    make_voc(tmp_path, broken=True)
    tiny = load_config(
        root / "configs" / "ssdlite_bccd.yaml",
        [
            *(item for item in TINY if "data.train" not in item and "data.val" not in item),
            "model.weights=null",
            "model.freeze=null",
            f"data.root={tmp_path}",
            "data.bad_data=stop",
            "data.train.args.sets=[Mine/train]",
            "data.val.args.sets=[Mine/val]",
            "train.steps=4",
        ],
    )
    from mnv2det.config import BadData
    from mnv2det.errors import DataError

    with pytest.raises(DataError, match=r"img2\.jpg: truncated JPEG") as caught:
        train(tiny, tmp_path / "stop")
    assert "\n" not in str(caught.value)
    tiny.data.bad_data = BadData.skip
    summary = train(tiny, tmp_path / "skip")
    assert summary["skipped"] > 0


def test_resume_refuses_a_changed_config_key_by_key(tmp_path: Path, undisturbed: Path, root: Path):
    import shutil

    shutil.copytree(undisturbed, tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("seed: 0", "seed: 5").replace("steps: 12", "steps: 20"))
    with pytest.raises(ConfigError, match=r"changed since the checkpoint: seed \(0 -> 5\), train\.steps \(12 -> 20\)"):
        train(load_config(tmp_path / "run" / "config.yaml"), tmp_path / "run", resume=True)


def test_a_metric_that_does_not_exist_is_refused_before_training(tmp_path: Path, tiny: Config):
    tiny.train.best = "det/APsmall"
    with pytest.raises(ConfigError, match=r"train\.best: no metric 'det/APsmall'; did you mean 'det/AP_small'\?"):
        train(tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_freezing_random_weights_is_refused(tmp_path: Path, tiny: Config):
    tiny.model.freeze = "block3"
    with pytest.raises(ConfigError, match=r"model\.freeze: would keep random weights"):
        train(tiny, tmp_path / "run")


def test_a_killed_worker_is_one_line(tmp_path: Path, root: Path):
    run = tmp_path / "run"
    process = start(root, run, "train.steps=400", "train.checkpoint_every=5")
    wait_for(run, 6, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    # the signal may strike inside a finaliser, of which Python then reports "Exception ignored"
    assert "\nmnv2det: a loader worker died at step" in errors.decode().replace("\r", "\n")
    assert load_checkpoint(run / "last.pt")["progress"]["step"] >= 5


@pytest.mark.parametrize(
    ("metrics", "best", "step"),
    [
        ((-1.0, -1.0), -1.0, 2),  # undefined: nothing to measure
        ((math.nan, math.nan), -1.0, 2),
        ((-1.0, 0.0), 0.0, 2),
        ((0.5, -1.0), 0.5, 1),
        ((0.5, math.nan), 0.5, 1),
        ((0.5, 0.5), 0.5, 2),  # equal: the newer
        ((0.5, 0.4), 0.5, 1),
    ],
)
def test_the_best_weights_are_the_newest_of_equal_or_undefined_metrics(
    tiny: Config, tmp_path: Path, monkeypatch, capsys, metrics: tuple[float, float], best: float, step: int
):
    tiny.data.train.args["count"] = tiny.data.batch_size
    tiny.data.workers, tiny.train.steps, tiny.optim.warmup_steps = 0, 2, 0
    values = iter(metrics)
    monkeypatch.setattr("mnv2det.engine.trainer.evaluate_model", lambda *_: {"det/AP": next(values)})
    assert train(tiny, tmp_path / "run", device="cpu")["best"] == best
    assert read_header(tmp_path / "run" / "best.safetensors").provenance["step"] == step
    said = capsys.readouterr().err.count("det/AP is undefined: best.safetensors holds the newest weights")
    assert said == (not metrics[0] >= 0)
