"""Two gloo processes on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY

from mnv2det.engine.checkpoint import load_checkpoint


def torchrun(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)


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


def test_two_processes_measure_what_one_measures(run: Path, root: Path, tmp_path: Path):
    """Seven images over two processes: neither twice nor left out."""
    done = torchrun(root, "tools/eval.py", str(run), "--device", "cpu", "--json", str(tmp_path / "two.json"))
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "tools/eval.py", str(run), "--device", "cpu", "--json", str(tmp_path / "one.json")]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    one, two = (json.loads((tmp_path / name).read_text())["figures"] for name in ("one.json", "two.json"))
    assert one == pytest.approx(two, abs=1e-6)
    assert one["det/AR100"] >= 0


def test_figures_of_the_run_are_those_of_the_weights_it_kept(run: Path, root: Path, tmp_path: Path):
    """Each process has batch-norm statistics of its own; one set is measured, and it is the saved one."""
    from mnv2det.models.weights.files import read_header

    kept = read_header(run / "best.safetensors").metrics
    command = [sys.executable, "tools/eval.py", str(run), "--device", "cpu", "--json", str(tmp_path / "again.json")]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    assert json.loads((tmp_path / "again.json").read_text())["figures"] == pytest.approx(kept, abs=1e-6)


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
    done = torchrun(root, "tools/eval.py", str(run), "--device", "cpu", "--json", str(tmp_path / "two.json"))
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "tools/eval.py", str(run), "--device", "cpu", "--json", str(tmp_path / "one.json")]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one["reports"] == two["reports"]
    assert sum(map(sum, one["reports"]["seg"]["confusion"])) == 7 * 64 * 64
    for name, value in one["figures"].items():
        assert (
            value == two["figures"][name] if name.startswith("seg/") else value == pytest.approx(two["figures"][name])
        )
