"""Mean IoU against torchmetrics, a plain transcription of the VOC kit and hand counts."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from mnv2det.errors import ConfigError, DataError
from mnv2det.evaluation.evaluator import Evaluator, Truth
from mnv2det.evaluation.miou import MeanIoU, Record
from mnv2det.registry import EVALUATORS
from mnv2det.structures import Detections, Segmentation, TaskResult

Pairs = list[tuple[NDArray[Any], NDArray[Any]]]  # predicted and annotated


def evaluator_of(pairs: Pairs, count: int) -> MeanIoU:
    evaluator = MeanIoU(classes=[f"c{k}" for k in range(count)])
    for number, (predicted, annotated) in enumerate(pairs):
        evaluator.update(number, Segmentation(torch.from_numpy(predicted)), {"mask": annotated})
    return evaluator


def row(*values: int) -> NDArray[np.uint8]:
    return np.array([values], np.uint8)


def random_pairs(seed: int, count: int, images: int = 4) -> Pairs:
    """Masks of several sizes with ignored pixels; some classes in one of both or in neither."""
    rng = np.random.default_rng(seed)
    shown = rng.choice(count, max(1, count * 2 // 3), replace=False)  # annotated
    drawn = rng.choice(count, max(1, count * 2 // 3), replace=False)  # predicted where it is wrong
    pairs = []
    for _ in range(images):
        size = tuple(rng.integers(3, 60, 2))
        annotated = rng.choice(shown, size).astype(np.uint8)
        predicted = np.where(rng.random(size) < 0.6, annotated, rng.choice(drawn, size)).astype(np.uint8)
        annotated[rng.random(size) < 0.2] = 255
        pairs.append((predicted, annotated))
    return pairs


def torchmetrics_metrics(pairs: Pairs, count: int) -> dict[str, float]:
    given: dict[str, Any] = {"num_classes": count, "ignore_index": 255}
    metrics = {
        "mIoU": MulticlassJaccardIndex(**given),
        "pixel_accuracy": MulticlassAccuracy(**given, average="micro"),
        "fw_IoU": MulticlassJaccardIndex(**given, average="weighted"),
    }
    each, recall = MulticlassJaccardIndex(**given, average=None), MulticlassAccuracy(**given, average=None)
    matrix = MulticlassConfusionMatrix(**given)
    for predicted, annotated in pairs:
        for metric in (*metrics.values(), each, recall, matrix):
            metric.update(torch.from_numpy(predicted).long()[None], torch.from_numpy(annotated).long()[None])
    confusion = matrix.compute()
    annotated_at_all = confusion.sum(1) > 0
    metrics = {name: float(metric.compute()) for name, metric in metrics.items()}
    metrics["mean_accuracy"] = float(recall.compute()[annotated_at_all].mean())
    seen = annotated_at_all | (confusion.sum(0) > 0)
    return metrics | {f"IoU/c{k}": float(v) if seen[k] else -1.0 for k, v in enumerate(each.compute())}


def kit(pairs: Pairs, count: int) -> tuple[NDArray[np.float64], list[float]]:
    """VOCevalseg.m, line by line: the raw counts and the classes' accuracies."""
    counts = np.zeros((count, count))
    for resim, gtim in pairs:
        for result, truth in zip(resim.ravel().tolist(), gtim.ravel().tolist(), strict=True):
            if truth < 255:
                counts[truth, result] += 1
    accuracies = []
    for j in range(count):
        union = counts[j, :].sum() + counts[:, j].sum() - counts[j, j]
        accuracies.append(counts[j, j] / union if union else float("nan"))
    return counts, accuracies


@pytest.mark.parametrize("count", [2, 3, 21, 150])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_torchmetrics(seed: int, count: int) -> None:
    pairs = random_pairs(seed, count)
    evaluator = evaluator_of(pairs, count)
    matrix = MulticlassConfusionMatrix(num_classes=count, ignore_index=255)
    for predicted, annotated in pairs:
        matrix.update(torch.from_numpy(predicted).long(), torch.from_numpy(annotated).long())
    assert evaluator.confusion.dtype == np.int64
    np.testing.assert_array_equal(evaluator.confusion, matrix.compute().numpy())
    assert evaluator.compute() == pytest.approx(torchmetrics_metrics(pairs, count), abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.uint8, (4, 5), elements=st.integers(0, 3)),
    arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 2, 3, 255])),
)
def test_it_is_the_development_kits(predicted: NDArray[np.uint8], annotated: NDArray[np.uint8]) -> None:
    evaluator = evaluator_of([(predicted, annotated)], 4)
    counts, accuracies = kit([(predicted, annotated)], 4)
    metrics = evaluator.compute()
    np.testing.assert_array_equal(evaluator.confusion, counts)
    wanted = [-1.0 if np.isnan(value) else value for value in accuracies]
    assert [metrics[f"IoU/c{k}"] for k in range(4)] == pytest.approx(wanted, abs=1e-12)
    if not np.isnan(accuracies).any():
        assert metrics["mIoU"] == pytest.approx(np.mean(accuracies), abs=1e-12)


