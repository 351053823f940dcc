import math

import pytest
import torch
from torch.testing import assert_close

from mnv2det.ops.detections import DetectionSettings, detect, detect_in_graph
from mnv2det.ops.geometry import GraphFrame
from mnv2det.ops.nms import suppress_greedily
from mnv2det.structures import Frame

FRAMES = [Frame((480, 640), (96, 128)), Frame((50, 40), (96, 77)), Frame((96, 128), (96, 128))]


def boxes_and_logits(count: int = 150, columns: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    corner = torch.rand(count, 2) * 120 - 20
    return torch.cat([corner, corner + 5 + torch.rand(count, 2) * 60], dim=1), torch.randn(count, columns) * 3


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("clip_after_nms", [False, True])
def test_a_graph_finds_what_numpy_finds(frame: Frame, softmax: bool, clip_after_nms: bool):
    settings = DetectionSettings(score_threshold=0.3, nms_iou=0.4, max_detections=60, clip_after_nms=clip_after_nms)
    boxes, logits = boxes_and_logits()
    result = detect(boxes.numpy(), logits, frame, settings, softmax=softmax, first_class=1)
    assert 5 < len(result.scores) <= 60
    assert (result.boxes <= torch.tensor([frame.size[1], frame.size[0]] * 2)).all()
    scores = (logits.softmax(1) if softmax else logits.sigmoid())[None, :, 1:]
    size, used = (torch.tensor(side, dtype=torch.float64) for side in frame)
    outputs = detect_in_graph(boxes[None], scores, GraphFrame(*frame.size, size, used), settings, suppress_greedily)
    count = int(outputs["count"][0])
    assert count == len(result.scores)
    assert_close(outputs["scores"][0, :count], result.scores)
    assert_close(outputs["labels"][0, :count], result.labels)
    assert_close(outputs["boxes"][0, :count], result.boxes, rtol=1e-5, atol=1e-4)
    assert not outputs["scores"][0, count:].any()


def test_boxes_are_cut_to_the_part_that_shows_the_picture_before_suppression():
    # the same within the picture, different in what is filled
    boxes = torch.tensor([[10.0, 10, 40, 90], [10.0, 10, 300, 90]])
    settings = DetectionSettings(score_threshold=0.1, nms_iou=0.5, max_detections=10)
    result = detect(boxes.numpy(), torch.tensor([[2.0], [1.0]]), Frame((96, 40), (96, 40)), settings)
    assert result.boxes.tolist() == [[10, 10, 40, 90]]


def test_boxes_can_be_cut_after_suppression():
    boxes = torch.tensor([[10.0, 10, 40, 90], [-5.0, 10, 300, 99]])
    settings = DetectionSettings(score_threshold=0.1, nms_iou=0.5, max_detections=10, clip_after_nms=True)
    result = detect(boxes.numpy(), torch.tensor([[2.0], [1.0]]), Frame((96, 40), (96, 40)), settings)
    assert result.boxes.tolist() == [[10, 10, 40, 90], [0, 10, 40, 96]]


def test_equal_scores_are_taken_in_the_order_of_boxes_then_of_classes():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10]])
    settings = DetectionSettings(score_threshold=0.1, nms_iou=0.5, max_detections=3)
    result = detect(boxes.numpy(), torch.zeros(2, 2), Frame((32, 32), (32, 32)), settings)
    assert result.labels.tolist() == [0, 1, 0]
    assert result.boxes[:, 0].tolist() == [0, 0, 20]


@pytest.mark.parametrize("softmax", [False, True])
def test_the_score_threshold_is_compared_as_a_logit(softmax: bool):
    def least(threshold: float) -> float:
        return DetectionSettings(threshold, 0.5, 10).least_logit(softmax=softmax)

    assert least(0.0) == -math.inf
    assert least(1.0) == (0.0 if softmax else math.inf)
    assert least(0.25) == pytest.approx(math.log(0.25) if softmax else math.log(1 / 3))
