from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tflite_writer import RELU6, Layers, write_classifier
from torch import Tensor, nn

from mnv2det.convert.labels import read_labels
from mnv2det.convert.tflite.convert import convert_tflite
from mnv2det.data.images import read_image
from mnv2det.errors import WeightsError
from mnv2det.models.build import assemble
from mnv2det.models.model import Model
from mnv2det.structures import Preprocess

pytestmark = pytest.mark.heavy

RELEASES = ["mobilenet_v2_1.0_224_quant.tflite", "tf2_mobilenet_v2_1.0_224_ptq.tflite"]
HALF = (0.5, 0.5, 0.5)


def random_classifier(width: float = 0.35, size: int = 64, classes: int = 7) -> Model:
    """A classifier whose norms are far from the identity and whose logits spread."""
    torch.manual_seed(0)
    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": width, "padding": "same", "norm_eps": 1e-3}},
        {"cls": {"name": "classifier", "args": {}}},
        classes={"cls": [str(n) for n in range(classes)]},
        preprocess=Preprocess((size, size), HALF, HALF),
    )
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0.3, 0.5)
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.3, 2)
            elif isinstance(layer, nn.Linear):
                layer.weight.normal_(0, 0.1)
    return model.eval()


def load(path: Path, labels: Path | None = None) -> Model:
    tensors, header = convert_tflite(path, labels=labels)
    model = assemble(header.backbone, header.heads, classes=header.classes, preprocess=header.preprocess)
    model.load_state_dict(tensors)
    return model.eval()


@torch.no_grad()
def logits(model: Model, images: Tensor) -> Tensor:
    return model(images)["cls"]["logits"]


def refusal(data: bytes, folder: Path) -> str:
    (folder / "other.tflite").write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        convert_tflite(folder / "other.tflite")
    text = str(caught.value)
    assert "\n" not in text
    assert "other.tflite: a TFLite file, but not a MobileNetV2" in text
    return text


