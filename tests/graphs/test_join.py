"""The join of Mobile DeepLabv3 in an export: in two parts, with the same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import scramble
from torch.testing import assert_close

import mnv2det.models  # noqa: F401 - registers
from mnv2det.graphs.graph import FoldedJoin, fold
from mnv2det.models.build import assemble
from mnv2det.models.counting import multiply_adds
from mnv2det.models.model import Model
from mnv2det.structures import Preprocess

CHANNELS = 24


def segmenter(**head: Any) -> Model:
    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, "output_stride": 16}},
        {"seg": {"name": "mobile_deeplab", "args": {"channels": CHANNELS, **head}}},
        classes={"seg": ["background", "road", "sky"]},
        preprocess=Preprocess((65, 97)),
    )
    scramble(model)
    return model.eval()


@pytest.mark.parametrize(
    "head",
    [{}, {"aspp": True}, {"aspp": True, "aspp_separable": True}, {"detail_tap": "block6"}, {"join_kernel": 3}],
    ids=str,
)
@torch.no_grad()
def test_an_export_joins_as_the_model_does(head: dict[str, Any]) -> None:
    model = segmenter(**head)
    inputs = torch.randn(2, 3, 65, 97)
    wanted, found = (whole(inputs)["seg"]["logits"] for whole in (model, fold(model)))
    assert found.std() > 1e-2, "logits that say nothing agree in any case"
    assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("branches", [1, 4])
def test_it_multiplies_the_pooled_channels_once(branches: int) -> None:
    with torch.device("meta"):
        model, inputs = segmenter(aspp=branches == 4), torch.zeros(1, 3, 65, 97)
        folded = fold(model)
    assert isinstance(folded.heads["seg"].join, FoldedJoin)
    positions = 5 * 7
    saved = multiply_adds(model, inputs) - multiply_adds(folded, inputs)
    assert saved == (positions - 1) * CHANNELS * CHANNELS
