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
from mnv2det.structures import Detections, Frame, Sample, Scores, Segmentation


def assert_backbone(backbone: Backbone) -> None:
    """Every feature has the channels and stride that ``features`` states, in train and eval mode."""
    taps = list(backbone.features)
    assert "image" in taps, "a backbone offers its input as feature 'image'"
    for training in (True, False):
        backbone.train(training)
        found = backbone(torch.rand(2, 3, 64, 96), taps)
        assert list(found) == taps
        for tap in taps:
            info = backbone.features[tap]
            wanted = (2, info.channels, -(-64 // info.stride), -(-96 // info.stride))
            assert tuple(found[tap].shape) == wanted, f"feature {tap}: {tuple(found[tap].shape)}, stated {wanted}"
    names = [name for name, _ in backbone.stages()]
    assert len(set(names)) == len(names), "stages need different names"
    owned = {id(p) for _, stage in backbone.stages() for p in stage.parameters()}
    assert owned == {id(p) for p in backbone.parameters()}, "stages hold every parameter"


def assert_head(kind: type[Head], backbone: Backbone, *, classes: int = 3) -> None:
    """Raw tensors alike in train and eval mode, finite losses with gradients, results in range, the same if folded."""
    head = kind(backbone.features, classes=classes)
    features = backbone.eval()(torch.rand(2, 3, 64, 96), head.taps)
    shapes = [{key: tuple(value.shape) for key, value in head.train(mode)(features).items()} for mode in (True, False)]
    assert shapes[0] == shapes[1], "raw tensors differ between train and eval mode"
    annotated: dict[str, torch.Tensor] = {
        "boxes": torch.tensor([[4.0, 4, 40, 50]]),
        "labels": torch.tensor([classes - 1]),
        "ignore": torch.tensor([False]),
        "mask": torch.randint(0, classes, (64, 96)),
        "label": torch.tensor(classes - 1),
    }
    assert set(head.needs) <= annotated.keys()
    assert head.target_key in ("labels", "mask", "label")
    cases: list[list[Any]] = [[annotated, annotated], [annotated, {}], [{}, {}]]
    for targets in cases:
        losses = head.train().loss(head(features), targets)
        total = torch.stack(list(losses.values())).sum()
        head.zero_grad()
        total.backward(retain_graph=True)
        assert total.isfinite()
        assert all(p.grad is not None for p in head.parameters()), "a parameter gets no gradient"
        if targets == [{}, {}]:
            assert float(total.detach()) == 0, "images without annotation must add nothing"
    with torch.no_grad():
        frames = [Frame((480, 640), (64, 96)), Frame((30, 20), (64, 43))]
        results = head.eval().decode(head(features), frames)
    assert len(results) == 2
    for result, (height, width) in zip(results, [(480, 640), (30, 20)], strict=True):
        _assert_result(result, height, width, classes)
    with torch.no_grad():
        folded = copy.deepcopy(head)
        folded.fold()
        after = folded.decode({**folded.forward_export(features), **folded.constants((64, 96))}, frames)
    torch.testing.assert_close([vars(r) for r in after], [vars(r) for r in results], msg="fold() changes results")


def assert_dataset(dataset: Dataset, *, most: int = 20) -> None:
    """Images are uint8 RGB, boxes inside them, labels have names, ids differ, reading repeats itself."""
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
    """The output has the size, boxes stay inside, and the same seed gives the same picture."""
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
    """Detections that equal the ground truth, for trying an evaluator."""
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
