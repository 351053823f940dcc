import pytest
import torch
import torchvision
from closeness import assert_same_numbers
from small_models import scramble
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from mnv2det.errors import ConfigError, WeightsError
from mnv2det.models.classifier import Classifier
from mnv2det.models.layers import make_divisible
from mnv2det.models.mobilenet_v2 import MobileNetV2, width_of
from mnv2det.models.torchvision_weights import convert_torchvision

WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)


def multiply_adds(module: torch.nn.Module, *inputs: object) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops() / 2


def test_parameters_are_the_papers():
    backbone = MobileNetV2()
    classifier = Classifier(backbone.features, classes=1000)
    assert sum(p.numel() for p in backbone.parameters()) == 2_223_872
    assert sum(p.numel() for p in [*backbone.parameters(), *classifier.parameters()]) == 3_504_872


@pytest.mark.parametrize("width", WIDTHS)
def test_every_feature_is_what_feature_info_says(width: float):
    backbone = MobileNetV2(width=width, output_stride=16).eval()
    taps = list(backbone.features)
    with torch.no_grad():
        found = backbone(torch.rand(1, 3, 64, 96), taps)
    for tap in taps:
        info = backbone.features[tap]
        assert found[tap].shape == (1, info.channels, 64 // info.stride, 96 // info.stride), tap


@pytest.mark.heavy
@pytest.mark.parametrize("width", WIDTHS)
def test_torchvisions_state_dict_computes_the_same(width: float):
    theirs = torchvision.models.mobilenet_v2(width_mult=width).eval()
    scramble(theirs)
    tensors, header = convert_torchvision(theirs.state_dict(), where="test")
    assert header.backbone["args"]["width"] == width
    ours = MobileNetV2(**header.backbone["args"]).eval()
    ours.load_state_dict({name.removeprefix("backbone."): t for name, t in tensors.items() if "backbone" in name})
    images = torch.randn(2, 3, 96, 80).double()
    with torch.no_grad():
        wanted = theirs.double().features(images)
        assert float(wanted.std()) > 0.01
        assert_same_numbers(ours.double()(images)["last"], wanted)


def test_a_foreign_state_dict_names_the_tensor():
    state = torchvision.models.mobilenet_v2().state_dict()
    state["features.5.conv.1.0.weight"] = torch.zeros(7, 1, 3, 3)
    with pytest.raises(WeightsError, match=r"tensor 'features\.5\.conv\.1\.0\.weight' is \[7, 1, 3, 3\]"):
        convert_torchvision(state, where="file.pth")
    with pytest.raises(WeightsError, match="not a torchvision mobilenet_v2"):
        convert_torchvision({"conv1.weight": torch.zeros(1)}, where="file.pth")


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("size", [(96, 96), (97, 129), (100, 84)])
def test_stride_identity(padding: str, output_stride: int, size: tuple[int, int]):
    plain, dilated = MobileNetV2(padding=padding), MobileNetV2(padding=padding, output_stride=output_stride)
    scramble(plain)
    dilated.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, *size).double()
    taps = ("block14.expand/16", "block17/32", "last/32")
    with torch.no_grad():
        wanted, found = plain.double().eval()(images, taps), dilated.double().eval()(images, taps)
    for tap in taps:
        assert float(wanted[tap].std()) > 0.01
        assert_same_numbers(found[tap], wanted[tap], tap)


def test_same_padding_is_tensorflows():
    # a 3x3 stride-2 window on an even size starts at the first pixel, not one before it
    backbone = MobileNetV2(padding="same")
    conv = backbone.stem.conv
    torch.nn.init.zeros_(conv.weight)
    conv.weight.data[:, :, 0, 0] = 1
    images = torch.arange(64.0).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    assert_close(conv(images)[0, 0], images[0, 0, ::2, ::2] * 3)


def test_layers_behind_the_last_tap_are_dropped_and_not_computed():
    backbone = MobileNetV2()
    backbone.truncate(("image", "block14.expand/16", "block10"))
    assert backbone.last is None
    assert len(backbone.blocks) == 14
    assert not [
        name for name, _ in backbone.named_parameters() if name.startswith(("blocks.13.depth", "blocks.13.proj"))
    ]
    found = backbone(torch.rand(1, 3, 32, 32), ("block10", "block14.expand/16"))
    assert {name: tensor.shape[1] for name, tensor in found.items()} == {"block10": 64, "block14.expand/16": 576}


def test_unknown_tap_and_stride_are_named():
    features = MobileNetV2().features
    with pytest.raises(ConfigError, match=r"no feature 'block14\.expnd'; did you mean 'block14\.expand'\?"):
        features["block14.expnd"]
    with pytest.raises(ConfigError, match="has stride 32, it cannot be read at stride 16"):
        features["last/16"]


def test_divisible_never_loses_a_tenth():
    for width in WIDTHS:
        for channels in (16, 24, 32, 64, 96, 160, 320):
            rounded = make_divisible(channels * width)
            assert rounded % 8 == 0
            assert rounded >= 0.9 * channels * width


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("width", "millions"), [(1.4, 582), (1.3, 509), (1.0, 300), (0.75, 209), (0.5, 97), (0.35, 59)]
)
def test_multiply_adds_are_the_released_ones(width: float, millions: float):
    backbone = MobileNetV2(width=width).eval()
    head = Classifier(backbone.features, classes=1001).eval()
    total = multiply_adds(torch.nn.Sequential(backbone, head), torch.rand(1, 3, 224, 224))
    assert total / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize(
    ("output_stride", "dilations"), [(8, (1, 1, 1, 2, 2, 4, 4)), (16, (1, 1, 1, 1, 1, 2, 2)), (32, (1,) * 7)]
)
def test_the_first_of_each_row_is_dilated_as_in_mmsegmentation(output_stride: int, dilations: tuple[int, ...]):
    blocks = iter(MobileNetV2(width=0.1, output_stride=output_stride, dilate="first").blocks)
    rows = [[next(blocks).depthwise.conv.dilation[0] for _ in range(count)] for count in (1, 2, 3, 4, 3, 3, 1)]
    assert rows == [[dilation] + [1] * (len(row) - 1) for dilation, row in zip(dilations, rows, strict=True)]


def test_the_least_published_width_has_channels_in_fours():
    assert width_of(4, [4] * 6 + [8] * 4 + [12] * 3 + [16] * 3 + [32], where="x") == (0.1, 4)
