"""Checkpoints of other PyTorch projects compute after the import what their own code computes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_same_numbers
from openmmlab_projects import MMDetection, MMSegmentation
from pytorch_projects import MobileNetV2Pytorch, PytorchMobileNetV2, PytorchSSD, Timm, settle
from small_models import picture
from torch import Tensor, nn
from torchvision.ops import batched_nms

from mnv2det.commands.import_weights import import_weights
from mnv2det.convert.pytorch import checkpoint
from mnv2det.convert.pytorch.state_dict import convert_state_dict
from mnv2det.errors import WeightsError
from mnv2det.models.build import from_file
from mnv2det.models.model import Model
from mnv2det.models.weight_file import Header
from mnv2det.ops.boxes import decode
from mnv2det.structures import CITYSCAPES_CLASSES, VOC_CLASSES, Frame

pytestmark = pytest.mark.heavy

State = dict[str, Any]
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def pictures(height: int, width: int, count: int = 1, seed: int = 0) -> Tensor:
    """uint8 (count, 3, height, width)."""
    drawn = [torch.from_numpy(picture(height, width, seed + n)).permute(2, 0, 1) for n in range(count)]
    return torch.stack(drawn)


def normalized(images: Tensor) -> Tensor:
    return (images / 255 - IMAGENET_MEAN) / IMAGENET_STD


def imported(content: object, folder: Path, **options: Any) -> tuple[Model, Header]:
    """The model that a checkpoint becomes by way of the command."""
    torch.save(content, folder / "theirs.pth")
    summary = import_weights(folder / "theirs.pth", folder / "ours.safetensors", progress=False, **options)
    assert (summary["trainable"], summary["note"]) == (True, "")
    model, header = from_file(str(folder / "ours.safetensors"))
    assert header.provenance["source"] == "theirs.pth"
    assert len(header.provenance["sha256"]) == 64
    return model, header


def refusal(content: object, folder: Path) -> str:
    torch.save(content, folder / "refused.pth")
    with pytest.raises(WeightsError) as caught:
        convert_state_dict(folder / "refused.pth")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder}/")


def classifier(make: Callable[[], nn.Module], size: int = 64) -> nn.Module:
    torch.manual_seed(0)
    network = make()
    settle(network, normalized(pictures(size, size, 4)))
    return network


def parallel(state: State) -> State:
    """As DataParallel names it."""
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def small() -> State:
    """A state dict of mobilenetv2.pytorch, of its least width."""
    return dict(classifier(lambda: MobileNetV2Pytorch(3, 0.1)).state_dict())


@pytest.fixture(scope="module")
def voc_detector() -> PytorchSSD:
    torch.manual_seed(0)
    network = PytorchSSD(21)
    settle(network, network.normalize(pictures(300, 300, 2)))
    for head in (*network.classification_headers, *network.regression_headers):
        for conv in (module for module in head.modules() if isinstance(module, nn.Conv2d)):
            nn.init.normal_(conv.bias, std=0.5)  # also before batch norm
    return network


@pytest.fixture(scope="module")
def coco_detector() -> MMDetection:
    torch.manual_seed(0)
    network = MMDetection(80, width=0.5)
    settle(network, network.normalize(pictures(320, 320, 2)))
    for head in network.bbox_head.cls_convs:
        nn.init.normal_(head[1].bias, std=0.5)
    return network


@pytest.fixture(scope="module")
def segmenter() -> MMSegmentation:
    torch.manual_seed(0)
    network = MMSegmentation(19, width=0.5, channels=24)
    settle(network, normalized(pictures(64, 96, 2)))
    return network


@pytest.mark.parametrize(
    ("make", "width"),
    [
        (lambda: PytorchMobileNetV2(4), 1.0),
        (lambda: PytorchMobileNetV2(4, nested=True), 1.0),
        *((lambda width=width: MobileNetV2Pytorch(3, width), width) for width in (0.1, 0.25, 0.35, 0.5, 0.75, 1.4)),
        *((lambda width=width: Timm(3, width), width) for width in (0.5, 1.4)),
    ],
)
def test_classifiers(make: Callable[[], nn.Module], width: float, tmp_path: Path):
    theirs = classifier(make)
    ours, header = imported(parallel(dict(theirs.state_dict())), tmp_path)
    images = pictures(96, 64, 2, seed=9)
    with torch.no_grad():
        expected = theirs(normalized(images))
        assert_same_numbers(ours(ours.normalize(images))["cls"]["logits"], expected)
    assert expected.std(dim=0).max() > 1e-2
    assert header.backbone["args"]["width"] == width
    assert (header.preprocess.input_size, header.preprocess.fit) == ((224, 224), "crop")
    assert header.classes["cls"] == [str(number) for number in range(expected.shape[1])]


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_wrapped_checkpoints_of_other_types(small: State, wrapper: str, tmp_path: Path):
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    content = {"epoch": 3, wrapper: {name: t.double() if t.is_floating_point() else t for name, t in small.items()}}
    ours, header = imported(content, tmp_path, labels=tmp_path / "names.txt")
    assert header.classes == {"cls": ["ant", "bee", "cat"]}
    assert torch.equal(ours.state_dict()["heads.cls.linear.weight"], small["classifier.weight"])


def assert_same_detections(ours: Model, logits: Tensor, boxes: Tensor, background: int, clip: bool, size: int) -> None:
    """Compares with greedy NMS on the other project's own boxes."""
    settings = ours.heads["det"].detection_settings
    scores = logits.softmax(-1)
    scores = torch.cat([scores[:, :background], scores[:, background + 1 :]], 1) if background else scores[:, 1:]
    row, label = (scores > settings.score_threshold).nonzero(as_tuple=True)
    candidates, values = boxes[row].clamp(0, size) if clip else boxes[row], scores[row, label]
    kept = batched_nms(candidates, values, label, settings.nms_iou)[: settings.max_detections]
    raw = ours(ours.normalize(pictures(size, size, seed=7)))["det"]
    (found,) = ours.heads["det"].decode(raw, [Frame((size, size), (size, size))])
    assert len(found.scores) == settings.max_detections
    assert_same_numbers(found.scores, values[kept])
    same = found.labels == label[kept]
    assert same.float().mean() > 0.98  # scores that are equal up to rounding may change places
    assert_same_numbers(found.boxes[same], candidates[kept].clamp(0, size)[same], within=1e-3)


