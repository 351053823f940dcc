"""Ten steps on one global batch size, in as many processes as torchrun starts: python equal_steps.py CONFIG OUT."""

import sys
from pathlib import Path

import torch
from tiny import TINY
from torch import nn

from mnv2det.config import Config, load_config
from mnv2det.data.loader import ResumableSampler, train_loader
from mnv2det.engine.build import build_augmentation, build_dataset, build_model
from mnv2det.engine.dist import Processes, processes
from mnv2det.engine.learner import Learner

STEPS, IMAGES = 10, 8


def configured(path: str) -> Config:
    small = [item for item in TINY if not item.startswith(("data.batch_size", "data.workers", "train.steps"))]
    more = ["train.amp=fp32", f"train.steps={STEPS}", "optim.optimizer={name: sgd, args: {lr: 0.005}}"]
    # every process drops out others
    still = ["tasks.seg.head.args.dropout=0"] if "joint" in path else []
    return load_config(path, [*small, *more, *still, "optim.clip_norm=1"])


def learn(config: Config, group: Processes, accumulate: int = 1) -> dict[str, torch.Tensor]:
    """Parameters after the steps, in float64; batch norm's statistics stay fixed, as every batch has its own.

    In float32 a rounding may choose another negative anchor for the loss, and the runs part from there.
    """
    torch.manual_seed(0)
    data, model = build_dataset(config, "train"), build_model(config).double()
    learner = Learner(model, config, STEPS, group)
    model.train()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    size = IMAGES // group.world // accumulate
    sampler = ResumableSampler(
        len(data), size, seed=0, start=0, stop=STEPS * accumulate, rank=group.rank, world=group.world
    )
    transform = build_augmentation(config, model)
    loader = iter(train_loader(data, transform, sampler, workers=0, bad_data=config.data.bad_data))
    for step in range(STEPS):
        _, finite = learner.gradients([next(loader) for _ in range(accumulate)], step)
        assert finite
        learner.update()
    return {name: value.detach().clone() for name, value in model.named_parameters()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes("cpu") as together:
        found = learn(configured(sys.argv[1]), together)
        if together.main:
            torch.save(found, Path(sys.argv[2]))
