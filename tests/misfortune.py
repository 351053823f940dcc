"""``mnv2det`` under torchrun, where something befalls the second process at its fifth step."""

import os
import signal

import torch

from mnv2det.cli import run
from mnv2det.engine.learner import Learner
from mnv2det.errors import DataError

WHAT, SECOND = os.environ["MISFORTUNE"], os.environ["RANK"] == "1"
gradients, steps = Learner.gradients, []


def unlucky(self: Learner, batches: list, seed: int) -> tuple[dict, torch.Tensor]:
    steps.append(0)
    struck = SECOND and len(steps) == 5 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if struck and WHAT == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if struck and WHAT == "data":
        raise DataError("photo.jpg: truncated JPEG")
    losses, finite = gradients(self, batches, seed)
    if struck and WHAT == "nan":
        return {name: value * float("nan") for name, value in losses.items()}, torch.tensor(False)
    return losses, finite


Learner.gradients = unlucky  # type: ignore[method-assign]

if __name__ == "__main__":
    run()