@torch.no_grad()
def test_pytorch_ssd(voc_detector: PytorchSSD, tmp_path: Path):
    (tmp_path / "voc-model-labels.txt").write_text("\n".join(["BACKGROUND", *VOC_CLASSES]))
    ours, header = imported(voc_detector.state_dict(), tmp_path, labels=tmp_path / "voc-model-labels.txt")
    images = pictures(300, 300, seed=7)
    logits, codes = voc_detector(voc_detector.normalize(images))
    raw = ours(ours.normalize(images))["det"]
    assert_same_numbers(raw["logits"], logits)
    assert_same_numbers(raw["codes"], codes)
    assert logits.std() > 0.1
    boxes = voc_detector.boxes(codes)
    assert_same_numbers(decode(raw["codes"], raw["anchors"]), boxes)
    assert_same_detections(ours, logits[0], boxes[0], background=0, clip=False, size=300)
    assert header.classes == {"det": list(VOC_CLASSES)}
    assert (header.preprocess.input_size, header.preprocess.fit) == ((300, 300), "stretch")
    assert "mobilenetv1_ssd_config" in header.provenance["anchors"]


@torch.no_grad()
def test_pytorch_ssd_of_another_width(tmp_path: Path):
    torch.manual_seed(0)
    theirs = PytorchSSD(4, width=0.5)
    settle(theirs, theirs.normalize(pictures(300, 300, 2)))
    ours, header = imported(theirs.state_dict(), tmp_path)
    images = pictures(300, 300)
    assert_same_numbers(ours(ours.normalize(images))["det"]["logits"], theirs(theirs.normalize(images))[0])
    assert header.classes == {"det": ["0", "1", "2"]}
    assert header.backbone["args"]["divisor"] == 1