@pytest.mark.parametrize("keras", [False, True], ids=["slim", "keras"])
@pytest.mark.parametrize(("width", "size"), [(0.35, 64), (0.75, 96), (1.4, 64)])
def test_float_file_gives_the_same_function(width: float, size: int, keras: bool, tmp_path: Path) -> None:
    model = random_classifier(width, size)
    path = tmp_path / "net.tflite"
    path.write_bytes(write_classifier(model, size, keras=keras))
    tensors, header = convert_tflite(path)
    imported = load(path)
    images = torch.randn(2, 3, size, size)
    expected = logits(model, images)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(imported, images), expected, rtol=1e-4, atol=1e-4)

    assert header.backbone["args"] == {"width": width, "padding": "same", "norm_eps": 1e-3}
    assert header.preprocess == Preprocess((size, size), HALF, HALF)
    assert not header.trainable
    assert header.provenance["source"] == "net.tflite"
    assert len(header.provenance["sha256"]) == 64
    assert header.classes == {"cls": [str(n) for n in range(7)]}
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def test_writer_agrees_with_the_reference_interpreter(tmp_path: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model, image = random_classifier(), torch.randn(1, 3, 64, 64)
    expected = logits(model, image).softmax(1).numpy()
    for keras in (False, True):
        reference = interpreter.Interpreter(model_content=write_classifier(model, 64, keras=keras))
        reference.allocate_tensors()
        reference.set_tensor(reference.get_input_details()[0]["index"], image.permute(0, 2, 3, 1).numpy())
        reference.invoke()
        found = reference.get_tensor(reference.get_output_details()[0]["index"])
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_mobilenet_v1_is_refused_at_its_first_pointwise_layer(tmp_path: Path) -> None:
    net = Layers(64)
    net.conv(np.zeros((32, 3, 3, 3), np.float32), np.zeros(32, np.float32), stride=2, activation=RELU6)
    net.conv(np.zeros((32, 1, 3, 3), np.float32), np.zeros(32, np.float32), depthwise=True, activation=RELU6)
    net.conv(np.zeros((64, 32, 1, 1), np.float32), np.zeros(64, np.float32), activation=RELU6)
    text = refusal(net.bytes(), tmp_path)
    assert "operator 2 is CONV_2D 1x1 stride 1 32 to 64 channels, RELU6" in text
    assert text.endswith("expected CONV_2D 1x1 stride 1 32 to 16 channels, NONE")


def test_wrong_shortcuts_are_refused(tmp_path: Path) -> None:
    model = random_classifier()
    block = model.backbone.blocks[2]  # the first with a shortcut: operator 9 in the file
    block.shortcut = False
    text = refusal(write_classifier(model, 64), tmp_path)
    assert "operator 9 is CONV_2D" in text
    assert "expected ADD" in text
    block.shortcut = True
    model.backbone.blocks[1].shortcut = True
    text = refusal(write_classifier(model, 64), tmp_path)
    assert "operator 6 is ADD, NONE, expected CONV_2D 1x1" in text


def test_shortcut_from_another_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Layers.add
    monkeypatch.setattr(Layers, "add", lambda net, _: own(net, net.start))
    text = refusal(write_classifier(random_classifier(), 64), tmp_path)
    assert "operator 9 ADD reads" in text
    assert "'tensor0'" in text


def test_other_details_are_refused(tmp_path: Path) -> None:
    model = random_classifier()
    model.backbone.blocks[0].project.act = nn.ReLU6()
    assert "operator 2 is CONV_2D 1x1 stride 1 16 to 8 channels, RELU6" in refusal(
        write_classifier(model, 64), tmp_path
    )
    model = random_classifier()
    model.backbone.blocks[3].depthwise.conv.stride = (1, 1)
    text = refusal(write_classifier(model, 64), tmp_path)
    assert "operator 11 is DEPTHWISE_CONV_2D 3x3 stride 1" in text
    assert "expected DEPTHWISE_CONV_2D 3x3 stride 2" in text
    model = random_classifier()
    del model.backbone.blocks[16]
    assert "expected CONV_2D 1x1 stride 1 56 to 336 channels" in refusal(write_classifier(model, 64), tmp_path)


def test_missing_or_superfluous_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layers, "dense", lambda *_: None)
    text = refusal(write_classifier(random_classifier(), 64, keras=True), tmp_path)
    assert "is SOFTMAX, expected CONV_2D 1x1 stride 1 1280 to" in text
    monkeypatch.setattr(Layers, "softmax", lambda *_: None)
    assert "ends after operator" in refusal(write_classifier(random_classifier(), 64, keras=True), tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Layers, "softmax", lambda net: net.dense(np.eye(7, dtype=np.float32), np.zeros(7, np.float32)))
    assert "expected the end of the network" in refusal(write_classifier(random_classifier(), 64), tmp_path)


def test_no_operators_and_other_inputs_are_refused(tmp_path: Path) -> None:
    assert "ends without an operator, expected CONV_2D" in refusal(Layers(64).bytes(), tmp_path)
    net = Layers(64)
    net.tensors[0]["shape"] = [1, 64, 64]
    assert "input is [1, 64, 64]" in refusal(net.bytes(), tmp_path)


@pytest.mark.parametrize(
    ("lines", "first"),
    [
        (["background", "a", "b"], "background"),
        (["a", "b"], "background"),
        (["x", "a", "b", "", ""], "x"),
        (["background", "x", "a", "b"], "x"),
    ],
)
def test_labels_make_room_for_the_background(lines: list[str], first: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(lines))
    assert read_labels(path, 3) == [first, "a", "b"]


