from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ncnn_writer import EXTRAS, LOWEST, RELU6, Layers, Storage, load_detector, random_detector, write_detector
from torch import Tensor

from mnv2det.convert.ncnn.convert import convert_ncnn
from mnv2det.convert.ncnn.layers import parse_param, read_bin
from mnv2det.convert.reestimate import reestimate
from mnv2det.errors import WeightsError
from mnv2det.models.build import from_file
from mnv2det.models.model import Model
from mnv2det.models.weight_file import save_weights
from mnv2det.structures import VOC_CLASSES, Preprocess

pytestmark = pytest.mark.heavy

HALF = (0.5, 0.5, 0.5)
Outputs = tuple[Tensor, dict[str, Tensor]]


@torch.no_grad()
def raw(model: Model, images: Tensor) -> dict[str, Tensor]:
    return model(images)["det"]


def agree(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.std() > 0.3, name
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance * float(value.abs().max()))


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        convert_ncnn(path)
    text = str(caught.value)
    assert "\n" not in text
    assert f"{path.name}: an ncnn file, but not a MobileNetV2 SSDLite:" in text
    return text


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A detector and its file, not to be changed."""
    model = random_detector()
    return model, write_detector(model, tmp_path_factory.mktemp("ncnn") / "net.param")


@pytest.fixture
def path(written: tuple[Model, Path], tmp_path: Path) -> Path:
    """A copy of that file."""
    for suffix in (".param", ".bin"):
        (tmp_path / f"net{suffix}").write_bytes(written[1].with_suffix(suffix).read_bytes())
    return tmp_path / "net.param"


@pytest.fixture
def outputs(written: tuple[Model, Path]) -> Outputs:
    """Images, and what that detector makes of them."""
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    return images, raw(written[0], images)


def edit(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize(("width", "size", "score"), [(0.35, 96, "sigmoid"), (0.75, 90, "softmax")])
def test_float_file_gives_the_same_function(width: float, size: int, score: str, padding: str, tmp_path: Path) -> None:
    model = random_detector(width, size, padding=padding, score=score, nms_iou=0.45, max_detections=50)
    path = write_detector(model, tmp_path / "net.param")
    _, header = convert_ncnn(path)
    images = torch.randn(2, 3, size, size)
    agree(raw(load_detector(path), images), raw(model, images))

    assert header.backbone == {
        "name": "mobilenet_v2",
        "args": {"width": width, "padding": padding, "norm_eps": 1e-3},
    }
    args = header.heads["det"]["args"]
    assert args["extras"] == list(EXTRAS)
    assert (args["padding"], args["score"], args["max_detections"]) == (padding, score, 50)
    assert args["nms_iou"] == pytest.approx(0.45)
    assert (args["min_scale"], args["max_scale"], args["lowest"]) == (0.2, 0.95, [list(shape) for shape in LOWEST])
    assert args["ratios"] == pytest.approx([1, 2, 1 / 2, 3, 1 / 3])
    assert "score_threshold" not in args
    assert header.preprocess == Preprocess((size, size), HALF, HALF)
    assert header.classes == {"det": ["0", "1", "2", "3"]}
    assert not header.trainable
    assert header.provenance["source"] == "net.param"
    assert list(header.provenance["parts"]) == ["net.bin"]
    assert header.provenance["channels"] == "BGR, swapped in the stem"
    assert header.provenance["score_threshold"] == 0.35


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_other_storage_gives_the_same_tensors_rounded(storage: Storage, tmp_path: Path) -> None:
    model = random_detector()
    expected, header = convert_ncnn(write_detector(model, tmp_path / "net.param"))
    found, other = convert_ncnn(write_detector(model, tmp_path / "net.param", storage))
    assert other.heads == header.heads
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        step = torch.zeros(())
        if tensor.dim() == 4:
            largest = tensor.abs().flatten(1).amax(dim=1).view(-1, 1, 1, 1)
            step = largest / 127 / 2 * 1.001 if storage == "int8" else largest / 2048 + 1e-7
        assert ((found[name] - tensor).abs() <= step).all(), name
        assert tensor.dim() < 4 or not torch.equal(found[name], tensor), name


def test_imported_file_is_a_weight_file_like_any_other(path: Path, tmp_path: Path) -> None:
    images = torch.randn(8, 3, 96, 96)
    tensors, header = convert_ncnn(path)
    save_weights(tmp_path / "net.safetensors", tensors, header)
    model, _ = from_file(str(tmp_path / "net.safetensors"))
    before = raw(model, images)
    agree(before, raw(load_detector(path), images))
    # and can be made trainable
    assert reestimate(model, [images], header=header) == 8
    assert header.trainable
    agree(raw(model, images), before, 1e-3)
    model.train()
    agree(raw(model, images), before, 2e-2)


def test_unevenly_spaced_anchors_are_listed_one_by_one(path: Path, outputs: Outputs, tmp_path: Path) -> None:
    images, expected = outputs
    edit(path, "-23300=1,48.000000", "-23300=1,45.000000")  # the third level
    imported = load_detector(path)
    args = imported.spec["heads"]["det"]["args"]
    assert [len(level) for level in args["anchors"]] == [3, 6, 6, 6, 6, 6]
    assert args["anchors"][2][:3] == [[45 / 96, 1.0], [45 / 96, 2.0], [45 / 96, 0.5]]
    found = raw(imported, images)
    agree({**found, "anchors": expected["anchors"]}, expected)
    changed = (found["anchors"] - expected["anchors"]).abs().amax(dim=1) > 1e-3
    assert changed.nonzero().flatten().tolist() == list(range(36 * 3 + 9 * 6, 36 * 3 + 9 * 6 + 4 * 6))
    tensors, header = convert_ncnn(path)
    save_weights(tmp_path / "net.safetensors", tensors, header)
    agree(raw(from_file(str(tmp_path / "net.safetensors"))[0], images), found)


def test_fewer_levels(tmp_path: Path) -> None:
    model, images = random_detector(extras=EXTRAS[:2], max_scale=0.8), torch.randn(1, 3, 96, 96)
    imported = load_detector(write_detector(model, tmp_path / "net.param"))
    args = imported.spec["heads"]["det"]["args"]
    assert (args["extras"], args["anchors"], args["max_scale"]) == (list(EXTRAS[:2]), None, 0.8)
    agree(raw(imported, images), raw(model, images))


def test_other_variances_give_the_same_boxes(path: Path, outputs: Outputs) -> None:
    images, expected = outputs
    path.write_text(path.read_text().replace("13=0.500000", "13=0.500000 3=0.2 4=0.3 5=0.1 6=0.4"))
    found = raw(load_detector(path), images)
    factors = torch.tensor([0.2 / 0.1, 0.3 / 0.1, 0.1 / 0.2, 0.4 / 0.2])
    agree({**found, "codes": found["codes"] / factors}, expected)


def test_steps_and_sizes_that_say_the_same(path: Path, outputs: Outputs) -> None:
    images, expected = outputs
    edit(path, "9=-233 10=-233 13=0.5", "9=96 10=96 11=16.0 12=16.0 13=0.5")
    agree(raw(load_detector(path), images), expected)


def test_a_sum_may_be_a_binary_operation_and_its_terms_change_places(path: Path, outputs: Outputs) -> None:
    images, expected = outputs
    text = re.sub(r"Eltwise( +\S+ +2 1) (\S+) (\S+) (\S+) 0=1", r"BinaryOp\1 \3 \2 \4 0=0", path.read_text())
    assert "Eltwise" not in text
    path.write_text(text)
    agree(raw(load_detector(path), images), expected)


# ---------------------------------------------------------------- what is another network


def test_mobilenet_v1_ssd_is_refused_at_its_first_pointwise_layer(tmp_path: Path) -> None:
    net, zeros = Layers(300), np.zeros(64, np.float32)
    first = net.conv("conv0", net.current, np.zeros((32, 3, 3, 3), np.float32), zeros[:32], f"3=2 4=-233 {RELU6}")
    weight = np.zeros((32, 1, 3, 3), np.float32)
    deep = net.conv("conv1/dw", first, weight, zeros[:32], f"4=1 {RELU6}", depthwise=True)
    point = net.conv("conv1", deep, np.zeros((64, 32, 1, 1), np.float32), zeros, RELU6)
    net.add("PriorBox", "prior", [point, net.image], "-23300=1,60.0 -23302=1,2.0 9=-233 10=-233 13=0.5")
    text = refusal(net.finish(tmp_path / "v1.param"))
    assert "operator 4 'conv1' is CONV_2D 1x1 stride 1 32 to 64 channels, RELU6" in text
    assert text.endswith("expected CONV_2D 1x1 stride 1 32 to 16 channels, NONE")


def test_plain_relu_and_separate_norms_are_refused_at_the_stem(tmp_path: Path) -> None:
    net = Layers(300)
    blob = net.conv("conv0", net.current, np.zeros((32, 3, 3, 3), np.float32), None, "3=2 4=-233")
    path = net.finish(tmp_path / "other.param")
    edit(path, "\n2 2\n", "\n3 3\n")
    path.write_text(path.read_text() + f"ReLU relu 1 1 {blob} relu\n")
    assert "operator 1 'conv0' is CONV_2D 3x3 stride 2 SAME 3 to 32 channels, RELU, expected" in refusal(path)
    edit(path, "ReLU relu", "BatchNorm bn")
    edit(path, f"{blob} relu", f"{blob} relu 0=1")
    path.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes() + bytes(16))
    assert "channels, NONE, expected CONV_2D 3x3 stride 2" in refusal(path)


def test_a_classifier_is_refused_behind_the_backbone(path: Path) -> None:
    layers = parse_param(path.read_text())
    last = next(layer for layer in layers if layer.settings.get(0) == 1280)
    head = path.read_text().split("\n")[2 : last.index + 3]
    head.append(f"Pooling pool 1 1 {last.outputs[0]} pool 0=1 4=1")
    data = path.with_suffix(".bin").read_bytes()
    read_bin(data, layers)
    weighted = [layer for layer in layers[: last.index + 1] if layer.weight is not None]
    path.with_suffix(".bin").write_bytes(data[: sum(4 + 4 * (la.weight.size + la.bias.size) for la in weighted)])
    blobs = sum(int(line.split()[3]) for line in head)
    path.write_text("\n".join(["7767517", f"{len(head)} {blobs}", *head]))
    text = refusal(path)
    assert f"operator {last.index + 1} 'pool' is Pooling, expected CONV_2D 1x1 stride 1 1280 to" in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Sigmoid ", "HardSwish ", "'mbox_conf_score' is HardSwish, expected LOGISTIC or SOFTMAX"),
        ("Permute                  loc0_perm", "Flatten loc0_perm", "'loc0_perm' is Flatten, expected Permute order 3"),
        ("loc0_perm 0=3", "loc0_perm 0=4", "'loc0_perm' is Permute order 4, expected Permute order 3"),
        ("0=5 1=-1", "0=7 1=-1", "'mbox_conf_reshape' is RESHAPE rows 7, expected LOGISTIC"),
        ("0=5 1=-1", "0=-1 1=5", "'mbox_conf_reshape' is RESHAPE to (-233, 5, -1), expected LOGISTIC"),
        ("loc0_flat loc1_flat", "loc1_flat loc0_flat", "CONCATENATION reads 'loc1_flat' and 'loc0_flat'"),
        ("prior0 prior1", "prior1 prior0", "CONCATENATION reads 'prior1' and 'prior0'"),
        ("priorbox 0=1", "priorbox 0=0", "'mbox_priorbox' is CONCATENATION over 0, expected CONCATENATION over 1"),
        ("mbox_loc mbox_conf_flatten", "mbox_conf_flatten mbox_loc", "DetectionOutput reads 'mbox_conf_flatten' and"),
        ("13=0.500000", "13=0.000000", "'prior0' has offset 0, clip False, expected 0.5 and False"),
        ("13=0.500000", "8=1 13=0.500000", "'prior0' has offset 0.5, clip True"),
        ("13=0.500000", "11=15.0 13=0.500000", "'prior0' spreads its anchors over (96, 90.0) of (96, 96)"),
        ("9=-233", "9=100", "'prior0' spreads its anchors over (96, 96) of (96, 100), expected (96, 96)"),
        ("-23302=1,2.000000", "-23302=1,0", "'prior0' has sizes (19.2,), () and ratios (0.0,), expected believable"),
        ("-23302=1,2.000000", "-23302=1,1e-30", "and ratios (1e-30,), expected believable ones"),
        ("-23301=1,", "-23301=2,9,", "'prior1' has sizes (33.6,), (9.0, 48.0) and ratios"),
        ("-23302=1,2.000000", f"-23302=200,{','.join(['2'] * 200)}", "anchors [401, 6, 6, 6, 6, 6] and 4 classes"),
        ("1=0.600000", "1=7.0", "'detection_out' has"),
        ("0=5 1=0.6", "0=0 1=0.6", "-1 classes"),
        ("0=5 1=0.6", "0=9 1=0.6", "192 to 15 channels, NONE, expected CONV_2D 1x1 stride 1 192 to 27"),
        ("-23302=1,2.000000", "-23302=3,2,3,4", "192 to 12 channels, NONE, expected CONV_2D 1x1 stride 1 192 to 28"),
        ("0=96 1=96 2=3", "0=96 1=96 2=1", "its input is [1, 96, 96, 1], expected [1, height, width, 3]"),
        ("0=96 1=96 2=3", "", "its input is [], expected"),
        ("0=96 1=96 2=3", "0=8 1=8 2=3", "its input is [1, 8, 8, 3], expected"),
        ("-23300=2,1,-233 1=1", "-23300=2,2,-233 1=1", "3x3 stride 2 padding (-2, 0) to (47, 48) 3 to 16 channels"),
    ],
)  # fmt: skip
def test_other_details_are_refused(old: str, new: str, message: str, path: Path) -> None:
    assert message in refusal(edit(path, old, new))


def test_shortcuts_and_taps_from_another_place_are_refused(path: Path) -> None:
    whole = path.read_text()
    line = next(line for line in whole.split("\n") if line.startswith("Eltwise"))
    path.write_text(whole.replace(line, line.replace(line.split()[4], "data")))
    assert "ADD reads 'data' and 'conv" in refusal(path)
    # the finest level's predictor reads the depthwise layer of its block instead of the expanding one
    layers = parse_param(whole)
    box = next(layer.index for layer in layers if layer.name == "loc0") - 1
    expand = next(layer.index for layer in layers if layers[box].inputs[0] in layer.outputs) - 1
    depthwise = next(layer for layer in layers[expand + 1 :] if layer.kind == "ConvolutionDepthWise")
    line = whole.split("\n")[box + 2]
    name, wrong, right = layers[box].name, depthwise.name, layers[expand].outputs[0]
    path.write_text(whole.replace(line, line.replace(layers[box].inputs[0], f"{wrong}/relu")))
    assert f"'{name}' DEPTHWISE_CONV_2D reads '{wrong}/cut2', expected '{right}'" in refusal(path)


def test_a_missing_shortcut_is_refused(tmp_path: Path) -> None:
    model = random_detector()
    model.backbone.blocks[2].shortcut = False
    assert "expected ADD, NONE" in refusal(write_detector(model, tmp_path / "net.param"))


# ---------------------------------------------------------------- class names


def test_twenty_classes_are_those_of_voc(tmp_path: Path) -> None:
    path = write_detector(random_detector(classes=20), tmp_path / "net.param")
    assert convert_ncnn(path)[1].classes["det"] == list(VOC_CLASSES)
    assert sorted(VOC_CLASSES) == list(VOC_CLASSES)
    assert len(set(VOC_CLASSES)) == 20


def test_labels(path: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    for text in ("a\nb\nc\nd\n", "background\na\nb\nc\nd"):
        labels.write_text(text)
        assert convert_ncnn(path, labels=labels)[1].classes["det"] == ["a", "b", "c", "d"]
    for text, message in (
        ("a\nb\nc", "3 class names"),
        ("a\nb\nc\nd\ne", "5 class names, but the network has 4 classes"),
        ("background\na\nb\nc", "4 class names, but the network has 5 outputs"),
        ("background\na\nb\nc\nd\ne", "class names, but the network has 4 classes"),
    ):
        labels.write_text(text)
        with pytest.raises(WeightsError, match=rf"labels\.txt: .*{message}"):
            convert_ncnn(path, labels=labels)


# ---------------------------------------------------------------- hostile files


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_mutation_ends_in_a_model_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "net.param"
    if not path.exists():
        write_detector(random_detector(0.05, 32, 1), path, "int8")
        (tmp_path / "whole").write_text(path.read_text())
    words = (tmp_path / "whole").read_text().split(" ")
    places = [at for at, word in enumerate(words) if word]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(places))
        key, equals, _ = words[at].partition("=")
        value = data.draw(st.one_of(st.integers(-300, 300), st.integers(-(1 << 31), 1 << 31), st.floats(width=32)))
        other = f"{key}={value}" if equals else words[data.draw(st.sampled_from(places))]
        words[at] = data.draw(st.sampled_from((other, f"{words[at]} {other}", "")))
    path.write_text(" ".join(words))
    message = ""
    try:
        load_detector(path)
    except WeightsError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000
