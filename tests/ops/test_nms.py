import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch.testing import assert_close
from torchvision.ops import nms

from mnv2det.ops import nms as ours
from mnv2det.ops.nms import class_nms, suppress_greedily


def random_boxes(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2) * 200
    return torch.cat([corner, corner + 20 + torch.rand(count, 2) * 60], dim=1)


def by_loop(boxes, scores, threshold, iou, most):
    """Class after class, then the best of all: what class_nms does at once."""
    rows = []
    for label in range(scores.shape[1]):
        inside = (scores[:, label] > threshold).nonzero()[:, 0]
        kept = inside[nms(boxes[inside], scores[inside, label], iou)].tolist()
        rows += [(float(scores[index, label]), label, boxes[index].tolist()) for index in kept]
    return sorted(rows, reverse=True)[:most]


def find(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, **more: int):
    return class_nms(
        boxes.numpy().__getitem__, scores.numpy(), score_threshold=threshold, nms_iou=0.5, max_detections=50, **more
    )


@pytest.mark.parametrize("step", [4, 64, 10_000])
@pytest.mark.parametrize("threshold", [1e-8, 0.7, 0.99])
@pytest.mark.parametrize("count", [200, 210])  # with and without rows that fill no group
def test_nms_agrees_with_a_loop_over_classes(step: int, threshold: float, count: int):
    boxes, scores = random_boxes(count), torch.rand(count, 5)
    found, best, labels = find(boxes, scores, threshold, step=step)
    expected = by_loop(boxes, scores, threshold, 0.5, 50)
    assert best.tolist() == [row[0] for row in expected]
    assert labels.tolist() == [row[1] for row in expected]
    assert found.tolist() == [row[2] for row in expected]


def test_columns_before_the_first_class_are_not_read():
    boxes, scores = random_boxes(210), torch.rand(210, 5)
    with_background = torch.cat([torch.full((210, 2), 9.0), scores], dim=1)
    for mine, expected in zip(find(boxes, with_background, 0.1, first_class=2), find(boxes, scores, 0.1), strict=True):
        assert_array_equal(mine, expected)


def test_nothing_above_the_threshold_gives_empty_arrays():
    boxes, scores, labels = find(torch.rand(9, 4), torch.zeros(9, 3), 0.1)
    assert boxes.shape == (0, 4)
    assert scores.shape == labels.shape == (0,)


def test_classes_do_not_suppress_each_other():
    assert find(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.9, 0.8]]), 0.0)[2].tolist() == [0, 1]


def test_greedy_suppression_of_a_batch_keeps_what_class_nms_keeps():
    boxes, scores = torch.stack([random_boxes(80), random_boxes(80)]), torch.rand(2, 80, 3)
    kept = suppress_greedily(boxes, scores.transpose(1, 2), 0.5, 0.3, 50)
    assert kept.shape == (2, 3, 80)
    for image in range(2):
        _, best, labels = find(boxes[image], scores[image], 0.3)
        values = kept[image][kept[image] > 0].sort(descending=True).values
        assert_close(values, torch.from_numpy(best))
        for label in range(3):
            assert int((kept[image, label] > 0).sum()) == int((labels == label).sum())


def test_without_its_library_alone_torchvision_is_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ours.torch.ops, "load_library", lambda path: (_ for _ in ()).throw(OSError(path)))
    assert ours._nms_kernel.__wrapped__() is nms


@pytest.mark.process
def test_nms_does_not_import_torchvision():
    code = (
        "import sys, numpy as np; from mnv2det.ops.nms import class_nms;"
        "class_nms(np.zeros((1, 4), np.float32).__getitem__, np.ones((1, 1), np.float32),"
        " score_threshold=0, nms_iou=0.5, max_detections=1); print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_boxes_are_computed_only_for_the_candidates_looked_at():
    asked: list[int] = []
    boxes = random_boxes(3000).numpy()

    def compute(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return boxes[rows]

    scores = torch.rand(3000, 4).numpy()
    class_nms(compute, scores, score_threshold=0.0, nms_iou=0.9, max_detections=10)
    assert asked == [192]