def test_wrong_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    for data, message in (
        (b"a\nb\nc\nd\ne", "5 class names, but the network has 3 outputs"),
        (b"background\na", "2 class names"),
        (b"", "0 class names"),
        (b"a\n\nb", "line 2 is blank"),
        (b"\xff\xfe\xfa", "not UTF-8 text"),
    ):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=rf"labels\.txt: .*{message}"):
            read_labels(path, 3)
    with pytest.raises(WeightsError, match="No such file"):
        read_labels(tmp_path / "none.txt", 3)


def test_flipped_bytes_end_in_a_result_or_one_line(tmp_path: Path) -> None:
    whole, rng = write_classifier(random_classifier(0.05, 32), 32), random.Random(0)
    path, messages = tmp_path / "net.tflite", []
    for _ in range(60):
        data = bytearray(whole)
        # tables lie before the weights: aim at both
        end = rng.choice((len(data) // 8, len(data)))
        for _ in range(rng.choice((1, 1, 5))):
            data[rng.randrange(8, end)] = rng.randrange(256)
        path.write_bytes(data)
        try:
            convert_tflite(path)
        except WeightsError as error:
            messages.append(str(error))
    assert len(messages) > 5
    assert not [message for message in messages if "\n" in message]


def picture(path: Path) -> Tensor:
    """uint8 (3, 224, 224), resized without regard to its shape."""
    import cv2

    return torch.from_numpy(cv2.resize(read_image(path), (224, 224))).permute(2, 0, 1)


@pytest.mark.shared
@pytest.mark.parametrize("release", RELEASES)
def test_releases_name_what_is_on_the_pictures(release: str, shared: Path) -> None:
    model = load(shared / "weights" / release, shared / "weights" / "imagenet_labels.txt")
    names = {"cat": "Egyptian cat", "bird": "chickadee", "grace_hopper": "military uniform"}
    images = torch.stack([picture(shared / "weights" / f"{name}.bmp") for name in names])
    best = logits(model, model.normalize(images)).argmax(1)
    assert [model.classes["cls"][index] for index in best] == list(names.values())


@pytest.mark.shared
@pytest.mark.parametrize("release", RELEASES)
def test_releases_agree_with_the_reference_interpreter(release: str, shared: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    path = shared / "weights" / release
    photographs = sorted((shared / "voc100/VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))[:10]
    images = torch.stack([picture(photograph) for photograph in photographs])
    model = load(path)
    ours = logits(model, model.normalize(images)).numpy()

    reference = interpreter.Interpreter(
        str(path),
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    reference.allocate_tensors()
    # the output is a softmax in steps of 1/256: compare what goes into it
    softmax = next(op for op in reference._get_ops_details() if op["op_name"] == "SOFTMAX")
    detail = next(info for info in reference.get_tensor_details() if info["index"] == softmax["inputs"][0])
    scale, zero = detail["quantization"]
    for image, own in zip(images, ours, strict=True):
        reference.set_tensor(reference.get_input_details()[0]["index"], image.permute(1, 2, 0).numpy()[None])
        reference.invoke()
        theirs = (reference.get_tensor(detail["index"]).ravel().astype(np.float32) - zero) * scale
        assert np.corrcoef(theirs, own)[0, 1] >= 0.99
        assert theirs.argmax() == own.argmax()


@pytest.mark.shared
def test_releases_that_are_cut_off_or_named_by_others_labels_are_refused(shared: Path, tmp_path: Path) -> None:
    segmenter = "deeplabv3_mnv2_pascal_quant.tflite"
    for release in [*RELEASES, segmenter]:
        data = (shared / "weights" / release).read_bytes()
        (tmp_path / "cut.tflite").write_bytes(data[: len(data) // 2])
        with pytest.raises(WeightsError, match=r"cut\.tflite: truncated, damaged or unsupported TFLite file"):
            convert_tflite(tmp_path / "cut.tflite")
    with pytest.raises(WeightsError, match=r"imagenet_labels\.txt: 1001 class names, but the network has 21 outputs"):
        convert_tflite(shared / "weights" / segmenter, labels=shared / "weights" / "imagenet_labels.txt")