@torch.no_grad()
def test_mmdetection(coco_detector: MMDetection, tmp_path: Path):
    content = {"meta": {"epoch": 120, "config": "model = dict(...)"}, "state_dict": coco_detector.state_dict()}
    ours, header = imported(content, tmp_path)
    images = pictures(320, 320, seed=7)
    logits, codes = coco_detector(coco_detector.normalize(images))
    raw = ours(ours.normalize(images))["det"]
    assert_same_numbers(raw["logits"], torch.cat([logits[..., -1:], logits[..., :-1]], -1))
    assert_same_numbers(raw["codes"], codes)
    boxes = coco_detector.boxes(codes)
    assert_same_numbers(decode(raw["codes"], raw["anchors"]), boxes)
    assert_same_detections(ours, logits[0], boxes[0], background=80, clip=True, size=320)
    assert header.classes["det"][:2] == ["person", "bicycle"]
    assert len(header.classes["det"]) == 80
    assert (header.preprocess.input_size, header.preprocess.fit) == ((320, 320), "stretch")


@torch.no_grad()
def test_mmsegmentation(segmenter: MMSegmentation, tmp_path: Path):
    ours, header = imported({"meta": {}, "state_dict": segmenter.state_dict()}, tmp_path)
    images = pictures(96, 128, 2, seed=7)
    expected = segmenter(normalized(images))
    assert expected.shape == (2, 19, 12, 16)  # stride 8
    assert_same_numbers(ours(ours.normalize(images))["seg"]["logits"], expected)
    assert expected.std(dim=(2, 3)).min() > 1e-3
    assert header.classes == {"seg": list(CITYSCAPES_CLASSES)}
    assert (header.preprocess.input_size, header.preprocess.fit) == ((512, 1024), "pad")
    assert "auxiliary head" in header.provenance["left_out"]


def test_segmenters_of_other_classes_are_shown_whole_pictures(tmp_path: Path):
    network = MMSegmentation(5, width=0.25, channels=8)
    state = {name: t for name, t in network.state_dict().items() if not name.startswith("auxiliary")}
    _, header = imported(state, tmp_path)
    assert (header.preprocess.input_size, header.preprocess.fit) == ((512, 512), "letterbox")
    assert header.classes == {"seg": ["0", "1", "2", "3", "4"]}
    assert "left_out" not in header.provenance


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"CLASSES": ("a", "b", "c")}, ["a", "b", "c"]),
        ({"dataset_meta": {"classes": ["a", "b", "c"], "palette": [[1, 2, 3]]}}, ["a", "b", "c"]),
        ({"dataset_meta": {"CLASSES": ["a", "b", "c"]}, "CLASSES": ("x", "y", "z")}, ["a", "b", "c"]),
        ({"CLASSES": ("a", "b")}, ["0", "1", "2"]),  # of another data set
        ({"CLASSES": ("a", "a", "b")}, ["0", "1", "2"]),
        ({"CLASSES": ("a", "b\n", "c")}, ["0", "1", "2"]),
        ({"CLASSES": "abc", "dataset_meta": None}, ["0", "1", "2"]),
        ("text", ["0", "1", "2"]),
    ],
)
def test_class_names_of_the_file_are_taken(meta: object, names: list[str], tmp_path: Path):
    torch.save({"meta": meta, "state_dict": MMSegmentation(3, width=0.25, channels=8).state_dict()}, tmp_path / "a.pth")
    assert convert_state_dict(tmp_path / "a.pth")[1].classes == {"seg": names}


def test_objects_are_not_loaded_and_the_error_says_what_to_do(small: State, tmp_path: Path):
    class History:
        """As MMEngine's checkpoints keep of a run."""

    globals()["History"] = History  # so that it can be pickled
    History.__qualname__ = "History"
    text = refusal({"state_dict": small, "message_hub": {"loss": History()}}, tmp_path)
    assert text.startswith("refused.pth: holds an object '")
    assert "History', which cannot be loaded safely; if you trust the file" in text
    assert "save its state dict alone" in text


