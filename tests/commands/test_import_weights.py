from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from tflite_writer import write_classifier
from torch import Tensor

from mnv2det.commands.import_weights import import_weights
from mnv2det.errors import ConfigError, DataError, Mnv2detError, WeightsError
from mnv2det.models.build import assemble, from_file
from mnv2det.models.model import Model
from mnv2det.models.weight_file import read_header, read_weights
from mnv2det.structures import Preprocess

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def classifier() -> Model:
    torch.manual_seed(0)
    return assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, "padding": "same"}},
        {"cls": {"name": "classifier", "args": {}}},
        classes={"cls": ["a", "b", "c"]},
        preprocess=Preprocess((64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ).eval()


@pytest.fixture
def tflite(classifier: Model, tmp_path: Path) -> str:
    path = tmp_path / "net.bin"  # told by its first bytes, not by its name
    path.write_bytes(write_classifier(classifier, 64))
    return str(path)


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(11):
        cv2.imwrite(str(tmp_path / f"pictures/{number}.png"), rng.integers(0, 255, (40, 50, 3)).astype(np.uint8))
    return str(tmp_path / "pictures")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(torchvision.models.mobilenet_v2(weights=None, width_mult=0.35, num_classes=4).state_dict())


@torch.no_grad()
def logits(model: Model, images: Tensor) -> Tensor:
    return model(images)["cls"]["logits"]


def test_tflite_for_inference(tflite: str, classifier: Model, tmp_path: Path) -> None:
    output, labels = tmp_path / "new" / "folder" / "w.safetensors", tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    summary = import_weights(tflite, str(output), labels=str(labels), progress=False)
    assert summary == {
        "architecture": "mobilenet_v2",
        "width": 0.35,
        "parameters": sum(parameter.numel() for parameter in classifier.parameters()),
        "classes": 3,
        "trainable": False,
        "images": 0,
        "difference": None,
        "output": str(output),
        "note": "for inference only; import with --images FOLDER to make it trainable",
    }
    model, header = from_file(str(output))
    assert header.classes == {"cls": ["background", "cat", "dog"]}
    assert header.provenance["source"] == "net.bin"
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(logits(model, images), logits(classifier, images), rtol=1e-4, atol=1e-4)


def test_tflite_with_images_is_trainable(
    tflite: str, pictures: str, classifier: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "w.safetensors"
    summary = import_weights(tflite, str(output), images=pictures, limit=9)
    assert "9/9" in capfd.readouterr().err
    assert (summary["images"], summary["trainable"], summary["note"]) == (9, True, "")
    assert summary["difference"] < 1e-4
    model, header = from_file(str(output))
    assert header.trainable
    assert header.provenance["norm_images"] == 9
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(logits(model, images), logits(classifier, images), rtol=1e-4, atol=1e-4)
    mean = model.backbone.stem.norm.running_mean
    assert mean.abs().max() > 0
    assert import_weights(Path(tflite), output, images=Path(pictures), progress=False)["images"] == 11


def test_an_unknown_file_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no weights")
    program = f"""
import sys
from mnv2det.commands.import_weights import import_weights
try:
    import_weights({str(tmp_path / "text")!r}, "w.safetensors")
except Exception as error:
    print(type(error).__name__, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["WeightsError", "False"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_torchvision_state_dict(state: dict[str, Tensor], wrapped: bool, tmp_path: Path) -> None:
    source, output = tmp_path / "w.pth", tmp_path / "w.safetensors"
    torch.save({"model": state, "epoch": 3} if wrapped else state, source)
    summary = import_weights(str(source), str(output))
    assert (summary["width"], summary["classes"], summary["trainable"]) == (0.35, 4, True)
    own = torchvision.models.mobilenet_v2(weights=None, width_mult=0.35, num_classes=4)
    own.load_state_dict(state)
    model, header = from_file(str(output))
    assert header.backbone["args"]["padding"] == "symmetric"
    assert summary["parameters"] == sum(parameter.numel() for parameter in own.parameters())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, images), own.eval()(images), rtol=1e-4, atol=1e-4)


def test_torchvision_state_dict_without_classifier_or_in_half_precision(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    source, output = tmp_path / "w.pt", tmp_path / "w.safetensors"
    features = {name: t.half() if t.is_floating_point() else t for name, t in state.items() if "features" in name}
    torch.save(features, source)
    assert import_weights(str(source), str(output))["classes"] == 0
    tensors, header = read_weights(output)
    assert header.heads == {}
    assert {str(t.dtype) for t in tensors.values()} == {"torch.float32", "torch.int64"}
    (tmp_path / "labels.txt").write_text("a\n")
    with pytest.raises(WeightsError, match="has no classifier"):
        import_weights(str(source), str(output), labels=str(tmp_path / "labels.txt"))


def test_failures_write_nothing(tflite: str, pictures: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    def file(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    def saved(name: str, content: object) -> str:
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    output = tmp_path / "out" / "w.safetensors"
    whole = Path(saved("whole.pth", state)).read_bytes()
    net = Path(tflite).read_bytes()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"\x89PNG but no more")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[type[Mnv2detError], str, str, dict[str, str]]] = [
        (WeightsError, str(tmp_path / "none.tflite"), "cannot read", {}),
        (WeightsError, str(tmp_path), "cannot read", {}),
        (WeightsError, "torchvision:IMAGENET1K_V9", "no such MobileNetV2 weights", {}),
        (
            WeightsError,
            file("text.pth", b"just text, no weights"),
            "neither a TFLite file, an ncnn .param, a file of torch.save nor",
            {},
        ),
        (WeightsError, file("zero", b""), "neither a TFLite file, an ncnn .param, a file of torch.save nor", {}),
        (WeightsError, file("own", b"\x10\0\0\0\0\0\0\0{}"), "a safetensors file", {}),
        (WeightsError, file("like a pickle", b"\x80\0\0\0\0\0\0\0{}"), "a safetensors file", {}),
        (WeightsError, file("cut.tflite", net[: len(net) // 2]), "cut.tflite: truncated", {}),
        (WeightsError, file("cut.pth", whole[: len(whole) // 2]), "cut.pth: damaged", {}),
        (WeightsError, file("pickle.pth", b"\x80\x02}q\0"), "pickle.pth: damaged", {}),
        (WeightsError, saved("list.pth", [1, 2]), "expected a state dict", {}),
        (WeightsError, saved("model.pth", torch.nn.Linear(1, 1)), "holds an object 'torch.nn", {}),
        (WeightsError, saved("other.pth", {"a": torch.zeros(1)}), "a state dict of no known form", {}),
        (WeightsError, saved("b.pth", {k: v for k, v in state.items() if k != "classifier.1.bias"}), "classifier", {}),
        (
            WeightsError,
            str(tmp_path / "whole.pth"),
            "torch.save, whose batch norm is not folded",
            {"images": pictures},
        ),
        (WeightsError, tflite, "labels.txt: cannot read", {"labels": str(tmp_path / "labels.txt")}),
        (DataError, tflite, "no such folder", {"images": str(tmp_path / "nowhere")}),
        (DataError, tflite, "no images", {"images": str(tmp_path / "empty")}),
        (DataError, tflite, "a.png", {"images": str(broken)}),
    ]
    for kind, source, message, extra in cases:
        with pytest.raises(kind) as caught:
            import_weights(source, str(output), progress=False, **extra)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not output.parent.exists()


def test_wrong_output_and_limit(tflite: str, pictures: str, tmp_path: Path) -> None:
    for output in ("w.pth", "w", ""):
        with pytest.raises(WeightsError, match=r"ends in \.safetensors"):
            import_weights(tflite, output)
    with pytest.raises(ConfigError, match="at least 1"):
        import_weights(tflite, str(tmp_path / "w.safetensors"), images=pictures, limit=0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match="cannot write"):
        import_weights(tflite, str(tmp_path / "file" / "w.safetensors"))


@pytest.mark.shared
def test_release_with_photographs(shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights"
    summary = import_weights(
        str(weights / "tf2_mobilenet_v2_1.0_224_ptq.tflite"),
        str(tmp_path / "w.safetensors"),
        labels=str(weights / "imagenet_labels.txt"),
        images=str(shared / "coco100" / "val2017"),
        limit=16,
        progress=False,
    )
    assert summary["difference"] < 1e-3
    assert (summary["width"], summary["parameters"], summary["classes"], summary["images"]) == (1.0, 3506153, 1001, 16)
    header = read_header(tmp_path / "w.safetensors")
    assert header.classes["cls"][286] == "Egyptian cat"
