import re

import pytest
import torch
from torch.testing import assert_close

from mnv2det.models.ssdlite import SSDLite
from mnv2det.ops.anchors import level_shapes
from mnv2det.registry import HEADS
from mnv2det.structures import FeatureInfo

FEATURES = {"a": FeatureInfo(16, 16), "b": FeatureInfo(24, 32)}
GIVEN = (((0.15, 1.0), (0.15, 4.0)), ((0.4, 0.5),), ((0.9, 1.0), (0.9, 2.0), (1.2, 1.0)))


def head(**hyper: object) -> SSDLite:
    return SSDLite(FEATURES, classes=2, taps=("a", "b"), extras=(16,), **hyper)


def raw(of: SSDLite) -> dict[str, torch.Tensor]:
    return of({"image": torch.zeros(1, 3, 64, 96), "a": torch.randn(1, 16, 4, 6), "b": torch.randn(1, 24, 2, 3)})


def test_listed_anchors_are_those_of_the_head():
    out = raw(head(anchors=GIVEN))
    cells = (4 * 6, 2 * 3, 1 * 2)
    assert out["logits"].shape == (1, 2 * cells[0] + cells[1] + 3 * cells[2], 3)
    assert out["codes"].shape[:2] == out["logits"].shape[:2]
    boxes = out["anchors"]
    # sides relative to the shorter one, 64; a cell of the finest level is 16 wide
    assert_close(boxes[1], torch.tensor([8 - 9.6, 8 - 2.4, 8 + 9.6, 8 + 2.4]))
    assert_close(boxes[-1], torch.tensor([72 - 38.4, 32 - 38.4, 72 + 38.4, 32 + 38.4]))


def test_listing_what_the_scales_give_changes_nothing():
    shapes = level_shapes(3)
    assert_close(raw(head(anchors=shapes))["anchors"], raw(head())["anchors"], rtol=0, atol=0)
    assert head(anchors=shapes, min_scale=0.5).shapes == head().shapes


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        (GIVEN[:2], "head.args.anchors: given for 2 levels, but taps and extras make 3"),
        ((), "head.args.anchors: given for 0 levels, but taps and extras make 3"),
        ((*GIVEN[:2], ()), r"head.args.anchors\[2\]: expected a list of at least 1"),
        ((*GIVEN[:2], ((0.5, 0.0),)), r"head.args.anchors\[2\]\[0\]\[1\]: expected a number > 0, got 0"),
    ],
)
def test_impossible_lists_are_refused(anchors: tuple, message: str):
    _, problems = HEADS.bind("ssdlite", {"taps": ["a", "b"], "extras": [16], "anchors": anchors}, place="head")
    assert len(problems) == 1
    assert re.match(message, problems[0]), problems[0]
