"""Contract assertions: call them on your own backbone, head, data set or augmentation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from mnv2det.data.dataset import Dataset
from mnv2det.data.transforms import Transform
from mnv2det.models.backbone import Backbone
from mnv2det.models.head import Head
from mnv2det.ops.geometry import GraphFrame
from mnv2det.ops.nms import suppress_greedily
from mnv2det.ranges import convert, limits_of, numbers_in
from mnv2det.registry import Registry
from mnv2det.structures import Detections, Frame, Sample, Scores, Segmentation, Target, TaskResult

INPUT = (64, 96)  # (H, W) of the pictures that backbones and heads are tried with


def assert_backbone(backbone: Backbone) -> None:
    """Checks that features have the channels and strides stated, in train and eval mode, and that stages are whole."""
    taps = list(backbone.features)
    assert "image" in taps, "a backbone offers its input as feature 'image'"
    for training in (True, False):
        backbone.train(training)
        features = backbone(torch.rand(2, 3, *INPUT), taps)
        assert list(features) == taps
        for tap in taps:
            channels, stride = backbone.features[tap]
            stated = (2, channels, -(-INPUT[0] // stride), -(-INPUT[1] // stride))
            assert tuple(features[tap].shape) == stated, f"feature {tap}: {tuple(features[tap].shape)}, stated {stated}"
    names = [name for name, _ in backbone.stages()]
    assert len(set(names)) == len(names), "stages need different names"
    owned = {id(p) for _, stage in backbone.stages() for p in stage.parameters()}
    assert owned == {id(p) for p in backbone.parameters()}, "stages hold every parameter"


def assert_arguments(registry: Registry[Any], name: str) -> None:
    """Every number that a config can set has a range in its annotation, and the defaults lie within theirs."""
    for key, parameter in registry.parameters(name).items():
        for number in numbers_in(parameter.annotation):
            assert limits_of(number), f"{registry.kind} {name}: {key}: no range is stated, as in Share or PositiveInt"
        if parameter.default is not parameter.empty:
            convert(parameter.annotation, parameter.default, f"default of {registry.kind} {name}: {key}")


def assert_head(kind: type[Head], backbone: Backbone, *, classes: int = 3) -> None:
    """Checks what `mnv2det.models.head.Head` describes.

    Raw tensors are the same in train and eval mode; losses are finite, have gradients, and are divided by what
    `loss_normalizer` says; results are in range; an export computes the same results.

    Args:
        kind: The class of the head.
        backbone: Any backbone with the features that the head reads.
        classes: Number of classes that it is built for.
    """
    head = kind(backbone.features, classes=classes)
    with torch.no_grad():
        features = backbone.eval()(torch.rand(2, 3, *INPUT), head.taps)
    shapes = [{key: tuple(value.shape) for key, value in head.train(mode)(features).items()} for mode in (True, False)]
    assert shapes[0] == shapes[1], "raw tensors differ between train and eval mode"
    annotated = Target(
        boxes=torch.tensor([[4.0, 4, 40, 50]]),
        labels=torch.tensor([classes - 1]),
        ignore=torch.tensor([False]),
        mask=torch.randint(0, classes, INPUT),
        label=torch.tensor(classes - 1),
    )
    assert set(head.needs) <= annotated.keys()
    assert head.target_key in ("labels", "mask", "label")
    _assert_losses(head.train(), features, annotated)
    _assert_results(head.eval(), features, classes)
    rows, parameters = head.class_rows(), dict(head.named_parameters())
    assert rows, "some parameters have a row per class"
    for name, row in rows.items():
        assert len(parameters[name]) == row.groups * (row.private + classes), f"rows of {name}"


def _assert_losses(head: Head, features: Mapping[str, torch.Tensor], annotated: Target) -> None:
    cases: list[list[Target]] = [[annotated, annotated], [annotated, {}], [{}, {}]]
    for targets in cases:
        losses = head.loss(head(features), targets)
        total = torch.stack(list(losses.values())).sum()
        head.zero_grad()
        total.backward()
        assert total.isfinite()
        assert all(p.grad is not None for p in head.parameters()), "a parameter gets no gradient"
        if targets == [{}, {}]:
            assert float(total.detach()) == 0, "images without annotation must add nothing"
    if type(head).loss_normalizer is Head.loss_normalizer:
        return

    def undivided(raw: Mapping[str, torch.Tensor], targets: list[Target]) -> torch.Tensor:
        losses = torch.stack(list(head.loss(raw, targets).values()))
        return losses.sum().detach() * max(head.loss_normalizer(targets, INPUT))

    raw, fixed = head(features), head.constants(INPUT)
    first, second = ({k: v if k in fixed else v[i : i + 1] for k, v in raw.items()} for i in (0, 1))
    torch.testing.assert_close(
        undivided(first, [annotated]) + undivided(second, [annotated]),
        undivided(raw, [annotated, annotated]),
        rtol=1e-4,
        atol=1e-4,
        msg="loss_normalizer() is not what the loss is divided by",
    )


@torch.no_grad()
def _assert_results(head: Head, features: Mapping[str, torch.Tensor], classes: int) -> None:
    frames = [Frame((480, 640), INPUT), Frame((30, 20), (INPUT[0], 43))]
    results = list(head.decode(head(features), frames))
    assert len(results) == 2
    for result, frame in zip(results, frames, strict=True):
        _assert_result(result, *frame.size, classes)
    small = copy.deepcopy(head)
    small.drop_training_parts()
    raw = small.forward_export(features)
    after = small.decode({**raw, **small.constants(INPUT)}, frames)
    torch.testing.assert_close(
        [vars(result) for result in after],
        [vars(result) for result in results],
        msg="drop_training_parts() or forward_export() changes results",
    )
    if type(head).export_outputs is Head.export_outputs:
        return
    for index, (size, used) in enumerate(frames):
        graph_frame = GraphFrame(*size, torch.tensor(size).double(), torch.tensor(used).double())
        outputs = small.export_outputs({**raw, **small.export_constants(INPUT)}, graph_frame, suppress_greedily)
        _assert_same(small.result_from_export(outputs, index), results[index])


def _assert_same(exported: TaskResult, decoded: TaskResult) -> None:
    """Compares what does not depend on the order in which nearly equal scores are taken."""
    assert type(exported) is type(decoded)
    if isinstance(exported, Segmentation) and isinstance(decoded, Segmentation):
        assert float((exported.mask == decoded.mask).float().mean()) > 0.99, "export_outputs() gives another mask"
    elif isinstance(exported, Detections | Scores):
        name = "scores" if isinstance(exported, Detections) else "probabilities"
        torch.testing.assert_close(
            getattr(exported, name), getattr(decoded, name), msg=f"export_outputs() gives other {name}"
        )


def assert_dataset(dataset: Dataset, *, most: int = 20) -> None:
    """Checks that images are uint8 RGB, boxes inside them, labels named, ids different, and that reading repeats."""
    ids = [dataset.image_id(index) for index in range(len(dataset))]
    assert len(set(ids)) == len(ids) > 0, "image ids must differ"
    for index in range(min(most, len(dataset))):
        sample, again = dataset.read(index), dataset.read(index)
        assert sample.image_id == ids[index]
        assert np.array_equal(sample.image, again.image), "an image must read the same twice"
        _assert_sample(sample, dataset.classes)
        for key, value in dataset.target(index).items():
            assert np.array_equal(value, sample.target[key]), f"target() and read() disagree on {key}"


def assert_augmentation(transform: Transform, dataset: Dataset, *, size: tuple[int, int], most: int = 20) -> None:
    """Checks that pictures get the size, boxes stay inside, and the same seed gives the same picture."""
    for index in range(min(most, len(dataset))):
        sample = dataset.read(index)
        before = sample.image.copy()
        image, target = transform(sample, 1000 + index)
        again, _ = transform(sample, 1000 + index)
        assert np.array_equal(before, sample.image), "the sample itself must not change"
        assert np.array_equal(image, again), "the same seed must give the same picture"
        assert image.shape == (*size, 3)
        _assert_sample(Sample(image, target, index), dataset.classes)


def perfect_detections(truth: Mapping[str, Any]) -> Detections:
    """Makes detections that equal the ground truth, for trying an evaluator."""
    boxes = torch.as_tensor(np.array(truth["boxes"], np.float32))
    return Detections(boxes, torch.linspace(1, 0.5, len(boxes)), torch.as_tensor(np.array(truth["labels"], np.int64)))


def _assert_sample(sample: Sample, classes: Mapping[str, list[str]]) -> None:
    height, width = sample.image.shape[:2]
    assert sample.image.dtype == np.uint8
    assert sample.image.shape[2] == 3
    target = sample.target
    if "boxes" in target:
        boxes, labels = target["boxes"], target["labels"]
        assert boxes.dtype == np.float32
        assert boxes.shape == (len(labels), 4) == (len(target["ignore"]), 4)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert (boxes[:, 2:] <= np.array([width, height]) + 1e-3).all()
        assert labels.dtype == np.int64
        assert ((labels >= 0) & (labels < len(classes["labels"]))).all()
    if "mask" in target:
        mask = target["mask"]
        assert mask.shape == (height, width)
        assert ((mask < len(classes["mask"])) | (mask == 255)).all()


def _assert_result(result: object, height: int, width: int, classes: int) -> None:
    if isinstance(result, Detections):
        assert (result.boxes >= 0).all()
        assert (result.boxes <= torch.tensor([width, height, width, height])).all()
        assert ((result.labels >= 0) & (result.labels < classes)).all()
        assert (result.scores[:-1] >= result.scores[1:]).all(), "best first"
    elif isinstance(result, Scores):
        torch.testing.assert_close(result.probabilities.sum(), torch.tensor(1.0))
    elif isinstance(result, Segmentation):
        assert result.mask.dtype == torch.uint8
        assert tuple(result.mask.shape) == (height, width)
        assert int(result.mask.max()) < classes
    else:
        raise AssertionError(f"decode gave {type(result).__name__}")


def peak_memory(work: Callable[[], object]) -> int:
    """Measures by torch's profiler how many bytes torch's allocator on the CPU had given out at most.

    What was allocated when the work began is not counted, and neither are buffers that libraries below torch allocate
    by themselves.

    Args:
        work: Computes something; what it returns is counted, too, until it has returned.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))
