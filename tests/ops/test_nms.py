import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import nms

from mnv2det.ops.nms import class_nms


def by_loop(boxes, scores, threshold, iou, keep):
    """Class after class, then the best of all: what class_nms does at once."""
    rows = []
    for label in range(scores.shape[1]):
        inside = (scores[:, label] > threshold).nonzero()[:, 0]
        kept = inside[nms(boxes[inside], scores[inside, label], iou)].tolist()
        rows += [(float(scores[index, label]), label, boxes[index].tolist()) for index in kept]
    return sorted(rows, reverse=True)[:keep]


@pytest.mark.parametrize("first", [4, 64, 10_000])
@pytest.mark.parametrize("threshold", [1e-8, 0.7, 0.99])
@pytest.mark.parametrize("count", [200, 210])  # with and without rows that fill no group
def test_agrees_with_a_loop_over_classes(first: int, threshold: float, count: int):
    corner = torch.rand(count, 2) * 200
    boxes = torch.cat([corner, corner + 20 + torch.rand(count, 2) * 60], dim=1)
    scores = torch.rand(count, 5)
    found, best, labels = class_nms(boxes, scores, threshold=threshold, iou=0.5, keep=50, first=first)
    wanted = by_loop(boxes, scores, threshold, 0.5, 50)
    assert_close(best, torch.tensor([row[0] for row in wanted]))
    assert labels.tolist() == [row[1] for row in wanted]
    assert_close(found, torch.tensor([row[2] for row in wanted]))


def test_nothing_above_the_threshold():
    found, best, labels = class_nms(torch.rand(9, 4), torch.zeros(9, 3), threshold=0.1, iou=0.5, keep=10)
    assert found.shape == (0, 4)
    assert best.shape == labels.shape == (0,)


def test_classes_do_not_suppress_each_other():
    box = torch.tensor([[0.0, 0, 10, 10]])
    assert class_nms(box, torch.tensor([[0.9, 0.8]]), threshold=0.0, iou=0.5, keep=10)[2].tolist() == [0, 1]
