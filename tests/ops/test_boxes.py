import numpy as np
import pytest
import torch
from closeness import assert_same_numbers
from torch.testing import assert_close
from torchvision.ops import box_iou

from mnv2det.ops.anchors import level_shapes, make_anchors
from mnv2det.ops.boxes import area, clip_boxes, decode, decode_numpy, encode, intersection


def random_boxes(*shape: int, size: float = 300.0) -> torch.Tensor:
    corner = torch.rand(*shape, 2) * size * 0.7
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2) * size * 0.3], dim=-1)


def test_decode_inverts_encode():
    boxes, anchors = random_boxes(3, 50).double(), random_boxes(50).double()
    assert_same_numbers(decode(encode(boxes, anchors), anchors), boxes)


def test_decoding_a_few_within_an_image_is_decoding_and_cutting():
    codes, anchors = torch.randn(40, 4) * 8, random_boxes(40)
    codes[0] = 1e4  # more than exp() can take
    boxes = decode_numpy(codes.numpy(), anchors.numpy())
    assert boxes.dtype == np.float32
    assert_same_numbers(torch.from_numpy(boxes), decode(codes, anchors), within=1e-6)


def test_clipping_cuts_boxes_to_the_image():
    boxes = np.array([[-5, -6, 400, 300], [10, 20, 30, 40]], np.float32)
    assert clip_boxes(boxes, (200, 300)).tolist() == [[0, 0, 300, 200], [10, 20, 30, 40]]


def test_box_code_is_the_published_one():
    # anchor 100x50 centred at (60, 35); box 20 right, 5 down, twice as wide and as high
    anchor = torch.tensor([[10.0, 10.0, 110.0, 60.0]])
    box = torch.tensor([[-20.0, -10.0, 180.0, 90.0]])
    log2 = torch.log(torch.tensor(2.0))
    assert_close(encode(box, anchor), torch.tensor([[2.0, 1.0, 5 * log2, 5 * log2]]))


def test_encode_and_decode_stay_finite_at_the_extremes():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert encode(torch.tensor([[3.0, 3.0, 3.0, 3.0]]), anchors).isfinite().all()
    assert decode(torch.full((1, 4), 1e4), anchors).isfinite().all()


def test_intersection_agrees_with_torchvision_batched():
    first, second = random_boxes(2, 20).double(), random_boxes(2, 30).double()
    shared = intersection(first, second)
    iou = shared / (area(first)[:, :, None] + area(second)[:, None] - shared)
    assert_close(iou, torch.stack([box_iou(a, b) for a, b in zip(first, second, strict=True)]))


@pytest.mark.parametrize(("size", "count"), [(300, 1917), (320, 2034)])
def test_anchor_count_is_published(size: int, count: int):
    first = -(-size // 16)
    maps = [first]
    for _ in range(5):
        maps.append(-(-maps[-1] // 2))
    anchors = make_anchors(tuple((n, n) for n in maps), level_shapes(6), (size, size))
    assert anchors.shape == (count, 4)


def test_anchor_scales_are_published():
    shapes = level_shapes(6)
    assert [len(level) for level in shapes] == [3, 6, 6, 6, 6, 6]
    assert_close(torch.tensor([level[0][0] for level in shapes[1:]]), torch.tensor([0.35, 0.5, 0.65, 0.8, 0.95]))
    assert shapes[0] == ((0.1, 1.0), (0.2, 2.0), (0.2, 0.5))
    assert shapes[5][5] == (pytest.approx(0.95**0.5), 1.0)


def test_anchors_are_centred_on_cells_and_keep_pixel_ratios_off_square():
    (anchor, *_) = make_anchors(((2, 4),), (((0.5, 2.0),),), (100, 200))
    center, size = (anchor[:2] + anchor[2:]) / 2, anchor[2:] - anchor[:2]
    assert_close(center, torch.tensor([25.0, 25.0]))
    assert_close(size[0] / size[1], torch.tensor(2.0))
    assert_close(size.prod().sqrt(), torch.tensor(50.0))  # half of the shorter side


def test_anchors_by_cells_lie_where_those_count_but_not_beyond_the_edge():
    anchors = make_anchors(((3, 2),), (((0.5, 1.0),),), (100, 200), (40.0,))
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    ys, xs = (20.0, 60.0, 100.0), (20.0, 60.0)
    assert_close(center, torch.tensor([[x, y] for y in ys for x in xs]))
    past = make_anchors(((3, 2),), (((0.5, 1.0),),), (90, 200), (40.0,))
    assert_close((past[-1, 1] + past[-1, 3]) / 2, torch.tensor(90.0))