def test_unknown_forms_name_the_known(tmp_path: Path):
    for content in (
        {"a": torch.zeros(1)},
        {"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3), "fc.bias": torch.zeros(9)},
    ):
        text = refusal(content, tmp_path)
        assert text.startswith(f"refused.pth: a state dict of no known form (it begins with '{next(iter(content))}')")
        for name in ("torchvision", "pytorch-mobilenet-v2", "timm", "pytorch-ssd", "MMDetection", "MMSegmentation"):
            assert name in text
    for nothing in ({}, [1], {"state_dict": {}}, {1: torch.zeros(1)}, {"state_dict": {"a": 3}}, torch.zeros(2)):
        assert "expected a state dict of names and tensors" in refusal(nothing, tmp_path)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_other_tensors_than_weights_are_refused(small: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for bad, message in (
        (torch.full((4,), torch.nan), "'features.0.1.bias' has values that are not finite"),
        (torch.zeros(4, dtype=torch.int64), "'features.0.1.bias' holds torch.int64, expected floating-point"),
        (torch.zeros(4, dtype=torch.complex64), "'features.0.1.bias' is no plain tensor of numbers"),
        (torch.zeros(4).to_sparse(), "'features.0.1.bias' is no plain tensor of numbers"),
        (torch.zeros(1).expand(2**28), "larger than any layer"),
        (torch.full((4,), 1e300, dtype=torch.float64), "'features.0.1.bias' has values that are not finite"),
        (torch.zeros(5), "'features.0.1.bias' is [5], expected [4]"),
        (torch.zeros(()), "'features.0.1.bias' is [], expected [4]"),
    ):
        assert message in refusal({**small, "features.0.1.bias": bad}, tmp_path)
    assert "cannot be printed" in refusal({**small, "a\nb": torch.zeros(1)}, tmp_path)
    wrong = {**small, "features.0.1.running_var": torch.full((4,), -1.0)}
    assert "'features.0.1.running_var' has values below 0" in refusal(wrong, tmp_path)
    monkeypatch.setattr(checkpoint, "MOST_NAMES", 99)
    assert "100 tensors" in refusal({str(n): torch.zeros(1) for n in range(100)}, tmp_path)


def without(state: State, part: str) -> State:
    return {name: tensor for name, tensor in state.items() if part not in name}


def test_another_network_is_named_by_its_first_layer_that_differs(
    small: State, segmenter: MMSegmentation, tmp_path: Path
):
    def check(content: object, form: str, message: str) -> None:
        text = refusal(content, tmp_path)
        assert text.startswith(f"refused.pth: nearest to {form}")
        assert text.endswith(message) or message in text

    like = "the classifier of pytorch-mobilenet-v2, but"
    check(without(small, "features.9.conv.3."), like, "'features.9.conv.3.weight' is missing")
    check(without(small, "classifier"), like, "'classifier.weight' is missing")
    check({**small, "features.18.conv.0.weight": torch.zeros(1)}, like, "it also has 'features.18.conv.0.weight'")
    check({**small, "features.1.conv.6.weight": torch.zeros(1)}, like, "the first bottleneck of its first version")
    stem = {**small, "features.0.0.weight": torch.zeros(5, 3, 3, 3)}
    check(stem, like, "are those of no MobileNetV2 width multiplier")
    check({**small, "features.0.0.weight": torch.zeros(3)}, like, "is [3], expected a layer's weights")
    timm = dict(Timm(3, 0.25).state_dict())
    deeper = {**timm, "blocks.1.2.conv_pw.weight": torch.zeros(1)}  # as mobilenetv2_110d
    check(deeper, "timm's mobilenetv2, but", "it also has 'blocks.1.2.conv_pw.weight'")

    voc, like = dict(PytorchSSD(21, width=0.25).state_dict()), "pytorch-ssd's mb2-ssd-lite, but"
    check(without(voc, "extras.3.conv.6."), like, "'extras.3.conv.6.weight' is missing")
    check(without(voc, "headers.5.bias"), like, "'classification_headers.5.bias' is missing")
    odd = {**voc, "classification_headers.0.3.weight": torch.zeros(127, 144, 1, 1)}
    check(odd, like, "'classification_headers.0.3.weight' has 127 outputs, expected 6 for each class")
    fewer = {**voc, "classification_headers.1.3.weight": torch.zeros(120, 1280, 1, 1)}
    check(fewer, like, "'classification_headers.1.3.weight' is [120, 1280, 1, 1], expected [126, 1280, 1, 1]")
    mobilenet_v1 = {name.replace(".conv.", "."): tensor for name, tensor in voc.items()}
    check(mobilenet_v1, like, "'base_net.1.conv.3.weight' is missing")

    coco, like = dict(MMDetection(80, width=0.25).state_dict()), "MMDetection's ssdlite_mobilenetv2, but"
    check(without(coco, "depthwise_conv.bn"), like, "'backbone.layer1.0.depthwise_conv.bn.weight' is missing")
    check(without(coco, "neck"), like, "'neck.extra_layers.0.0.conv.weight' is missing")
    check({**coco, "neck.l2_norm.weight": torch.ones(4)}, like, "it also has 'neck.l2_norm.weight'")

    city, like = dict(segmenter.state_dict()), "MMSegmentation's deeplabv3 on MobileNetV2, but"
    plus = {**city, "decode_head.c1_bottleneck.conv.weight": torch.zeros(1)}
    check(plus, like, "is of the decoder of DeepLabv3+, which cannot be imported")
    pspnet = {**without(city, "aspp"), "decode_head.psp_modules.0.1.conv.weight": torch.zeros(1)}
    check(pspnet, like, "is of PSPNet's head, which cannot be imported")
    fcn = {**without(city, "aspp"), "decode_head.convs.0.conv.weight": torch.zeros(1)}
    check(fcn, like, "is of FCN's head, which cannot be imported")
    check(without(city, "aspp_modules.3"), like, "'decode_head.aspp_modules.3.conv.weight' is missing")


def test_label_files_must_fit(coco_detector: MMDetection, tmp_path: Path):
    torch.save(coco_detector.state_dict(), tmp_path / "a.pth")
    (tmp_path / "map.pbtxt").write_text("item { id: 2 name: 'dog' }")
    for labels, message in (
        ("coco90", "coco90: names of 90 classes, but the network has 80"),
        (tmp_path / "map.pbtxt", "has no name for class 1 of 80"),
    ):
        with pytest.raises(WeightsError, match=message):
            convert_state_dict(tmp_path / "a.pth", labels=labels)


def test_damaged_files_give_one_line(small: State, voc_detector: PytorchSSD, segmenter: MMSegmentation, tmp_path: Path):
    rng = random.Random(0)
    tiny = MMSegmentation(3, width=0.25, channels=8).state_dict()
    thin_torchvision = {name.replace("conv.0.", "conv.0.0."): tensor for name, tensor in small.items()}
    states = [small, dict(tiny), thin_torchvision]
    messages = []
    for number in range(40):
        state = dict(rng.choice(states))
        for name in rng.sample(sorted(state), rng.randint(0, 2)):
            shape = [rng.choice([0, 1, 2, 3, 4, 32]) for _ in range(rng.randint(0, 4))]
            state.pop(name) if rng.random() < 0.4 else state.update({name: torch.zeros(shape)})
        path = tmp_path / "damaged.pth"
        torch.save({"meta": {"CLASSES": ["a", "b", "c"]}, "state_dict": state} if number % 2 else state, path)
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice([0, 0, 1, 20])):
            # the pickle is near the beginning, the table of contents at the end
            place = rng.choice([rng.randrange(len(data)), rng.randrange(40_000), len(data) - 1 - rng.randrange(9000)])
            data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
        try:
            import_weights(path, tmp_path / "w.safetensors", progress=False)
        except WeightsError as error:
            messages.append(str(error))
    assert 20 < len(messages) < 40
    assert all("damaged.pth" in message and "\n" not in message for message in messages)
