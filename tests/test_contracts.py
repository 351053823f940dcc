"""Contracts over every registered component and every YAML."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from pydantic import Field

import mnv2det.data
import mnv2det.engine.optim
import mnv2det.evaluation
import mnv2det.models  # noqa: F401 - these register
from mnv2det import load_config, testing
from mnv2det.cli import main
from mnv2det.config import from_dict, to_yaml
from mnv2det.data.loader import Loaded, collate
from mnv2det.data.shapes import Shapes
from mnv2det.engine.build import build_augmentation, build_evaluators, check
from mnv2det.engine.optim import build_optimizer
from mnv2det.errors import ConfigError
from mnv2det.models.build import assemble, from_config
from mnv2det.ranges import limits_of, numbers_in
from mnv2det.registry import AUGMENTATIONS, BACKBONES, DATASETS, EVALUATORS, HEADS, OPTIMIZERS, SCHEDULES, Registry
from mnv2det.structures import Frame, Preprocess, Scores, Segmentation

CONFIGS = sorted(Path(__file__).resolve().parents[1].glob("configs/*.yaml"))
CLASSES = {"labels": ["a", "b", "c"], "mask": ["background", "a", "b", "c"], "label": ["a", "b", "c"]}


def test_there_is_something_to_check():
    assert len(CONFIGS) >= 11
    assert {"ssdlite_coco", "ssdlite_voc", "ssdlite_shapes", "ssdlite_bccd"} <= {path.stem for path in CONFIGS}
    assert DATASETS.names() == ["coco", "imagefolder", "shapes", "voc"]


PLACES = {
    BACKBONES: "model.backbone",
    HEADS: "tasks.det.head",
    DATASETS: "data.val",
    AUGMENTATIONS: "data.augment",
    EVALUATORS: "tasks.det.evaluator",
    OPTIMIZERS: "optim.optimizer",
    SCHEDULES: "optim.schedule",
}
COMPONENTS = [
    pytest.param(registry, name, id=f"{registry.kind}-{name}") for registry in PLACES for name in registry.names()
]


def a_value(annotation: Any) -> Any:
    """Something in the range of a number, or a list of such."""
    kind = annotation.__origin__ if get_origin(annotation) is Annotated else annotation
    if kind in (int, float):
        limits = limits_of(annotation)
        low, high = (limits.get(a, limits.get(b)) for a, b in (("ge", "gt"), ("le", "lt")))
        return kind(low + 1 if high is None else (low + high) / 2)
    return [a_value(inner) for inner in get_args(kind) if inner is not Ellipsis]


def values_out_of_range(annotation: Any) -> Iterator[Any]:
    """For each limit of each number within an annotation a value that passes all others."""
    if get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from values_out_of_range(member)
        return
    kind = annotation.__origin__ if get_origin(annotation) is Annotated else annotation
    if kind in (int, float):
        outside = {"ge": -1, "gt": 0, "le": 1, "lt": 0}
        yield from (kind(limit + outside[name]) for name, limit in limits_of(annotation).items())
        if kind is float:
            yield from (math.nan, math.inf)
    elif get_origin(kind) is tuple:
        if any(numbers_in(kind)):
            yield "three"
            if "min_length" in limits_of(annotation) or get_args(kind)[-1] is not Ellipsis:
                yield []
        elements = [element for element in get_args(kind) if element is not Ellipsis]
        for index, element in enumerate(elements):
            if any(numbers_in(element)):
                for wrong in values_out_of_range(element):
                    yield [*map(a_value, elements[:index]), wrong, *map(a_value, elements[index + 1 :])]


@pytest.mark.parametrize(("registry", "name"), COMPONENTS)
def test_every_number_of_a_component_states_its_range_and_is_held_to_it(registry: Registry[Any], name: str):
    testing.assert_arguments(registry, name)
    task = {"head": {"name": "ssdlite"}, "evaluator": {"name": "coco"}}
    data = {"train": {"name": "shapes"}, "val": {"name": "shapes"}}
    config = from_dict({"tasks": {"det": task}, "data": data, "train": {"steps": 1}}, where="test")
    place = PLACES[registry]
    component: Any = config
    for key in place.split("."):
        component = component[key] if isinstance(component, dict) else getattr(component, key)
    component.name = name
    for key, parameter in registry.parameters(name).items():
        for wrong in values_out_of_range(parameter.annotation):
            component.args = {key: wrong}
            with pytest.raises(ConfigError) as error:
                check(config)
            assert f"{place}.args.{key}" in str(error.value), wrong
            assert "\n" not in str(error.value)


def test_a_number_without_a_range_fails_the_contract():
    def roll(*, sides: Annotated[int, Field(ge=1)] = 6, weights: tuple[float, ...] | None = None) -> None: ...

    def throw(*, sides: Annotated[int, Field(ge=1)] = 0) -> None: ...

    registry: Registry[Any] = Registry("dice")
    registry.register("roll")(roll)
    registry.register("throw")(throw)
    with pytest.raises(AssertionError, match="dice roll: weights: no range is stated"):
        testing.assert_arguments(registry, "roll")
    with pytest.raises(ConfigError, match="default of dice throw: sides: expected a whole number >= 1, got 0"):
        testing.assert_arguments(registry, "throw")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tasks.det.head.args.nms_iou=6", "expected a number from 0 to 1, got 6"),
        ("tasks.det.head.args.match_iou=-1", "expected a number > 0 and <= 1, got -1"),
        ("tasks.det.head.args.negatives=-2", "expected a number >= 0, got -2"),
        ("tasks.det.head.args.norm_momentum=9", "expected a number from 0 to 1, got 9"),
        ("tasks.det.head.args.max_detections=-1", "expected a whole number >= 1, got -1"),
        ("tasks.det.head.args.box_beta=-1", "expected a number >= 0, got -1"),
        ("tasks.det.head.args.anchors=[[[1, 1]]]", "given for 1 levels, but taps and extras make 5"),
        ("tasks.det.evaluator.args.max_detections=[1, 1, 2]", "expected three increasing counts, got [1, 1, 2]"),
        ("data.augment.args.crop=1", "expected crop + expand of at most 1, got 1.0 + 0.25"),
        ("optim.optimizer.args={lr: 1, momentum: 0, nesterov: true}", "expected a momentum above 0 beside it"),
    ],
)
def test_config_check_names_a_wrong_argument_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, expected: str
):
    path = tmp_path / "a.yaml"
    path.write_text(
        "tasks: {det: {head: {name: ssdlite, args: {extras: [64, 64, 64]}}, evaluator: {name: coco}}}\n"
        "data: {root: /nowhere, train: {name: voc, args: {sets: [a]}}, val: {name: voc, args: {sets: [a]}},"
        " augment: {name: ssd, args: {crop: 0.5, expand: 0.25}}}\n"
        "optim: {optimizer: {name: sgd, args: {lr: 0.1}}}\n"
        "train: {epochs: 1}\n"
    )
    assert main(["config", str(path), "--check"]) == 0
    capsys.readouterr()
    assert main(["config", str(path), "--check", override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mnv2det: ")
    assert error.endswith(f": {expected}\n")
    assert error.count("\n") == 1


def test_arguments_are_bound_once_while_a_model_is_built(monkeypatch: pytest.MonkeyPatch):
    bound: list[str] = []
    bind = Registry.bind

    def counting(self: Registry[Any], name: str, *args: Any, **kwargs: Any) -> Any:
        bound.append(name)
        return bind(self, name, *args, **kwargs)

    monkeypatch.setattr(Registry, "bind", counting)
    heads = {"cls": {"name": "classifier", "args": {}}}
    backbone = {"name": "mobilenet_v2", "args": {"width": 0.35}}
    assemble(backbone, heads, classes={"cls": ["a", "b"]}, preprocess=Preprocess())
    assert bound == ["mobilenet_v2", "classifier"]


def test_all_problems_of_a_model_are_told_in_one_line():
    heads = {"cls": {"name": "classifier", "args": {"dropout": 1}}, "seg": {"name": "mobile_deeplap", "args": {}}}
    with pytest.raises(ConfigError) as error:
        assemble({"name": "mobilenet_v2", "args": {"width": 0}}, heads, classes={}, preprocess=Preprocess())
    assert str(error.value) == (
        "model.backbone.args.width: expected a number > 0 and <= 10, got 0;"
        " tasks.cls.head.args.dropout: expected a number >= 0 and < 1, got 1;"
        " tasks.seg.head.name: no head 'mobile_deeplap'; did you mean 'mobile_deeplab'?"
    )


def test_arguments_that_a_weight_file_may_complete_are_not_held_to_each_other_before_it_is_read():
    task = {"head": {"name": "ssdlite", "args": {"anchors": [[[0.5, 1.0]]]}}, "evaluator": {"name": "coco"}}
    data = {"train": {"name": "shapes"}, "val": {"name": "shapes"}}
    optim = {"optimizer": {"args": {"lr": 0.1}}}
    content = {"tasks": {"det": task}, "data": data, "optim": optim, "train": {"steps": 1}}
    with pytest.raises(ConfigError, match=r"args\.anchors: given for 1 levels, but taps and extras make 6"):
        check(from_dict(content, where="test"))
    check(from_dict({**content, "model": {"weights": "one_level.safetensors"}}, where="test"))


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
        assert set(head.architecture_args) <= HEADS.parameters(name).keys()
