from __future__ import annotations

import numpy as np
import pytest
import torch

from mnv2det.errors import ConfigError, DataError
from mnv2det.evaluation.topk import TopK
from mnv2det.structures import Scores, Segmentation

NAMES = [f"c{number}" for number in range(8)]


def evaluator(scores: torch.Tensor, labels: list[int]) -> TopK:
    found = TopK(classes=NAMES)
    for number, (row, label) in enumerate(zip(scores, labels, strict=True)):
        found.update(number, Scores(row), {"label": np.array(label)})
    return found


def test_shares_are_those_of_torchmetrics():
    from torchmetrics.classification import MulticlassAccuracy

    scores = torch.randn(200, 8).softmax(dim=1)
    labels = torch.randint(0, 8, (200,))
    labels[:120] = scores[:120].argmax(dim=1)
    metrics = evaluator(scores, labels.tolist()).compute()
    for name, top_k, average in (("top1", 1, "micro"), ("top5", 5, "micro"), ("mean_class", 1, "macro")):
        metric = MulticlassAccuracy(num_classes=8, top_k=top_k, average=average)
        assert metrics[name] == pytest.approx(float(metric(scores, labels)), abs=1e-6)
    each = MulticlassAccuracy(num_classes=8, average="none")(scores, labels)
    np.testing.assert_allclose([metrics[f"top1/{name}"] for name in NAMES], each.numpy(), atol=1e-6)


def test_equal_scores_and_nan_do_not_count_as_found():
    equal = torch.full((1, 8), 0.125)
    assert evaluator(equal, [0]).compute()["top1"] == 0
    assert evaluator(equal, [0]).compute()["top5"] == 0
    assert evaluator(torch.full((1, 8), torch.nan), [0]).compute()["top1"] == 0


def test_images_without_a_class_are_left_out_and_of_none_nothing_is_known():
    found = evaluator(torch.eye(8)[:2], [0, 3])
    found.update("x", Scores(torch.eye(8)[0]), {})
    assert found.compute()["top1"] == 0.5
    assert found.compute()["top1/c1"] == -1
    assert found.report()["confusion"][3][1] == 1
    empty = TopK(classes=NAMES)
    assert set(empty.compute()) == set(found.compute())
    assert set(empty.compute().values()) == {-1.0}


def test_what_is_not_a_class_is_refused():
    found = TopK(classes=NAMES)
    with pytest.raises(DataError, match="image 3: annotated label 8, but there are 8 classes"):
        found.update(3, Scores(torch.rand(8)), {"label": np.array(8)})
    with pytest.raises(ConfigError, match="needs classes of pictures, the head gives Segmentation"):
        found.update(3, Segmentation(torch.zeros(1, 1, dtype=torch.uint8)), {"label": np.array(0)})


def test_of_many_classes_only_the_means_are_reported():
    found = TopK(classes=[str(number) for number in range(1000)])
    found.update(0, Scores(torch.eye(1000)[7]), {"label": np.array(7)})
    assert found.compute() == {"top1": 1.0, "top5": 1.0, "mean_class": 1.0}
    assert found.report() == {}
