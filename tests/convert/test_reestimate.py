from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mnv2det.convert.reestimate import ChannelStatistics, reestimate
from mnv2det.convert.tflite.convert import convert_tflite
from mnv2det.data.images import list_images, read_image
from mnv2det.errors import WeightsError
from mnv2det.models.build import assemble
from mnv2det.models.model import Model
from mnv2det.models.weight_file import Header
from mnv2det.structures import Preprocess

pytestmark = pytest.mark.heavy

RELEASES = ["mobilenet_v2_1.0_224_quant.tflite", "tf2_mobilenet_v2_1.0_224_ptq.tflite"]


def folded_classifier() -> Model:
    """A small classifier as an import leaves it: identity statistics, biases away from zero."""
    torch.manual_seed(0)
    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, "padding": "same"}},
        {"cls": {"name": "classifier", "args": {"dropout": 0.0}}},
        classes={"cls": ["a", "b", "c"]},
        preprocess=Preprocess((64, 64)),
    )
    with torch.no_grad():
        for layer in norms(model):
            layer.weight.fill_((1 + layer.eps) ** 0.5)
            layer.bias.normal_(0.5, 0.5)
    return model.eval()


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


@torch.no_grad()
def logits(model: Model, images: Tensor, *, train: bool = False) -> Tensor:
    """Logits; in train mode by the batch's statistics, without dropout, leaving the model as it was."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    for layer in norms(model):
        layer.train(train)
    result = model(images)["cls"]["logits"]
    model.load_state_dict(state)
    model.eval()
    return result


def test_statistics_are_those_of_all_batches_together() -> None:
    torch.manual_seed(0)
    values = torch.randn(7, 3, 5, 4) * torch.tensor([1.0, 1e-3, 5.0])[:, None, None] + 1000
    statistics = ChannelStatistics()
    for batch in values.split([3, 1, 3]):
        statistics.add(batch)
    exact = values.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(statistics.mean, exact.mean(1), rtol=1e-13, atol=0)
    torch.testing.assert_close(statistics.variance, exact.var(1, unbiased=False), rtol=1e-9, atol=0)


def test_function_stays_and_train_mode_agrees() -> None:
    model, images = folded_classifier(), torch.randn(12, 3, 64, 64)
    header = Header(backbone={"name": "mobilenet_v2", "args": {}}, trainable=False)
    before = logits(model, images)
    far = (logits(model, images, train=True) - before).abs().max()
    assert reestimate(model, images.split(5), header=header) == 12
    assert header.trainable
    torch.testing.assert_close(logits(model, images), before, rtol=1e-4, atol=1e-5)
    near = (logits(model, images, train=True) - before).abs().max()
    assert near < 1e-3 * far

    again = [layer.weight.detach().clone() for layer in norms(model)]
    reestimate(model, [images])  # a second time changes nothing any more
    for layer, weight in zip(norms(model), again, strict=True):
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-3, atol=1e-4)


def test_statistics_are_those_of_the_input_of_each_norm() -> None:
    model, images = folded_classifier(), torch.randn(4, 3, 64, 64)
    norm, folded = model.backbone.stem.norm, model.backbone.stem.norm.bias.detach().clone()
    with torch.no_grad():
        values = model.backbone.stem.conv(images).double()
    reestimate(model, images.split(1))
    variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(norm.running_mean, mean.float())
    torch.testing.assert_close(norm.running_var, variance.float())
    torch.testing.assert_close(norm.weight.detach(), (variance + norm.eps).sqrt().float())
    torch.testing.assert_close(norm.bias.detach(), mean.float() + folded)


def test_constant_channels_stay_finite() -> None:
    model, images = folded_classifier(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model.backbone.stem.conv.weight[:4] = 0
        model.backbone.blocks[0].depthwise.conv.weight.zero_()
    before = logits(model, images)
    reestimate(model, [images])
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    torch.testing.assert_close(logits(model, images), before, rtol=1e-4, atol=1e-5)


def test_mode_and_hooks_are_left_as_they_were() -> None:
    model = folded_classifier().train()
    model.heads["cls"].eval()
    reestimate(model, [torch.randn(1, 3, 64, 64)])
    assert model.training
    assert model.backbone.stem.norm.training
    assert not model.heads["cls"].dropout.training
    assert not any(layer._forward_pre_hooks for layer in norms(model))


def test_no_images_or_no_finite_ones_change_nothing() -> None:
    model = folded_classifier()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match="at least one image"):
        reestimate(model, [])
    with pytest.raises(WeightsError, match=r"backbone\.stem\.norm' is not finite"):
        reestimate(model, [torch.full((1, 3, 64, 64), float("nan"))])
    model.extra = nn.BatchNorm2d(3)
    with pytest.raises(WeightsError, match="do not reach layer 'extra'"):
        reestimate(model, [torch.randn(1, 3, 64, 64)])
    del model.extra
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


@pytest.mark.shared
@pytest.mark.parametrize("release", RELEASES)
def test_releases_become_trainable(release: str, shared: Path) -> None:
    import cv2

    tensors, header = convert_tflite(shared / "weights" / release)
    model = assemble(header.backbone, header.heads, classes=header.classes, preprocess=header.preprocess)
    model.load_state_dict(tensors)
    pictures = [
        cv2.resize(read_image(photograph), (224, 224))
        for photograph in list_images(shared / "coco100" / "val2017")[:48]
    ]
    images = model.normalize(torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pictures]))
    batch = images[:32]
    before, folded = logits(model, batch), logits(model, batch, train=True)
    reestimate(model, images.split(8))
    torch.testing.assert_close(logits(model, batch), before, rtol=1e-4, atol=1e-4)

    def agreement(found: Tensor) -> float:
        return float(np.corrcoef(found.flatten(), before.flatten())[0, 1])

    assert agreement(folded) < 0.3
    # most of the images that were measured: the rest of the difference is the noise of the batch
    assert agreement(logits(model, batch, train=True)) > 0.9
    reestimate(model, batch.split(8))
    assert agreement(logits(model, batch, train=True)) > 0.9999
