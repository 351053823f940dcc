"""Contracts over every registered component and every YAML."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import mnv2det.data
import mnv2det.engine.optim
import mnv2det.evaluation
import mnv2det.models  # noqa: F401 - these register
from mnv2det import load_config, testing
from mnv2det.config import to_yaml
from mnv2det.data.loader import Loaded, collate
from mnv2det.data.shapes import Shapes
from mnv2det.engine.build import build_augmentation, build_evaluators, check
from mnv2det.engine.optim import build_optimizer
from mnv2det.models.build import from_config
from mnv2det.registry import AUGMENTATIONS, BACKBONES, DATASETS, EVALUATORS, HEADS, OPTIMIZERS, SCHEDULES
from mnv2det.structures import Frame, Preprocess, Scores, Segmentation

CONFIGS = sorted(Path(__file__).resolve().parents[1].glob("configs/*.yaml"))
CLASSES = {"labels": ["a", "b", "c"], "mask": ["background", "a", "b", "c"], "label": ["a", "b", "c"]}


def test_there_is_something_to_check():
    assert len(CONFIGS) >= 11
    assert {"ssdlite_coco", "ssdlite_voc", "ssdlite_shapes", "ssdlite_bccd"} <= {path.stem for path in CONFIGS}
    assert DATASETS.names() == ["coco", "imagefolder", "shapes", "voc"]


@pytest.mark.parametrize("name", BACKBONES.names())
def test_backbone(name: str):
    testing.assert_backbone(BACKBONES.get(name)())


@pytest.mark.parametrize("name", HEADS.names())
def test_head(name: str):
    testing.assert_head(HEADS.get(name), BACKBONES.get("mobilenet_v2")(width=0.35))


def test_dataset():
    testing.assert_dataset(Shapes(count=5, size=(64, 96)))


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_augmentation(name: str):
    transform = AUGMENTATIONS.build(name, {}, Preprocess((64, 96)), place="augment")
    testing.assert_augmentation(transform, Shapes(count=5, size=(80, 70)), size=(64, 96))


@pytest.mark.parametrize("name", EVALUATORS.names())
def test_evaluator_of_nothing_and_of_everything(name: str):
    evaluator = EVALUATORS.build(name, {}, place="evaluator", classes=["a", "b", "c"])
    assert evaluator.compute()[evaluator.main] == -1
    if name == "miou":
        mask = np.array([[0, 2], [2, 255]], np.uint8)
        evaluator.update("image", Segmentation(torch.tensor([[0, 2], [2, 1]], dtype=torch.uint8)), {"mask": mask})
        assert evaluator.compute()["mIoU"] == 1
        assert evaluator.compute()["IoU/b"] == -1
        return
    if name == "topk":
        evaluator.update("image", Scores(torch.tensor([0.1, 0.2, 0.7])), {"label": np.array(2)})
        assert evaluator.compute()["top1"] == 1
        assert evaluator.compute()["top1/b"] == -1
        return
    boxes = np.array([[1, 1, 30, 30], [5, 5, 20, 40]], np.float32)
    truth = {"boxes": boxes, "labels": np.array([0, 2]), "ignore": np.zeros(2, bool), "area": np.array([841.0, 525])}
    found = testing.perfect_detections(truth)
    evaluator.update("image", found, truth)
    assert evaluator.compute()[evaluator.main] == pytest.approx(1.0)
    assert evaluator.compute()[f"{evaluator.main}/b"] == -1


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_optimizer_lowers_a_loss(name: str):
    from mnv2det.config import Component, OptimConfig

    model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(4, 4), "heads": torch.nn.Linear(4, 1)})
    config = OptimConfig(optimizer=Component(name, {"lr": 0.01}), warmup_steps=2)
    optimizer, schedule = build_optimizer(model, config, 30)
    inputs, losses = torch.randn(16, 4), []
    for _ in range(30):
        loss = (model["heads"](model["backbone"](inputs)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_schedule_starts_at_one_and_never_rises(name: str):
    factor = SCHEDULES.build(name, {}, 100, place="schedule")
    values = [factor(step) for step in range(101)]
    assert values[0] == 1
    assert all(after <= before for before, after in itertools.pairwise(values))
    assert values[-1] >= 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_whole_and_names_its_figure(path: Path, tmp_path: Path):
    config = load_config(path)
    check(config)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Measured" in line for line in head), f"{path.name} does not say what it reaches"


@pytest.mark.training
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds_and_runs_a_step(path: Path):
    config = load_config(path, ["model.weights=null", "model.freeze=null"])
    # a config may hold something for each of its own classes
    own = Shapes(count=1, size=(64, 64)).classes["mask"] if config.data.train.name == "shapes" else CLASSES["mask"]
    known = {**CLASSES, "mask": config.data.train.args.get("mask_names", own)}
    classes = {task: known[HEADS.get(part.head.name).target_key] for task, part in config.tasks.items()}
    model, _ = from_config(config.model, config.tasks, classes)
    optimizer, _ = build_optimizer(model, config.optim, 10)
    transform = build_augmentation(config, model)
    data, items = Shapes(count=2, size=(120, 160)), []
    for index in range(2):
        sample = data.read(index)
        sample.target["labels"] %= 3
        sample.target["mask"] %= 4
        sample.target["label"] = np.array(index)
        image, target = transform(sample, 7)
        frame = Frame((120, 160), (image.shape[0], image.shape[1]))
        items.append(Loaded(index, torch.from_numpy(image).permute(2, 0, 1), target, frame, sample.target))
    batch = collate(items)
    losses = model.train().loss(model(model.normalize(batch.images)), batch.targets, {})
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    assert all(value.isfinite() for value in losses.values())
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == [], "parameters that nothing trains"
    evaluators = build_evaluators(config, classes)
    results = model.eval().predict(batch.images, batch.frames)
    for task, evaluator in evaluators.items():
        evaluator.update(0, results[task][0], batch.truths[0])
        assert 0 <= evaluator.compute()[evaluator.main] <= 1


def test_every_head_names_its_class_rows():
    backbone = BACKBONES.get("mobilenet_v2")(width=0.35)
    for name in HEADS.names():
        head = HEADS.get(name)(backbone.features, classes=7)
        parameters = dict(head.named_parameters())
        rows = head.class_rows()
        assert rows, name
        for parameter, part in rows.items():
            assert parameters[parameter].shape[0] == part.groups * (part.private + 7), parameter
        assert set(head.architecture_args) <= set(HEADS.complete(name, {}))