def test_one_class_alone() -> None:
    assert evaluator_of([(row(0, 0), row(0, 255))], 1).compute()["mIoU"] == 1


def test_metrics_counted_by_hand() -> None:
    # 4 pixels of class 0 (3 right), 2 of class 1 (1 right), 1 ignored
    evaluator = evaluator_of([(row(0, 0, 0, 1, 1, 0, 1), row(0, 0, 0, 0, 1, 1, 255))], 2)
    assert evaluator.confusion.tolist() == [[3, 1], [1, 1]]
    metrics = evaluator.compute()
    assert list(metrics) == ["mIoU", "pixel_accuracy", "mean_accuracy", "fw_IoU", "IoU/c0", "IoU/c1"]
    wanted = [(3 / 5 + 1 / 3) / 2, 4 / 6, (3 / 4 + 1 / 2) / 2, (4 * 3 / 5 + 2 * 1 / 3) / 6, 3 / 5, 1 / 3]
    assert list(metrics.values()) == pytest.approx(wanted, abs=1e-12)
    assert evaluator.main == "mIoU"


def test_a_class_predicted_but_not_annotated_counts_as_zero() -> None:
    metrics = evaluator_of([(row(0, 0, 0, 2), row(0, 0, 0, 0))], 3).compute()
    assert metrics["IoU/c2"] == 0
    assert metrics["mIoU"] == pytest.approx((3 / 4 + 0) / 2)
    assert metrics["mean_accuracy"] == pytest.approx(3 / 4)  # of annotated classes alone
    assert metrics["fw_IoU"] == pytest.approx(3 / 4)


def test_a_class_annotated_but_not_predicted_counts_as_zero() -> None:
    metrics = evaluator_of([(row(0, 0, 0, 0), row(0, 0, 0, 2))], 3).compute()
    assert metrics["IoU/c2"] == 0
    assert metrics["mIoU"] == pytest.approx((3 / 4 + 0) / 2)
    assert metrics["mean_accuracy"] == pytest.approx((1 + 0) / 2)


def test_a_class_in_neither_is_left_out() -> None:
    metrics = evaluator_of([(row(0, 0, 2, 2), row(0, 0, 2, 2))], 3).compute()
    assert metrics["IoU/c1"] == -1
    assert metrics["mIoU"] == metrics["mean_accuracy"] == metrics["fw_IoU"] == 1


def test_a_class_predicted_only_where_nothing_counts_is_left_out() -> None:
    metrics = evaluator_of([(row(0, 0, 1), row(0, 0, 255))], 2).compute()
    assert metrics == {
        "mIoU": 1,
        "pixel_accuracy": 1,
        "mean_accuracy": 1,
        "fw_IoU": 1,
        "IoU/c0": 1,
        "IoU/c1": -1,
    }


@pytest.mark.parametrize("pairs", [[], [(row(0, 1), row(255, 255))]], ids=["no image", "all ignored"])
def test_without_pixels_every_metric_is_undefined(pairs: Pairs) -> None:
    metrics = evaluator_of(pairs, 2).compute()
    assert len(metrics) == 6
    assert set(metrics.values()) == {-1.0}


def test_pixels_are_counted_over_all_images_not_averaged_over_them() -> None:
    big, small = np.zeros((10, 10), np.uint8), np.ones((1, 1), np.uint8)
    metrics = evaluator_of([(big, big), (np.zeros_like(small), small)], 2).compute()
    assert metrics["IoU/c0"] == pytest.approx(100 / 101)
    assert metrics["pixel_accuracy"] == pytest.approx(100 / 101)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("count", [21, 255])
def test_types_and_memory_order_of_masks_do_not_matter(dtype: type, count: int) -> None:
    (predicted, annotated), *_ = random_pairs(7, count)
    wanted = evaluator_of([(predicted, annotated)], count)
    turned: NDArray[Any] = np.asfortranarray(annotated.astype(dtype))
    found = evaluator_of([(predicted.astype(dtype), turned)], count)
    assert found.compute() == wanted.compute()
    np.testing.assert_array_equal(found.confusion, wanted.confusion)


@pytest.mark.parametrize("split", [0, 1, 3, 7])
def test_records_of_processes_join_exactly(split: int) -> None:
    pairs = random_pairs(3, 6, images=7)
    alone = evaluator_of(pairs, 6)
    sides = [MeanIoU(classes=alone.classes) for _ in range(2)]
    # the last process repeats the first image, as a sampler that pads does
    for side, numbers in zip(sides, (range(split), [*range(split, 7), 0]), strict=True):
        for number in numbers:
            predicted, annotated = pairs[number]
            side.update(number, Segmentation(torch.from_numpy(predicted)), {"mask": annotated})
    sent = [pickle.loads(pickle.dumps(side.records)) for side in sides]
    for side in sides:
        for records in sent:
            side.records.update(records)
        assert side.compute() == alone.compute()
        np.testing.assert_array_equal(side.confusion, alone.confusion)


