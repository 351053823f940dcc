"""Models of TensorFlow.js, and other graphs whose batch norm was folded away, written here as its converter does."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_same_numbers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorflow_writer import arrays_of, frozen_graph, keras_names, random_model
from tfjs_writer import FOLDS, fold, write_tfjs

from mnv2det.commands.import_weights import import_weights
from mnv2det.convert.tensorflow.convert import convert_tensorflow
from mnv2det.convert.tensorflow.folded import name_folded
from mnv2det.convert.tensorflow.tfjs import read_tfjs
from mnv2det.errors import WeightsError
from mnv2det.models.build import from_file
from mnv2det.models.model import Model

pytestmark = pytest.mark.heavy

STEM = "FeatureExtractor/MobilenetV2/Conv/Conv2D_weights"


@pytest.fixture(scope="module")
def detector() -> Model:
    return random_model("det")


@pytest.fixture(scope="module")
def arrays(detector: Model) -> dict[str, Any]:
    return fold(arrays_of(detector, "det"), "converter")


def outputs(source: Path, folder: Path, size: tuple[int, int] = (96, 128)) -> dict[str, torch.Tensor]:
    """Of the import, for one picture."""
    summary = import_weights(source, folder / "w.safetensors", progress=False)
    assert not summary["trainable"]
    assert "--images" in summary["note"]
    return compute(from_file(str(folder / "w.safetensors"))[0].eval(), size)


def compute(model: Model, size: tuple[int, int] = (96, 128)) -> dict[str, torch.Tensor]:
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        found = next(iter(model(image).values()))
    return {name: tensor for name, tensor in found.items() if name != "anchors"}


@pytest.mark.parametrize("style", FOLDS)
@pytest.mark.parametrize("task", ["det", "cls", "seg"])
def test_folded_norms_compute_the_same(tmp_path: Path, task: str, style: str):
    model = random_model(task, **({"output_stride": 16} if task == "seg" else {}))
    stored = arrays_of(model, task)
    if task == "seg":  # whose head has another epsilon
        heads = {name for name in stored if name.startswith(("image_pooling", "aspp0", "concat_projection"))}
        folded = fold({name: array for name, array in stored.items() if name not in heads}, style)
        folded |= fold({name: stored[name] for name in heads}, style, eps=1e-5)
    else:
        folded = fold(stored, style)
    found, expected = outputs(write_tfjs(tmp_path / "net", folded).parent, tmp_path), compute(model)
    assert found.keys() == expected.keys()
    for name in found:
        assert_same_numbers(found[name], expected[name])


@pytest.mark.parametrize("style", FOLDS)
def test_folded_norms_of_a_plain_ssd_on_mobilenet_v1(tmp_path: Path, style: str):
    """Whose operators lie in a scope that repeats the name of the variables' one."""
    head = {"taps": ["block11/16", "last/32"], "lite": False, "predictor_kernel": 1}
    model = random_model("det", backbone_name="mobilenet_v1", width=0.25, head_args=head)
    stored, scope = arrays_of(model, "det"), "FeatureExtractor/MobilenetV1/"
    folded = {
        name if name in stored or style == "biases" else name.replace(scope, f"{scope}MobilenetV1/"): array
        for name, array in fold(stored, style).items()
    }
    found, expected = outputs(write_tfjs(tmp_path / "net", folded), tmp_path), compute(model)
    for name in ("logits", "codes"):
        assert_same_numbers(found[name], expected[name])


def test_a_frozen_graph_may_have_folded_norms_too(tmp_path: Path, detector: Model):
    (tmp_path / "net.pb").write_bytes(frozen_graph(fold(arrays_of(detector, "det"), "biases"), (96, 128)))
    found, expected = outputs(tmp_path / "net.pb", tmp_path), compute(detector)
    assert_same_numbers(found["logits"], expected["logits"])


