"""Checkpoints and saved models of TensorFlow 2, written here as Keras does."""

from __future__ import annotations

import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_writer import (
    arrays_of,
    field,
    frozen_graph,
    keras_names,
    object_graph,
    random_model,
    saved_model,
    varint,
    write_checkpoint,
    write_checkpoint_2,
)

from mnv2det.convert.graph import DamagedError
from mnv2det.convert.tensorflow import object_graph as reader
from mnv2det.convert.tensorflow.convert import convert_tensorflow
from mnv2det.errors import WeightsError
from mnv2det.models.model import Model

pytestmark = pytest.mark.heavy

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


@pytest.fixture(scope="module")
def classifier() -> Model:
    return random_model("cls", classes=5)


@pytest.fixture(scope="module")
def keras(classifier: Model) -> dict[str, Any]:
    return keras_names(arrays_of(classifier, "cls"))


def text_of(graph: bytes) -> memoryview:
    """A graph of objects as a checkpoint stores it."""
    return memoryview(varint(len(graph)) + b"\0\0\0\0" + graph)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", ["checkpoint", "saved model"])
def test_keras_mobilenet_v2_brings_the_same_weights(
    tmp_path: Path, classifier: Model, keras: dict[str, Any], form: str, shards: int
):
    source = tmp_path
    if form == "checkpoint":
        source = write_checkpoint_2(tmp_path / "ckpt-1", keras, shards=shards, block=500)
    else:
        (tmp_path / "saved_model.pb").write_bytes(saved_model(frozen_graph({}, (96, 128))))
        write_checkpoint_2(tmp_path / "variables/variables", keras, shards=shards)
    tensors, header = convert_tensorflow(source)
    own = classifier.state_dict()
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in own.items())
    assert header.trainable
    assert header.backbone["args"]["padding"] == "same"


def test_names_may_have_scopes_and_a_dense_layer_of_any_name(tmp_path: Path, classifier: Model, keras: dict[str, Any]):
    """As where Keras' network is a layer of another, and as Keras 2 named depthwise weights."""
    other = {f"mobilenetv2_0.35_96/{name}": array for name, array in keras.items()}
    other = {
        name.replace("depthwise/kernel", "depthwise/depthwise_kernel").replace("predictions", "dense_3"): array
        for name, array in other.items()
    }
    tensors, _ = convert_tensorflow(write_checkpoint_2(tmp_path / "m", other))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in classifier.state_dict().items())


def test_slims_names_in_a_checkpoint_of_tensorflow_2(tmp_path: Path):
    model = random_model("det")
    tensors, _ = convert_tensorflow(write_checkpoint_2(tmp_path / "m", arrays_of(model, "det")))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())


def refusal(source: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        convert_tensorflow(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_wrong_is_named(tmp_path: Path, keras: dict[str, Any]):
    bare = {name: array for name, array in keras.items() if not name.startswith("predictions")}
    assert "a MobileNetV2 of Keras; its classifier should be one dense layer, found none" in refusal(
        write_checkpoint_2(tmp_path / "bare", bare)
    )
    two = {**bare, "a/kernel": np.zeros((8, 4), np.float32), "b/kernel": np.zeros((4, 2), np.float32)}
    assert "found dense layers a, b" in refusal(write_checkpoint_2(tmp_path / "two", two))
    lacking = {name: array for name, array in keras.items() if not name.startswith("block_5_depthwise/")}
    assert "no 'MobilenetV2/expanded_conv_5/depthwise/depthwise_weights'" in refusal(
        write_checkpoint_2(tmp_path / "lacking", lacking)
    )
    twice = {**keras, "other/Conv1/kernel": keras["Conv1/kernel"]}
    assert "with two layers 'Conv1'" in refusal(write_checkpoint_2(tmp_path / "twice", twice))


def test_names_that_tell_nothing_are_said_to_be_none(tmp_path: Path, keras: dict[str, Any]):
    keys = {f"layer/{number}/.ATTRIBUTES/VARIABLE_VALUE": array for number, array in enumerate(keras.values())}
    graph = object_graph(dict.fromkeys(keys, "kernel"))
    found = refusal(write_checkpoint(tmp_path / "m", {**keys, KEY: graph}))
    assert f"a checkpoint of TensorFlow 2, {len(keys)} of whose variables share their names with others" in found
    assert "neither an SSD, a classifier nor a DeepLab" in found
    nameless = object_graph(dict.fromkeys(keys, ""))
    assert "a checkpoint of TensorFlow 2, but neither" in refusal(
        write_checkpoint(tmp_path / "n", {**keys, KEY: nameless})
    )


def test_what_is_stored_twice_is_one_variable(tmp_path: Path, classifier: Model, keras: dict[str, Any]):
    keys = {f"{part}/{number}": name for part in ("a", "b") for number, name in enumerate(keras)}
    stored = {key: keras[name] for key, name in keys.items()}
    tensors, _ = convert_tensorflow(write_checkpoint(tmp_path / "m", {**stored, KEY: object_graph(keys)}))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in classifier.state_dict().items())


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (memoryview(b""), "ends in a number"),
        (memoryview(varint(9) + b"\0\0\0\0abc"), "a graph of objects of 3 bytes, which states 9"),
        (text_of(object_graph({"key": "a\nb"})), "cannot be printed"),
        (text_of(object_graph({"key": "a" * 5000})), "cannot be printed"),
        (text_of(field(1, 7)), "a number where a message is expected"),
        (text_of(field(1, field(2, field(2, 7)))), "a number where a message is expected"),
    ],
)
def test_damaged_graphs_of_objects_are_named(view: memoryview, message: str):
    with pytest.raises(DamagedError, match=message):
        reader.read_names(view)


def test_a_damaged_graph_of_objects_is_an_error_of_the_file(tmp_path: Path, keras: dict[str, Any]):
    prefix = write_checkpoint(tmp_path / "m", {**keras, KEY: b"\x0a\xff"})
    assert "m: damaged (the graph of objects: " in refusal(prefix)


def feed(folder: Path, keras: dict[str, Any], random_: random.Random, count: int) -> None:
    """Reads checkpoints with damaged graphs of objects, or damaged indexes."""
    few = dict(list(keras.items())[:12])
    prefix = write_checkpoint_2(folder / "m", few, block=200)
    files = [Path(f"{prefix}.index"), Path(f"{prefix}.data-00000-of-00001")]
    contents = [file.read_bytes() for file in files]
    graph = contents[1].index(b"VARIABLE_VALUE") - 60  # the graph lies in front of the values
    for _ in range(count):
        number = random_.randrange(2)
        damaged = bytearray(contents[number])
        end = len(damaged) if number == 0 else graph + 900
        for _ in range(random_.randint(1, 6)):
            place = random_.randrange(0 if number == 0 else max(graph, 0), end)
            damaged[place] = random_.choice((0, 1, 127, 128, 255, random_.randrange(256)))
        files[number].write_bytes(damaged)
        with pytest.raises(WeightsError) as caught:
            convert_tensorflow(prefix)
        assert "\n" not in str(caught.value)
        files[number].write_bytes(contents[number])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_damaged_checkpoints_are_errors_of_one_line(tmp_path: Path, keras: dict[str, Any], seed: int):
    feed(tmp_path, keras, random.Random(seed), 10)


@pytest.mark.slow
def test_a_hundred_thousand_damaged_checkpoints(tmp_path: Path, keras: dict[str, Any]):
    """Neither another exception nor much memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    feed(tmp_path, keras, random.Random(0), 100_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1_500_000  # KiB
