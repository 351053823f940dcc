import pytest
import torch
from torch import nn

from mnv2det.models.counting import multiply_adds, parameters
from mnv2det.models.layers import Conv, ConvNorm, InvertedResidual


def test_parameters_with_and_without_batch_norm():
    block = ConvNorm(4, 8, 3)
    assert parameters(block) == 4 * 8 * 9 + 16
    assert parameters(block, norms=False) == 4 * 8 * 9
    shared = nn.ModuleList([block, block])
    assert parameters(shared) == parameters(block)


def test_multiply_adds_of_a_convolution_and_a_linear_layer():
    # 5 x 7 positions of 3x3 windows over 4 channels, 6 outputs
    assert multiply_adds(Conv(4, 6, 3), torch.zeros(1, 4, 5, 7)) == 5 * 7 * 4 * 6 * 9
    assert multiply_adds(Conv(6, 6, 3, stride=2, groups=6), torch.zeros(2, 6, 5, 7)) == 2 * 3 * 4 * 6 * 9
    assert multiply_adds(nn.Linear(10, 3), torch.zeros(2, 10)) == 60


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 24), (64, 96), (160, 320)])
def test_a_bottleneck_costs_what_section_3_3_says(inputs: int, outputs: int):
    height, width, t = 14, 10, 6
    with torch.device("meta"):
        block, x = InvertedResidual(inputs, outputs, expansion=t).eval(), torch.zeros(1, inputs, height, width)
    assert multiply_adds(block, x) == height * width * inputs * t * (inputs + 9 + outputs)


def test_space_to_batch_fills_dilated_maps_up_to_a_multiple_of_the_rate():
    x = torch.zeros(1, 4, 33, 32)
    plain = Conv(4, 6, 3)
    assert multiply_adds(plain, x, space_to_batch=True) == multiply_adds(plain, x)
    dilated = Conv(4, 6, 3, dilation=12)
    assert multiply_adds(dilated, x) == 33 * 32 * 4 * 6 * 9
    assert multiply_adds(dilated, x, space_to_batch=True) == 36 * 36 * 4 * 6 * 9