def test_folded_norms_become_trainable_by_pictures(tmp_path: Path, arrays: dict[str, Any]):
    source = write_tfjs(tmp_path / "net", arrays)
    for number in range(2):
        picture = np.random.default_rng(number).integers(0, 256, (96, 128, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    summary = import_weights(source, tmp_path / "w.safetensors", images=tmp_path, limit=2, progress=False)
    assert summary["trainable"]
    assert summary["difference"] < 0.01


def test_whole_norms_stay_trainable(tmp_path: Path, detector: Model):
    tensors, header = convert_tensorflow(write_tfjs(tmp_path, arrays_of(detector, "det")))
    assert header.trainable
    assert all(torch.equal(tensors[name], tensor) for name, tensor in detector.state_dict().items())


@pytest.mark.parametrize(("shards", "groups"), [(1, 1), (5, 1), (3, 2)])
def test_shards_are_joined_even_inside_a_weight(tmp_path: Path, arrays: dict[str, Any], shards: int, groups: int):
    source = write_tfjs(tmp_path, arrays, shards=shards, groups=groups)
    found = read_tfjs(source)
    assert found.arrays.keys() == {*arrays, "Preprocessor/map/while/ResizeImage/stack"}
    assert all(np.array_equal(found.arrays[name], array) for name, array in arrays.items())
    assert len(found.parts) == shards * groups
    _, header = convert_tensorflow(tmp_path)  # the folder that it lies in
    assert header.preprocess.input_size == (96, 128)
    assert header.preprocess.sampling == "corners"
    assert set(header.provenance["parts"]) == set(found.parts)


@pytest.mark.parametrize(("kind", "exact"), [("uint8", 1 / 255), ("uint16", 1 / 65535), ("float16", 2**-10)])
def test_quantised_weights_are_what_they_stand_for(tmp_path: Path, arrays: dict[str, Any], kind: str, exact: float):
    found = read_tfjs(write_tfjs(tmp_path, arrays, quantise=kind, shards=2)).arrays
    for name, array in arrays.items():
        assert found[name].dtype == np.float32
        limit = float(array.max() - array.min()) if kind != "float16" else float(np.abs(array).max())
        assert np.abs(found[name] - array).max() <= limit * exact * 0.51 + 1e-6, name


def test_quantised_whole_numbers_are_rounded(tmp_path: Path):
    source = write_tfjs(tmp_path, {"x": np.array([7], np.int32)})
    change(source, lambda model: model["weightsManifest"][0]["weights"][0].update(
        quantization={"dtype": "uint8", "scale": 0.3, "min": 1.5}, shape=[4]))  # fmt: skip
    assert read_tfjs(source).arrays["x"].tolist() == [4, 2, 2, 2]


def boxes(detector: Model, args: dict[str, Any]) -> np.ndarray:
    """The anchors as a converter computes them: y, x of two corners, relative to the picture."""
    head = detector.heads["det"]
    maps = tuple((-(-96 // 2**k), -(-128 // 2**k)) for k in range(4, 10))
    shapes = tuple(tuple(map(tuple, level)) for level in args["anchors"])
    from mnv2det.ops.anchors import make_anchors

    assert len(head.extras) == 4
    anchors = make_anchors(maps, shapes, (96, 128)).numpy() / np.float32([128, 96, 128, 96])
    return anchors[None][..., [1, 0, 3, 2]].astype(np.float32)


@pytest.mark.parametrize("quantise", ["", "uint8"])
def test_anchors_are_found_from_the_boxes(tmp_path: Path, detector: Model, arrays: dict[str, Any], quantise: str):
    _, header = convert_tensorflow(write_tfjs(tmp_path / "silent", arrays))
    assert "anchors" in header.provenance
    defaults = header.heads["det"]["args"]["anchors"]
    stored = boxes(detector, {"anchors": defaults})
    _, header = convert_tensorflow(
        write_tfjs(tmp_path / "same", {**arrays, "Postprocessor/ExpandDims": stored}, quantise=quantise)
    )
    assert "anchors" not in header.provenance
    assert header.heads["det"]["args"]["anchors"] == defaults
    others = [[[scale * 0.5, ratio * 1.5] for scale, ratio in level] for level in defaults]
    stored = boxes(detector, {"anchors": others})
    _, header = convert_tensorflow(
        write_tfjs(tmp_path / "others", {**arrays, "Postprocessor/ExpandDims": stored}, quantise=quantise)
    )
    found = header.heads["det"]["args"]["anchors"]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(others), rtol=0.2 if quantise else 1e-4)


def test_layers_models_of_keras_are_read(tmp_path: Path):
    model = random_model("cls", classes=7)
    source = write_tfjs(tmp_path, keras_names(arrays_of(model, "cls")))

    def layers(stored: dict[str, Any]) -> None:
        stored["format"], stored["modelTopology"] = "layers-model", {"model_config": {}}

    change(source, layers)
    tensors, header = convert_tensorflow(source)
    assert header.trainable
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())
    other = write_tfjs(tmp_path / "other", {"dense_1/kernel": np.zeros((3, 2), np.float32)})
    change(other, layers)
    assert "a layers model of TensorFlow.js, but neither an SSD, a classifier nor a DeepLab" in refusal(other)


def change(source: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    model = json.loads(source.read_text())
    edit(model)
    source.write_text(json.dumps(model))
    return source


def refusal(source: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        convert_tensorflow(source)
    assert "\n" not in str(caught.value)
    assert str(source.name) in str(caught.value)
    return str(caught.value)


def group(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda model: model["weightsManifest"][0].update(values)


def weight(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda model: model["weightsManifest"][0]["weights"][0].update(values)


REFUSED = {
    "'modelTopology' is no object": lambda model: model.pop("modelTopology"),
    "'node' is no list": lambda model: model["modelTopology"].pop("node"),
    "no nodes": lambda model: model["modelTopology"].update(node=[]),
    "the name of a node is 3, expected text": lambda model: model["modelTopology"]["node"][0].update(name=3),
    "the operator of node 'image_tensor' is None": lambda model: model["modelTopology"]["node"][0].pop("op"),
    "an input of a node is []": lambda model: model["modelTopology"]["node"][1].update(input=[[]]),
    "'weightsManifest' is no list": lambda model: model.pop("weightsManifest"),
    "group 0 of 'weightsManifest' is no object": lambda model: model.update(weightsManifest=[7]),
    "'weights' is no list": group(weights=None),
    "'paths' is no list": group(paths="group1-shard1of1.bin"),
    "the path of a shard is ''": group(paths=[""]),
    "'../w.bin' lies outside the folder": group(paths=["../w.bin"]),
    "'a/../../w.bin' lies outside the folder": group(paths=["a/../../w.bin"]),
    "'/etc/passwd' lies outside the folder": group(paths=["/etc/passwd"]),
    "'link.bin' lies outside the folder": group(paths=["link.bin"]),
    "is named twice": group(paths=["group1-shard1of1.bin", "group1-shard1of1.bin"]),
    "shards of 0 bytes, expected ": group(paths=[]),
    f"weight '{STEM}': its shape is [3, -1]": weight(shape=[3, -1]),
    f"weight '{STEM}': its shape is [True, 3]": weight(shape=[True, 3]),
    f"weight '{STEM}': its shape is [1.5]": weight(shape=[1.5]),
    f"weight '{STEM}': its shape is no list": weight(shape=None),
    "more than 67,108,864 values": weight(shape=[2**20, 2**20]),
    "shards of more than": weight(shape=[1]),
    "bytes, expected": weight(shape=[1000]),
    "its type is 'string', expected one of float32, int32, bool": weight(dtype="string"),
    "its type is None": weight(dtype=None),
    "quantised as 'int4', expected one of uint8, uint16, float16": weight(quantization={"dtype": "int4"}),
    "quantised as []": weight(quantization={"dtype": []}),
    "'scale' of its quantisation is None, expected a number": weight(quantization={"dtype": "uint8", "min": 0}),
    "'min' of its quantisation is nan": weight(quantization={"dtype": "uint8", "min": float("nan"), "scale": 1}),
    "the name of a weight is 'a\\nb'": weight(name="a\nb"),
    "the name of a weight is None": weight(name=None),
    "two weights 'FeatureExtractor/MobilenetV2/Conv/Conv2D_bn_offset'": weight(
        name=STEM.replace("weights", "bn_offset")
    ),
    "no 'FeatureExtractor/MobilenetV2/expanded_conv_1/project/weights'": lambda model: None,
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_wrong_is_named(tmp_path: Path, arrays: dict[str, Any], message: str):
    few = {name: arrays[name] for name in (STEM, STEM.replace("weights", "bn_offset"))}
    few["FeatureExtractor/MobilenetV2/expanded_conv/project/Conv2D_weights"] = np.zeros((1, 1, 2, 2), np.float32)
    source = write_tfjs(tmp_path / "net", few)
    (tmp_path / "w.bin").write_bytes(b"")
    (tmp_path / "net/link.bin").symlink_to(tmp_path / "w.bin")
    found = refusal(change(source, REFUSED[message]))
    assert message in found


def test_files_that_are_missing_or_no_json_are_named(tmp_path: Path, arrays: dict[str, Any]):
    source = write_tfjs(tmp_path, arrays, shards=2)
    (tmp_path / "group1-shard2of2.bin").unlink()
    with pytest.raises(WeightsError, match=r"group1-shard2of2\.bin: no such shard"):
        convert_tensorflow(source)
    for content in (b"", b"{", b"[" * 100_000, b"\xff\xfe\x00", b"9" * 5000):
        source.write_bytes(content)
        assert "damaged, or no model of TensorFlow.js" in refusal(source)
    with pytest.raises(WeightsError, match=r"none\.json: no such model\.json"):
        convert_tensorflow(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("MobilenetV1/MobilenetV1/Conv2d_0/Conv2D/merged_input", "MobilenetV1/Conv2d_0/weights"),
        ("MobilenetV1/Conv2d_1_depthwise/depthwise_weights", "MobilenetV1/Conv2d_1_depthwise/depthwise_weights"),
        ("MobilenetV1/MobilenetV1/a_depthwise/depthwise/merged_input", "MobilenetV1/a_depthwise/depthwise_weights"),
        ("a/MobilenetV2/MobilenetV2/b/BatchNorm/batchnorm/sub", "a/MobilenetV2/b/BatchNorm/folded_offset"),
        ("b/BatchNorm/batchnorm/mul", "b/BatchNorm/folded_scale"),
        ("b/depthwise/depthwise_bn_offset", "b/depthwise/BatchNorm/folded_offset"),
        ("MobilenetV1/MobilenetV1/b/biases", "MobilenetV1/MobilenetV1/b/biases"),
    ],
)
def test_the_names_that_programs_give_folded_layers(stored: str, name: str):
    assert list(name_folded({stored: np.zeros(1)}, "file")) == [name]


def test_two_tensors_of_one_layer_are_refused(tmp_path: Path, arrays: dict[str, Any]):
    twice = {**arrays, STEM.replace("Conv2D_weights", "weights"): arrays[STEM]}
    assert "two tensors for 'FeatureExtractor/MobilenetV2/Conv/weights'" in refusal(write_tfjs(tmp_path, twice))


def damage(content: bytes, random_: random.Random) -> bytes:
    """Bytes changed, cut off or written twice; in JSON also numbers and names, so that it stays JSON more often."""
    damaged = bytearray(content)
    for _ in range(random_.randint(1, 4)):
        damaged[random_.randrange(len(damaged))] = random_.choice((*b'0919-e".[]{},', random_.randrange(256)))
    if random_.random() < 0.2:
        start, end = sorted(random_.randrange(len(damaged)) for _ in range(2))
        damaged[start:end] = [b"", damaged[start:end] * 2][random_.random() < 0.5]
    return bytes(damaged)


def feed(folder: Path, arrays: dict[str, Any], random_: random.Random, count: int) -> None:
    """Reads damaged models: a model.json, and shards that are too short or long now and then."""
    few = dict(list(arrays.items())[:6])
    source = write_tfjs(folder, few, shards=2, quantise="uint8")
    content, shard = source.read_bytes(), folder / "group1-shard2of2.bin"
    values = shard.read_bytes()
    for number in range(count):
        source.write_bytes(damage(content, random_))
        if number % 50 == 0:
            shard.write_bytes(damage(values, random_))
        with pytest.raises(WeightsError) as caught:
            convert_tensorflow(source)
        assert "\n" not in str(caught.value)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_damaged_models_are_errors_of_one_line(tmp_path: Path, arrays: dict[str, Any], seed: int):
    feed(tmp_path, arrays, random.Random(seed), 10)


@pytest.mark.slow
def test_a_hundred_thousand_damaged_models(tmp_path: Path, arrays: dict[str, Any]):
    """Neither another exception nor much memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    feed(tmp_path, arrays, random.Random(0), 100_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1_500_000  # KiB
