"""The blocks that the paper compares its own with (figures 3 and 6)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_same_numbers
from small_models import scramble
from torch import nn
from torch.testing import assert_close

import mnv2det.models  # noqa: F401 - registers
from mnv2det.config import load_config
from mnv2det.errors import ConfigError
from mnv2det.models.build import assemble, from_config
from mnv2det.models.counting import multiply_adds, parameters
from mnv2det.models.layers import ConvNorm
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.models.variants.residual import MobileNetResidual
from mnv2det.models.weight_file import save_weights
from mnv2det.registry import BACKBONES
from mnv2det.structures import Preprocess

# Table 2's repeated layers: where input and output are alike
JOINED = [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def features(backbone: nn.Module, side: int = 64) -> dict[str, torch.Tensor]:
    scramble(backbone)
    with torch.no_grad():
        return backbone.double().eval()(torch.randn(2, 3, side, side).double(), list(backbone.features))


@pytest.mark.parametrize("shortcut", ["bottleneck", "expansion", "none"])
def test_each_shortcut_joins_what_it_says(shortcut: str):
    backbone = MobileNetV2(width=0.5, shortcut=shortcut)
    found = features(backbone)
    for number, block in enumerate(backbone.blocks, 1):
        before = found[f"block{number - 1}"] if number > 1 else found["stem"]
        widened = found[f"block{number}.expand"] if number > 1 else before
        assert float(before.abs().max()) > 0.01, "too small to be missed"
        carried = found[f"block{number - 1}.expand"] if shortcut == "expansion" and number - 1 in JOINED else 0
        joined = before if shortcut == "bottleneck" and number in JOINED else 0
        with torch.no_grad():
            assert_close(widened, block.widen(before) + carried)
            assert_close(found[f"block{number}"], block.project(block.depthwise(widened)) + joined)


def test_the_bottlenecks_activation_comes_before_the_sum():
    backbone = MobileNetV2(width=0.5, bottleneck_act="relu6", shortcut="none")
    found = features(backbone)
    for number in range(1, 18):
        assert float(found[f"block{number}"].min()) == 0
        assert float(found[f"block{number}"].max()) <= 6
    linear = features(MobileNetV2(width=0.5, shortcut="none"))
    assert all(float(linear[f"block{number}"].min()) < 0 for number in range(1, 18))
    summed = features(MobileNetV2(width=0.5, bottleneck_act="relu6"))
    for number in JOINED:
        assert float((summed[f"block{number}"] - summed[f"block{number - 1}"]).min()) > -1e-5


@pytest.mark.parametrize("act", ["none", "relu", "relu6"])
def test_only_without_activations_the_network_is_affine(act: str):
    backbone = MobileNetV2(width=0.35, act=act).eval()
    scramble(backbone)
    x, y, zero = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        at = [backbone(image)["last"] for image in (x + y, x, y, zero)]
    # beside what of the output depends on the picture at all
    bend = float((at[0] - at[1] - at[2] + at[3]).abs().max() / (at[0] - at[3]).abs().max())
    assert bend < 1e-3 if act == "none" else bend > 0.05


@pytest.mark.parametrize("expansion", [1, 3, 6])
def test_expansion_is_the_rows_t(expansion: int):
    backbone = MobileNetV2(expansion=expansion)
    assert backbone.blocks[0].expand is None
    inputs = [block.project.conv.in_channels for block in backbone.blocks[1:]]
    outputs = [block.project.conv.out_channels for block in backbone.blocks[:-1]]
    assert inputs == [expansion * channels for channels in outputs]
    assert ("block14.expand" in backbone.features) == (expansion > 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"expansion": 0}, "b.args.expansion: expected a whole number from 1 to 20, got 0"),
        (
            {"shortcut": "expansion", "expansion": 1},
            "b.args.shortcut: with expansion 1 there are no expanded tensors to join",
        ),
    ],
)
def test_wrong_arguments_are_named(args: dict[str, Any], message: str):
    assert BACKBONES.bind("mobilenet_v2", args, place="b")[1] == [message]


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("make", [MobileNetResidual, lambda **args: MobileNetV2(shortcut="expansion", **args)])
def test_stride_identity(make: Any, padding: str):
    plain, dilated = make(width=0.5, padding=padding), make(width=0.5, padding=padding, output_stride=8)
    scramble(plain)
    dilated.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 97, 128).double()
    with torch.no_grad():
        wanted, found = (network.double().eval()(images, ["last/32"])["last/32"] for network in (plain, dilated))
    assert float(wanted.std()) > 0.01
    assert_same_numbers(found, wanted)


def test_the_residual_network_is_mobilenet_v2_outside_in():
    backbone = MobileNetResidual()
    inner = [block.reduce.conv.out_channels for block in backbone.blocks]
    assert inner == [block.project.conv.out_channels for block in MobileNetV2().blocks]
    ends = [backbone.features[f"block{number}"].channels for number in range(1, 18)]
    assert ends == [16, 144, 144, 192, 192, 192, 384, 384, 384, 384, 576, 576, 576, 960, 960, 960, 1280]
    assert [number for number, block in enumerate(backbone.blocks, 1) if block.shortcut] == JOINED
    assert all(isinstance(block.widen, ConvNorm) and block.widen.high is None for block in backbone.blocks)
    found = features(backbone)
    assert all(float(found[f"block{number}"].min()) == 0 for number in range(1, 18))


def test_variants_cost_what_the_block_says():
    """Shortcuts and activations are free; a smaller t is not as large."""

    def cost(backbone: Any) -> tuple[int, int]:
        return parameters(backbone), multiply_adds(backbone.eval(), torch.zeros(1, 3, 64, 64))

    published = cost(MobileNetV2())
    for args in ({"shortcut": "none"}, {"shortcut": "expansion"}, {"bottleneck_act": "relu6"}, {"act": "none"}):
        assert cost(MobileNetV2(**args)) == published
    assert cost(MobileNetV2(expansion=3))[1] < 0.7 * published[1]


def test_weights_bring_their_block_with_them(tmp_path: Path):
    args = {"width": 0.35, "bottleneck_act": "relu6", "shortcut": "none", "expansion": 3}
    trained = assemble(
        {"name": "mobilenet_v2", "args": args},
        {"cls": {"name": "classifier", "args": {}}},
        classes={"cls": ["a", "b"]},
        preprocess=Preprocess((64, 64)),
    )
    path = tmp_path / "w.safetensors"
    save_weights(path, trained.state_dict(), trained.header())
    config = load_config(CONFIGS / "mobilenetv2_patches.yaml", [f"model.weights={path}"])
    model, _ = from_config(config.model, config.tasks, {"cls": ["a", "b"]})
    assert args.items() <= model.spec["backbone"]["args"].items()
    config = load_config(
        CONFIGS / "mobilenetv2_patches.yaml", [f"model.weights={path}", "model.backbone.args.shortcut=bottleneck"]
    )
    with pytest.raises(ConfigError, match=r"shortcut: 'bottleneck', but .* was trained with 'none'"):
        from_config(config.model, config.tasks, {"cls": ["a", "b"]})
