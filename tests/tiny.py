"""A run of seconds: overrides of configs/ssdlite_shapes.yaml, and waiting for a step."""

import os
import random
import subprocess
import time
from pathlib import Path

TINY = (
    "model.backbone.args.width=0.35",
    "model.input_size=[64,64]",
    "tasks.det.head.args.extras=[32,32,32,32]",
    "data.train.args.count=24",
    "data.train.args.size=[64,64]",
    "data.val.args.count=8",
    "data.val.args.size=[64,64]",
    "data.batch_size=4",
    "data.workers=1",
    "train.steps=12",
    "train.eval_every=1",
    "train.checkpoint_every=1",
    "train.log_every=1",
    "optim.warmup_steps=2",
)


def random_moments() -> random.Random:
    """Chance for the moment of a kill: another one every time, or that of the environment's MOMENTS_SEED.

    The seed is printed, which pytest shows when the test fails.
    """
    seed = int(os.environ.get("MOMENTS_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"to repeat the moments of this test: MOMENTS_SEED={seed}")  # noqa: T201
    return random.Random(seed)


def wait_for(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Waits until metrics.jsonl says that the step was done, for minutes where the machine has other work."""
    log, deadline = run / "metrics.jsonl", time.monotonic() + 300
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline, f"the run did not reach step {step}"
        time.sleep(0.05)
