import pytest
import torch
from closeness import assert_same_numbers
from small_models import scramble
from torch import nn

import mnv2det.models  # noqa: F401 - registers
from mnv2det.errors import ConfigError
from mnv2det.models.build import assemble
from mnv2det.models.classifier import Classifier
from mnv2det.models.counting import multiply_adds, parameters
from mnv2det.models.variants.mobilenet_v1 import MobileNetV1
from mnv2det.registry import BACKBONES
from mnv2det.structures import Frame, Preprocess

pytestmark = pytest.mark.heavy

TAPS = ["block11/16", "last/32"]


def howards_table_1(act: type[nn.Module]) -> nn.Sequential:
    """The network written out from Howard et al., Table 1, in torch's own layers."""

    def unit(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(outputs, eps=1e-3), act()]

    layers = unit(3, 32, 3, 2, 1)
    channels = 32
    for outputs, stride in [
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
        (1024, 2), (1024, 1),
    ]:  # fmt: skip
        layers += unit(channels, channels, 3, stride, channels) + unit(channels, outputs, 1, 1, 1)
        channels = outputs
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("act", "kind"), [("relu6", nn.ReLU6), ("relu", nn.ReLU)])
def test_it_is_howards_table_1(act: str, kind: type[nn.Module]):
    theirs, ours = howards_table_1(kind).eval(), MobileNetV1(act=act).eval()
    scramble(theirs)
    assert len(theirs.state_dict()) == len(ours.state_dict())
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 96, 80).double() * 3
    with torch.no_grad():
        wanted = theirs.double()(images)
        assert float(wanted.std()) > 0.01
        assert_same_numbers(ours.double()(images)["last"], wanted)


def test_parameters_and_multiply_adds_of_the_classifier():
    with torch.device("meta"):
        backbone = MobileNetV1().eval()
        network = nn.Sequential(backbone, Classifier(backbone.features, classes=1000)).eval()
        images = torch.zeros(1, 3, 224, 224)
    assert parameters(network) == 4_231_976  # 4.2M
    # 569M in Howard et al.; the MobileNetV2 paper's Table 4 has 575M
    assert multiply_adds(network, images) / 1e6 == pytest.approx(568.7, abs=0.05)


def test_parameters_and_multiply_adds_of_the_detector_are_the_papers():
    with torch.device("meta"):
        model = assemble(
            {"name": "mobilenet_v1", "args": {}},
            {"det": {"name": "ssdlite", "args": {"taps": TAPS}}},
            classes={"det": [str(n) for n in range(80)]},
            preprocess=Preprocess((320, 320)),
        ).eval()
        images = torch.zeros(1, 3, 320, 320)
    assert parameters(model) / 1e6 == pytest.approx(5.1, abs=0.05)
    assert multiply_adds(model, images) / 1e9 == pytest.approx(1.3, abs=0.05)


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75, 1.0, 1.4])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_every_feature_is_what_feature_info_says(width: float, stride: int):
    backbone = MobileNetV1(width=width, output_stride=stride).eval()
    taps = list(backbone.features)
    with torch.no_grad():
        found = backbone(torch.rand(1, 3, 64, 96), taps)
    for tap in taps:
        info = backbone.features[tap]
        assert found[tap].shape == (1, info.channels, 64 // info.stride, 96 // info.stride), tap
        assert info.stride <= stride


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("size", [(96, 96), (97, 129), (100, 84)])
def test_stride_identity(padding: str, output_stride: int, size: tuple[int, int]):
    plain, dilated = MobileNetV1(padding=padding), MobileNetV1(padding=padding, output_stride=output_stride)
    scramble(plain)
    dilated.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, *size).double()
    taps = ("block11/16", "block12/32", "last/32")
    with torch.no_grad():
        wanted, found = plain.double().eval()(images, taps), dilated.double().eval()(images, taps)
    for tap in taps:
        assert float(wanted[tap].std()) > 0.01
        assert_same_numbers(found[tap], wanted[tap], tap)


def test_layers_behind_the_last_tap_are_dropped_and_not_computed():
    backbone = MobileNetV1()
    whole = parameters(backbone)
    backbone.truncate(("image", "block11/16", "last"))
    assert parameters(backbone) == whole
    ran = []
    for number, block in enumerate(backbone.blocks, 1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    found = backbone(torch.rand(1, 3, 32, 32), ("block3", "block5"))
    assert {name: tensor.shape[1] for name, tensor in found.items()} == {"block3": 128, "block5": 256}
    assert ran == [1, 2, 3, 4, 5]
    backbone.truncate(("image", "block11/16"))
    assert len(backbone.blocks) == 11
    assert "block11" in [name for name, _ in backbone.stages()]
    with pytest.raises(KeyError):
        backbone(torch.rand(1, 3, 32, 32), ("last",))


def test_wrong_arguments_are_named():
    problems = BACKBONES.bind("mobilenet_v1", {"width": 0}, place="backbone")[1]
    assert problems == ["backbone.args.width: expected a number > 0 and <= 10, got 0"]
    with pytest.raises(ConfigError, match=r"no feature 'block14\.expand'"):
        MobileNetV1().features["block14.expand/16"]


@pytest.mark.parametrize(("name", "taps"), [("mobilenet_v1", TAPS), ("mobilenet_residual", ["block13/16", "last/32"])])
def test_boxes_masks_and_labels_from_one_backbone_pass(name: str, taps: list[str]):
    classes = {"det": ["a", "b"], "seg": ["background", "a", "b"], "cls": ["a", "b"]}
    model = assemble(
        {"name": name, "args": {"width": 0.25, "output_stride": 16}},
        {
            "det": {"name": "ssdlite", "args": {"taps": taps, "extras": [32, 32]}},
            "seg": {"name": "mobile_deeplab", "args": {"tap": "last", "channels": 8}},
            "cls": {"name": "classifier", "args": {}},
        },
        classes=classes,
        preprocess=Preprocess((96, 64)),
    )
    target = {
        "boxes": torch.tensor([[4.0, 4, 40, 50]]),
        "labels": torch.tensor([1]),
        "mask": torch.randint(0, 3, (96, 64)),
        "label": torch.tensor(1),
    }
    losses = model.loss(model(torch.randn(2, 3, 96, 64)), [target, target], {})
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    images = torch.randint(0, 255, (1, 3, 96, 64), dtype=torch.uint8)
    found = model.eval().predict(images, [Frame((48, 32), (96, 64))])
    assert tuple(found["seg"][0].mask.shape) == (48, 32)
    assert found["cls"][0].probabilities.shape == (2,)
    assert len(found["det"][0].boxes) > 0
