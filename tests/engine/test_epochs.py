"""Which images the steps of a run learn from, and that they learn."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import TINY

from mnv2det.config import Config, load_config
from mnv2det.data.loader import ResumableSampler, train_loader
from mnv2det.engine.build import build_augmentation, build_dataset, build_model
from mnv2det.engine.checkpoint import load_checkpoint
from mnv2det.engine.dist import Processes
from mnv2det.engine.learner import Learner
from mnv2det.engine.trainer import train
from mnv2det.structures import Batch

pytestmark = pytest.mark.training


@pytest.fixture
def tiny(root: Path) -> Config:
    return load_config(root / "configs" / "ssdlite_shapes.yaml", [*TINY, "data.workers=0"])


def records(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int | str]]:
    """The images of each step that was learned from since the last clear()."""
    steps: list[list[int | str]] = []
    gradients = Learner.gradients

    def recorded(self: Learner, batches: list[Batch], seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        steps.append([image for batch in batches for image in batch.image_ids])
        return gradients(self, batches, seed)

    monkeypatch.setattr(Learner, "gradients", recorded)
    return steps


def test_accumulation_sees_the_same_images_as_a_larger_batch(tiny: Config, tmp_path: Path, seen: list):
    tiny.train.steps, tiny.train.eval_every = 7, 0
    train(tiny, tmp_path / "larger")
    larger = list(seen)
    seen.clear()
    tiny.train.accumulate, tiny.data.batch_size = 2, 2
    train(tiny, str(tmp_path / "accumulated"))
    assert [len(images) for images in larger] == [4] * 7
    assert len({tuple(images) for images in larger}) == 7
    assert seen == larger


def test_epochs_are_whole_passes_however_many_batches_a_step_takes(tiny: Config, tmp_path: Path, seen: list):
    """Six batches an epoch, four a step: the steps 2, 3 and 5 complete an epoch, the third one within the step."""
    tiny.train.steps, tiny.train.epochs, tiny.train.accumulate = None, 3, 4
    tiny.train.checkpoint_every = 1000
    assert train(tiny, tmp_path / "run")["steps"] == 5
    images = [image for step in seen for image in step]
    for epoch in range(3):
        assert len(set(images[24 * epoch : 24 * (epoch + 1)])) == 24, "each image once"
    assert [record["step"] for record in records(tmp_path / "run", "eval")] == [2, 3, 5]


def test_a_step_may_complete_several_epochs(tiny: Config, tmp_path: Path, seen: list):
    tiny.train.steps, tiny.train.epochs, tiny.train.accumulate, tiny.train.eval_every = None, 30, 15, 4
    tiny.data.batch_size, tiny.train.checkpoint_every = 8, 1000
    tiny.data.train.args["count"], tiny.data.val.args["count"] = 16, 1
    assert train(tiny, tmp_path / "run")["steps"] == 4  # of 15 batches, of which two are an epoch
    assert sum(map(len, seen)) == 30 * 16
    assert [record["step"] for record in records(tmp_path / "run", "eval")] == [1, 2, 3, 4]


def test_a_run_with_accumulation_resumes_bit_identically_within_an_epoch(tiny: Config, tmp_path: Path):
    tiny.train.steps, tiny.train.epochs, tiny.train.accumulate = None, 3, 4
    tiny.data.val.args["count"], tiny.train.checkpoint_every, tiny.train.keep_checkpoints = 1, 1, 10
    train(tiny, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    steps = {load_checkpoint(path)["progress"]["step"]: path for path in (tmp_path / "resumed").glob("last*.pt")}
    for path in steps.values():
        if path != steps[4]:
            path.unlink()
    train(tiny, tmp_path / "resumed", resume=True)
    whole, resumed = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "resumed"))
    for part in ("model", "average"):
        assert [name for name, value in whole[part].items() if not torch.equal(value, resumed[part][name])] == []


def test_a_batch_that_is_seen_again_and_again_is_learned(root: Path):
    """Both losses of one batch, always the same, fall with every fifth step, to less than half in the end."""
    config = load_config(
        root / "configs" / "ssdlite_shapes.yaml",
        [*TINY, "data.augment={name: none, args: {}}", "train.amp=fp32", "optim.warmup_steps=0"],
    )
    data, model = build_dataset(config, "train"), build_model(config)
    learner = Learner(model, config, 1000, Processes(0, 1, torch.device("cpu")))
    sampler = ResumableSampler(len(data), 4, seed=0, start=0, stop=1)
    transform = build_augmentation(config, model)
    (batch,) = train_loader(data, transform, sampler, workers=0, bad_data=config.data.bad_data)
    model.train()
    losses = []
    for step in range(26):
        values, _ = learner.gradients([batch], step)
        learner.update()
        losses.append({name: float(value) for name, value in values.items()})
    for name in ("det/cls", "det/box"):
        every_fifth = [values[name] for values in losses[::5]]
        assert every_fifth == sorted(every_fifth, reverse=True), name
        assert every_fifth[-1] < every_fifth[0] / 2, name