def test_an_image_seen_again_replaces_its_record() -> None:
    evaluator = evaluator_of([(row(0, 1), row(0, 1))], 2)
    evaluator.update(0, Segmentation(torch.from_numpy(row(1, 1))), {"mask": row(0, 1)})
    assert evaluator.confusion.tolist() == [[0, 1], [0, 1]]


def test_records_are_sparse_and_plain() -> None:
    evaluator = evaluator_of([(row(0, 2, 2, 1), row(0, 1, 1, 255))], 3)
    assert evaluator.records.keys() == {0}
    record = evaluator.records[0]
    assert isinstance(record, Record)
    assert [array.dtype for array in record] == [np.int64, np.int64]
    assert [array.tolist() for array in record] == [[0, 5], [1, 2]]


def test_an_image_without_a_mask_adds_nothing() -> None:
    evaluator = MeanIoU(classes=["a", "b"])
    evaluator.update(1, Segmentation(torch.zeros(2, 2, dtype=torch.uint8)), {"boxes": np.zeros((0, 4), np.float32)})
    assert evaluator.records == {}
    assert evaluator.compute()["mIoU"] == -1


@pytest.mark.parametrize("value", [3, 255])
def test_a_predicted_value_without_class_is_named(value: int) -> None:
    with pytest.raises(DataError, match=f"^image 2007_1: predicted mask has value {value}, but there are 3 classes$"):
        # also where the truth is ignored: such a mask is broken
        _update("2007_1", row(0, value), row(0, 255))


@pytest.mark.parametrize("value", [3, 254])
def test_an_annotated_value_without_class_is_named(value: int) -> None:
    with pytest.raises(DataError, match=f"^image 5: annotated mask has value {value}, but there are 3 classes$"):
        _update(5, row(0, 1), row(0, value))


@pytest.mark.parametrize("value", [-1, 256, 70000])
def test_a_value_that_is_no_byte_is_named(value: int) -> None:
    with pytest.raises(DataError, match=f"^image 5: annotated mask has value {value}, expected 0 to 255$"):
        _update(5, row(0, 1), np.array([[0, value]], np.int64))
    with pytest.raises(DataError, match=f"^image 5: predicted mask has value {value}, expected 0 to 255$"):
        _update(5, np.array([[0, value]], np.int64), row(0, 1))


def test_a_mask_of_fractions_is_named() -> None:
    with pytest.raises(DataError, match=r"^image 5: predicted mask has type float32, expected integers$"):
        _update(5, np.zeros((1, 2), np.float32), row(0, 1))


def test_masks_of_different_size_are_named() -> None:
    message = r"^image 5: predicted mask has shape \(2, 3\), annotated mask \(3, 2\); expected both \(H, W\)$"
    with pytest.raises(DataError, match=message):
        _update(5, np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    with pytest.raises(DataError, match=r"shape \(1, 2, 3\)"):
        _update(5, np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2, 3), np.uint8))


def test_other_results_and_too_many_classes_are_refused() -> None:
    detections = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"^evaluator MeanIoU needs masks, the head gives Detections$"):
        MeanIoU(classes=["a"]).update(1, detections, {"mask": row(0)})
    with pytest.raises(ConfigError, match="at most 255 classes, there are 256"):
        MeanIoU(classes=[str(k) for k in range(256)])


def test_the_report_is_plain_data() -> None:
    evaluator = EVALUATORS.build("miou", {}, place="tasks.seg.evaluator", classes=["sky", "road"])
    evaluator.update(1, Segmentation(torch.from_numpy(row(0, 1, 1))), {"mask": row(0, 1, 0)})
    assert json.loads(json.dumps(evaluator.report())) == {"confusion": [[1, 1], [0, 1]], "classes": ["sky", "road"]}


def test_other_evaluators_report_nothing() -> None:
    class Silent(Evaluator):
        main = "none"

        def update(self, image_id: int | str, result: TaskResult, truth: Truth) -> None: ...

        def compute(self) -> dict[str, float]:
            return {}

    assert Silent(classes=["a"]).report() == {}


def _update(image_id: int | str, predicted: NDArray[Any], annotated: NDArray[Any]) -> None:
    evaluator = MeanIoU(classes=["a", "b", "c"])
    try:
        evaluator.update(image_id, Segmentation(torch.from_numpy(predicted)), {"mask": annotated})
    finally:
        assert evaluator.records == {}  # nothing of a broken image counts
