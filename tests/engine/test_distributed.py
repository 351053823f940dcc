"""Two gloo processes on this machine."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from equal_steps import configured, learn
from tiny import TINY
from torch import nn

from mnv2det.config import Config
from mnv2det.engine.checkpoint import load_checkpoint
from mnv2det.engine.dist import Processes
from mnv2det.models.head import Head
from mnv2det.models.layers import ConvNorm
from mnv2det.models.ssdlite import SSDLite

pytestmark = [pytest.mark.process, pytest.mark.training]

ONE = Processes(0, 1, torch.device("cpu"))
# two processes make other batches of the images than one does, and kernels may round batches of two sizes differently
SINGLY = "data.batch_size=1"


def torchrun(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    nodes = [] if "--nnodes" in arguments else ["--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", "torch.distributed.run", *nodes, *arguments]
    env = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1", **environment}
    env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # docs/distributed.md, on restarts
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=600, check=False)


def alone(root: Path, *arguments: str) -> None:
    """The same in one process, with as many threads as each of two has."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], cwd=root, env=env, check=True, capture_output=True)


def unlucky(root: Path, out: Path, what: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A small run in which something befalls the second process at step 5."""
    tiny = [item for item in TINY if not item.startswith(("data.batch_size", "data.workers"))]
    more = ["data.batch_size=2", "data.workers=0", "train.eval_every=0", "--device", "cpu", "--out", str(out)]
    script = ["tests/misfortune.py", "train", "configs/ssdlite_shapes.yaml", *tiny, *more]
    return torchrun(root, *options, *script, MISFORTUNE=what)


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ddp") / "run"
    tiny = [item for item in TINY if not item.startswith(("data.val.args.count", "data.batch_size"))]
    more = ["data.val.args.count=7", "data.batch_size=2", "data.workers=0", "--device", "cpu"]
    done = torchrun(root, "tools/train.py", "configs/ssdlite_shapes.yaml", *tiny, *more, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


def test_two_processes_train_and_write_once(run: Path):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
    assert [r["step"] for r in records if r["kind"] == "eval"] == [6, 12]  # 24 images, 2 x 2 a step
    assert load_checkpoint(run / "last.pt")["progress"]["step"] == 12


@pytest.mark.parametrize(
    ("evaluator", "figure"),
    [([], "det/AR100"), (["tasks.det.evaluator.name=voc_ap"], "det/AP50")],
    ids=["coco", "voc"],
)
def test_two_processes_measure_what_one_measures(
    run: Path, root: Path, tmp_path: Path, evaluator: list[str], figure: str
):
    """Seven images over two processes: neither twice nor left out."""
    ask = ["tools/eval.py", str(run), SINGLY, *evaluator, "--device", "cpu", "--json"]
    done = torchrun(root, *ask, str(tmp_path / "two.json"))
    assert done.returncode == 0, done.stderr
    alone(root, *ask, str(tmp_path / "one.json"))
    one, two = (json.loads((tmp_path / name).read_text())["metrics"] for name in ("one.json", "two.json"))
    assert one == two
    assert one[figure] >= 0


def test_figures_of_the_run_are_those_of_the_weights_it_kept(run: Path, root: Path, tmp_path: Path):
    """Each process has batch-norm statistics of its own; one set is measured, and it is the saved one."""
    from mnv2det.models.weight_file import read_header

    kept = read_header(run / "best.safetensors").metrics
    # in two processes, too, so that the batches are those of the measurement while it trained
    done = torchrun(root, "tools/eval.py", str(run), "--device", "cpu", "--json", str(tmp_path / "again.json"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "again.json").read_text())["metrics"] == pytest.approx(kept, abs=1e-6)


def test_a_joint_model_learns_its_weights_and_is_measured_alike(root: Path, tmp_path: Path):
    """Task weights are no part of the wrapped model; a confusion matrix is a sum, so mIoU is the same to the bit."""
    run = tmp_path / "joint"
    tiny = [item for item in TINY if not item.startswith(("data.val.args.count", "data.batch_size", "train.steps"))]
    more = ["data.val.args.count=7", "data.batch_size=2", "data.workers=0", "train.steps=3", "train.uncertainty=true"]
    done = torchrun(
        root, "tools/train.py", "configs/joint_shapes.yaml", *tiny, *more, "--device", "cpu", "--out", str(run)
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = [(r["weight/det"], r["weight/seg"]) for r in records if r["kind"] == "train"]
    assert len(set(weights)) == 3, "they move from step to step"
    ask = ["tools/eval.py", str(run), SINGLY, "--device", "cpu", "--json"]
    done = torchrun(root, *ask, str(tmp_path / "two.json"))
    assert done.returncode == 0, done.stderr
    alone(root, *ask, str(tmp_path / "one.json"))
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one["reports"] == two["reports"]
    assert sum(map(sum, one["reports"]["seg"]["confusion"])) == 7 * 64 * 64
    for name, value in one["metrics"].items():
        assert (
            value == two["metrics"][name] if name.startswith("seg/") else value == pytest.approx(two["metrics"][name])
        )


# one batch in pieces


@pytest.fixture(scope="module")
def whole(root: Path) -> tuple[Config, dict[str, torch.Tensor]]:
    config = configured(str(root / "configs" / "ssdlite_shapes.yaml"))
    return config, learn(config, ONE)


def test_accumulated_batches_are_one_larger_batch(whole: tuple[Config, dict[str, torch.Tensor]]):
    """Ten steps; batch norm's statistics are fixed, as every batch has its own."""
    config, wanted = whole
    # the loss is computed in float32: 1e-9 is left of it in the parameters
    torch.testing.assert_close(learn(config, ONE, accumulate=2), wanted, rtol=0, atol=1e-7)


def test_a_plain_mean_of_batches_is_not(whole: tuple[Config, dict[str, torch.Tensor]], monkeypatch):
    """Their losses divide by different counts of matched anchors: the test above can fail."""
    config, wanted = whole
    monkeypatch.setattr(SSDLite, "loss_normalizer", Head.loss_normalizer)
    found = learn(config, ONE, accumulate=2)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) > 1e-4, (
        "a thousand times the bound above"
    )


