import torch
from torchvision.ops import box_iou

from mnv2det.ops.anchors import level_shapes, make_anchors
from mnv2det.ops.matcher import IGNORED, NEGATIVE, match

ANCHORS = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 10, 20], [100, 100, 110, 110]])


def run(boxes: list[list[float]], *, ignore: list[bool] | None = None, valid: list[bool] | None = None) -> list[int]:
    count = len(boxes)
    return match(
        ANCHORS,
        torch.tensor(boxes).view(1, count, 4),
        torch.tensor(valid or [True] * count).view(1, count),
        torch.tensor(ignore or [False] * count).view(1, count),
    )[0].tolist()


def test_iou_above_threshold_matches():
    assert run([[0.0, 0, 10, 9]]) == [0, NEGATIVE, NEGATIVE, NEGATIVE]


def test_every_box_forces_its_best_anchor_even_below_threshold():
    assert run([[0.0, 0, 3, 3]]) == [0, NEGATIVE, NEGATIVE, NEGATIVE]


def test_the_first_of_two_boxes_that_force_one_anchor_gets_it():
    assert run([[0.0, 0, 2, 2], [0.0, 0, 3, 3]])[0] == 0
    assert run([[0.0, 0, 3, 3], [0.0, 0, 2, 2]])[0] == 0


def test_a_forced_match_wins_over_a_better_overlap():
    # box 1 overlaps anchor 0 best of all, but anchor 0 is box 0's only hope
    matched = run([[0.0, 0, 4, 4], [0.0, 0, 10, 10]])
    assert matched[0] == 0


def test_padding_and_boxes_without_area_never_match():
    assert run([[0.0, 0, 10, 10]], valid=[False]) == [NEGATIVE] * 4
    assert run([[5.0, 5, 5, 5]]) == [NEGATIVE] * 4
    assert run([[8.0, 0, 2, 10]]) == [NEGATIVE] * 4


def test_no_boxes_at_all():
    empty = torch.zeros(2, 0, 4)
    flags = torch.zeros(2, 0, dtype=torch.bool)
    assert (match(ANCHORS, empty, flags, flags) == NEGATIVE).all()


def test_an_anchor_inside_a_crowd_is_ignored_and_never_positive():
    assert run([[0.0, 0, 20, 10]], ignore=[True]) == [IGNORED, IGNORED, NEGATIVE, NEGATIVE]


def test_a_match_beats_a_crowd():
    assert run([[0.0, 0, 20, 20], [0.0, 0, 10, 10]], ignore=[True, False]) == [1, IGNORED, IGNORED, NEGATIVE]


def test_a_box_no_anchor_touches_forces_none():
    assert run([[50.0, 50, 60, 60]]) == [NEGATIVE] * 4


def test_batch_agrees_with_a_plain_loop():
    anchors = make_anchors(((6, 6), (3, 3)), level_shapes(2), (96, 96))
    corner = torch.rand(8, 5, 2) * 60
    boxes = torch.cat([corner, corner + 4 + torch.rand(8, 5, 2) * 40], dim=-1)
    valid = torch.rand(8, 5) > 0.3
    matched = match(anchors, boxes, valid, torch.zeros_like(valid))
    for image in range(8):
        expected = [NEGATIVE] * len(anchors)
        kept = [number for number in range(5) if valid[image, number]]
        if kept:
            iou = box_iou(anchors, boxes[image, kept])
            for anchor in range(len(anchors)):
                best = int(iou[anchor].argmax())
                if iou[anchor, best] >= 0.5:
                    expected[anchor] = kept[best]
            for column in reversed(range(len(kept))):  # the first box has the last word
                expected[int(iou[:, column].argmax())] = kept[column]
        assert matched[image].tolist() == expected
