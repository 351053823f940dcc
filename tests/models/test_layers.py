import pytest
import torch
from closeness import assert_same_numbers
from torch.testing import assert_close

from mnv2det.models.depthwise import has_bf16_kernels
from mnv2det.models.layers import Activation, Conv, ConvNorm


def test_batch_norm_survives_one_value_per_channel_in_training():
    block = ConvNorm(4, 8).train()
    before = block.norm.running_mean.clone()
    found = block(torch.randn(1, 4, 1, 1))
    assert found.isfinite().all()
    assert_close(block.norm.running_mean, before)
    block(torch.randn(2, 4, 1, 1))
    assert not torch.equal(block.norm.running_mean, before)


@pytest.mark.parametrize("pad", ["symmetric", "same"])
@pytest.mark.parametrize("size", [(12, 12), (13, 12), (9, 11), (16, 8)])
def test_our_gradient_of_a_strided_depthwise_layer_is_torchs(pad: str, size: tuple[int, int]):
    layer = Conv(6, 6, 3, stride=2, groups=6, pad=pad)
    # exact in bfloat16, so that both must agree to the last bit but for the order of sums
    layer.weight.data = torch.randint(-4, 5, layer.weight.shape).float()
    values = torch.randint(-4, 5, (2, 6, *size)).float()
    plain, ours = values.clone().requires_grad_(), values.clone().requires_grad_()
    wanted = layer(plain)
    direction = torch.randint(-4, 5, wanted.shape).float()
    wanted.backward(direction)
    wanted_weight, layer.weight.grad = layer.weight.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(ours)
    # without bfloat16 kernels the layer computes in float32
    assert ("Strided" in type(found.grad_fn).__name__) == has_bf16_kernels()
    found.backward(direction.to(found.dtype))
    assert_close(found.float(), wanted, rtol=1e-2, atol=0.5)
    assert_close(ours.grad, plain.grad, rtol=1e-2, atol=0.5)
    assert_close(layer.weight.grad, wanted_weight, rtol=1e-2, atol=0.5)


@pytest.mark.parametrize("batch", [2, 16])
@pytest.mark.parametrize("dilation", [2, 4])
@pytest.mark.parametrize("size", [(12, 16), (13, 15), (33, 31), (9, 40), (20, 61)])
def test_gradients_of_a_dilated_depthwise_layer_are_those_of_float32(dilation: int, size: tuple[int, int], batch: int):
    """From 29 columns on, torch's own bfloat16 weight gradient is another one altogether.

    Without bfloat16 kernels of oneDNN it loses digits with every image of the batch (6 % at 16 images, dilation 4).
    """
    layer = Conv(64, 64, 3, dilation=dilation, groups=64)
    layer.weight.data = layer.weight.data.bfloat16().float()
    values = torch.randn(batch, 64, *size).bfloat16().float().contiguous(memory_format=torch.channels_last)
    plain, ours = values.clone().requires_grad_(), values.clone().requires_grad_()
    wanted = layer(plain)
    direction = torch.randn_like(wanted).bfloat16().float()
    wanted.backward(direction)
    wanted_weight, layer.weight.grad = layer.weight.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(ours)
    found.backward(direction.to(found.dtype))
    for mine, theirs in ((found, wanted), (ours.grad, plain.grad), (layer.weight.grad, wanted_weight)):
        difference = (mine.detach().float() - theirs.detach()).abs().max()
        assert difference < 0.01 * theirs.detach().abs().max()  # a rounding to bfloat16 is up to 0.004 of it


@pytest.mark.parametrize("act", ["relu6", "relu", "none"])
def test_evaluation_folds_the_norm_and_computes_the_same(act: Activation):
    block = ConvNorm(4, 8, 3, stride=2, pad="same", act=act)
    torch.nn.init.uniform_(block.norm.running_mean, -1, 1)
    torch.nn.init.uniform_(block.norm.running_var, 0.5, 2)
    torch.nn.init.uniform_(block.norm.weight, 0.5, 4)
    torch.nn.init.uniform_(block.norm.bias, -1, 4)
    images = torch.randn(2, 4, 9, 10).double() * 3
    wanted = torch.nn.Sequential.forward(block.double().eval(), images)
    with torch.no_grad():
        assert_same_numbers(block(images), wanted)
    assert wanted.std() > 0.5
