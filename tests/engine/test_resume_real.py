"""Stopping and resuming the COCO run on real photographs."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import random_moments, wait_for

from mnv2det.engine.checkpoint import load_checkpoint

pytestmark = [pytest.mark.process, pytest.mark.training]

STEPS = 12


def start(root: Path, shared: Path, run: Path) -> subprocess.Popen[bytes]:
    paths = [
        f"data.{split}.args.{key}={value}"
        for split in ("train", "val")
        for key, value in (
            ("annotations", "coco100/annotations/instances_val2017.json"),
            ("images", "coco100/val2017"),
        )
    ]
    more = (
        *("model.weights=null", "model.backbone.args.width=0.35", "data.batch_size=4", "data.workers=2"),
        *("train.epochs=null", f"train.steps={STEPS}", "train.eval_every=0", "train.checkpoint_every=2"),
        *("train.log_every=1", "optim.warmup_steps=4", "data.bad_data=stop"),
    )
    command = [sys.executable, "tools/train.py", "configs/ssdlite_coco.yaml", f"data.root={shared}", *paths, *more]
    return subprocess.Popen([*command, "--out", str(run)], cwd=root, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.shared
def test_the_coco_run_resumes_bit_identically_after_sigint_and_sigkill(root: Path, shared: Path, tmp_path: Path):
    whole = start(root, shared, tmp_path / "whole")
    _, errors = whole.communicate(timeout=600)
    assert whole.returncode == 0, errors.decode()
    wanted, chance = load_checkpoint(tmp_path / "whole" / "last.pt"), random_moments()
    for name, number, code in (("stopped", signal.SIGINT, 130), ("killed", signal.SIGKILL, -signal.SIGKILL)):
        run = tmp_path / name
        process = start(root, shared, run)
        wait_for(run, chance.randrange(3, 8), process)
        process.send_signal(number)
        process.communicate(timeout=600)
        assert process.returncode == code
        assert load_checkpoint(run / "last.pt")["progress"]["step"] < STEPS
        command = [sys.executable, "tools/train.py", "--resume", str(run)]
        subprocess.run(command, cwd=root, check=True, capture_output=True)
        found = load_checkpoint(run / "last.pt")
        assert found["progress"]["step"] == STEPS
        for part in ("model", "average"):
            different = [key for key, value in wanted[part].items() if not torch.equal(value, found[part][key])]
            assert different == []