@pytest.mark.parametrize("name", ["ssdlite_shapes", "joint_shapes"])
def test_two_processes_learn_what_one_learns_from_the_same_batch(root: Path, tmp_path: Path, name: str):
    path = str(root / "configs" / f"{name}.yaml")
    done = torchrun(root, "tests/equal_steps.py", path, str(tmp_path / "two.pt"))
    assert done.returncode == 0, done.stderr
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    torch.testing.assert_close(two, learn(configured(path), ONE), rtol=0, atol=1e-7)


# failures


def test_one_process_failing_ends_all_with_its_own_message(root: Path, tmp_path: Path):
    done = unlucky(root, tmp_path / "run", "data")
    assert done.returncode != 0
    assert "mnv2det: process 1 of 2: photo.jpg: truncated JPEG" in done.stderr
    assert "mnv2det: ended at step 5, as another process did; its message says why" in done.stderr
    assert "Error: " not in done.stderr.replace("ChildFailedError: ", ""), done.stderr
    assert load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["step"] == 4


def test_a_non_finite_loss_of_one_process_stops_all_and_names_its_images(root: Path, tmp_path: Path):
    done = unlucky(root, tmp_path / "run", "nan")
    lines = [line for line in done.stderr.splitlines() if "non-finite loss" in line]
    assert len(lines) == 1, done.stderr
    assert "at step 5 (det/cls nan, det/box nan) on images [" in lines[0]
    assert lines[0].partition("images [")[2].partition("]")[0].count(",") == 1, "two of the four: the second process's"


def test_a_mistake_is_said_once(root: Path, tmp_path: Path):
    run = [*TINY, "train.sync_bn=true", "--device", "cpu", "--out", str(tmp_path / "run")]
    done = torchrun(root, "tools/train.py", "configs/ssdlite_shapes.yaml", *run)
    assert done.stderr.count("mnv2det: train.sync_bn: torch has it for CUDA only") == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_norm_that_is_synchronised_folds_as_before():
    torch.manual_seed(0)
    layer, picture = ConvNorm(3, 8, 3).eval(), torch.randn(2, 3, 9, 9)
    layer.norm.running_mean.uniform_(-1, 1)
    layer.norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        wanted = layer(picture)
        nn.SyncBatchNorm.convert_sync_batchnorm(layer)
        assert isinstance(layer.norm, nn.SyncBatchNorm)
        torch.testing.assert_close(layer(picture), wanted, rtol=0, atol=0)


@pytest.mark.slow
def test_torchrun_restarts_a_killed_process_and_the_run_goes_on(root: Path, tmp_path: Path):
    whole = unlucky(root, tmp_path / "whole", "nothing")
    assert whole.returncode == 0, whole.stderr
    done = unlucky(root, tmp_path / "run", "killed", "--max-restarts", "1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "mnv2det: ended at step 5, as another process did" in done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
    one, two = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "run"))
    for part in ("model", "average"):
        different = [key for key, value in one[part].items() if not torch.equal(value, two[part][key])]
        assert different == []


@pytest.mark.slow
def test_two_torchruns_go_on_when_a_process_of_one_is_killed(root: Path, tmp_path: Path):
    """As on two machines. Only the torchrun whose process was killed counts a restart; the other has the first one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    join = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: unlucky(root, tmp_path / "run", "killed", *join, "--max-restarts", "2"), "ab"))
    assert [done.returncode for done in both] == [0, 0], both
    assert not any("holds a run already" in done.stderr for done in both), both
    assert load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["step"] == 12
