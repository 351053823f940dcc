from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tflite_writer import RELU6, Layers, Writer

from mnv2det.convert.graph import Graph
from mnv2det.convert.tflite.reader import read_tflite
from mnv2det.errors import WeightsError

RELEASES = [
    ("mobilenet_v2_1.0_224_quant.tflite", 66),
    ("tf2_mobilenet_v2_1.0_224_ptq.tflite", 68),
    ("deeplabv3_mnv2_pascal_quant.tflite", 72),
]


def read(data: bytes, folder: Path) -> Graph:
    path = folder / "net.tflite"
    path.write_bytes(data)
    return read_tflite(path)


def conv_options(activation: int = 0) -> Any:
    one = ("Int32", 1)
    return 1, {0: ("Int8", 0), 1: ("Int32", 2), 2: ("Int32", 2), 3: ("Int8", activation), 4: one, 5: one}


def small_net() -> bytes:
    rng = np.random.default_rng(0)
    net = Layers(16)
    net.conv(rng.normal(size=(8, 3, 3, 3)).astype(np.float32), np.zeros(8, np.float32), stride=2, activation=RELU6)
    net.conv(rng.normal(size=(8, 1, 3, 3)).astype(np.float32), np.ones(8, np.float32), depthwise=True)
    entry = net.current
    net.conv(rng.normal(size=(8, 8, 1, 1)).astype(np.float32), np.ones(8, np.float32))
    net.add(entry)
    net.pool(mean=True)
    net.flatten()
    net.dense(rng.normal(size=(5, 8)).astype(np.float32), np.zeros(5, np.float32))
    net.softmax()
    return net.bytes()


def test_float_weights_come_in_torch_layout(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    conv = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    deep = rng.normal(size=(4, 1, 5, 5)).astype(np.float32)
    dense = rng.normal(size=(2, 4)).astype(np.float32)
    bias = np.arange(4, dtype=np.float32)
    net = Layers(8)
    net.conv(conv, bias, stride=2, activation=RELU6)
    net.conv(deep, None, depthwise=True)
    net.pool()
    net.flatten()
    net.dense(dense, np.zeros(2, np.float32))
    graph = read(net.bytes(), tmp_path)

    kinds = ["CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "RESHAPE", "FULLY_CONNECTED"]
    assert [operator.kind for operator in graph.operators] == kinds
    first, second, pool, reshape, last = graph.operators
    for operator, weight in ((first, conv), (second, deep), (last, dense)):
        assert operator.weight is not None
        np.testing.assert_array_equal(operator.weight, weight)
    assert first.bias is not None
    np.testing.assert_array_equal(first.bias, bias)
    assert second.bias is None
    assert first.attributes == {"padding": "SAME", "stride": (2, 2), "dilation": (1, 1), "activation": "RELU6"}
    assert second.attributes["depth_multiplier"] == 1
    assert (pool.attributes["filter"], pool.attributes["padding"]) == ((4, 4), "VALID")
    assert reshape.attributes["shape"] == (1, 4)
    assert [info.index for info in second.inputs] == [info.index for info in first.outputs]
    assert (graph.inputs[0].name, graph.inputs[0].shape) == ("tensor0", (1, 8, 8, 3))
    assert len(graph.outputs) == 1
    assert len(graph.sha256) == 64


def test_quantised_per_tensor_and_bias_of_input_times_weight_scale(tmp_path: Path) -> None:
    net = Writer()
    image = net.tensor((1, 4, 4, 2), dtype="uint8", scale=[0.5], zero=[128])
    kernel = np.arange(3 * 2, dtype=np.uint8).reshape(3, 1, 1, 2)
    weight = net.tensor(kernel.shape, kernel, scale=[0.25], zero=[3])
    bias = net.tensor((3,), np.array([4, -8, 1 << 25], np.int32))
    out = net.operator("CONV_2D", [image, weight, bias], (1, 2, 2, 3), conv_options(), dtype="uint8")
    operator = read(net.finish([image], [out]), tmp_path).operators[0]

    assert operator.weight is not None
    assert operator.bias is not None
    expected = (kernel.astype(np.float32) - 3) * 0.25
    np.testing.assert_array_equal(operator.weight[:, :, 0, 0], expected[:, 0, 0, :])
    np.testing.assert_array_equal(operator.bias, np.array([4, -8, 1 << 25]) * 0.125)
    assert operator.weight.dtype == operator.bias.dtype == np.float32


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D"])
def test_quantised_per_channel_with_scales_of_its_own(kind: str, tmp_path: Path) -> None:
    scales = [0.5, 0.25, 2.0]
    net = Writer()
    image = net.tensor((1, 4, 4, 3), dtype="int8", scale=[1.0], zero=[0])
    rng = np.random.default_rng(2)
    torch_layout = rng.integers(-127, 128, (3, 3 if kind == "CONV_2D" else 1, 3, 3)).astype(np.int8)
    axes, axis = ((0, 2, 3, 1), 0) if kind == "CONV_2D" else ((1, 2, 3, 0), 3)
    kernel = np.ascontiguousarray(torch_layout.transpose(axes))
    weight = net.tensor(kernel.shape, kernel, scale=scales, zero=[0, 0, 0], axis=axis)
    bias = net.tensor((3,), np.array([1, 2, 3], np.int32), scale=[0.1, 0.2, 0.3], zero=[0, 0, 0])
    one = ("Int32", 1)
    options = conv_options() if kind == "CONV_2D" else (2, {1: one, 2: one, 3: one, 5: one, 6: one})
    out = net.operator(kind, [image, weight, bias], (1, 2, 2, 3), options, dtype="int8")
    operator = read(net.finish([image], [out]), tmp_path).operators[0]

    assert operator.weight is not None
    assert operator.bias is not None
    factor = np.array(scales, np.float32)[:, None, None, None]
    np.testing.assert_array_equal(operator.weight, torch_layout.astype(np.float32) * factor)
    np.testing.assert_allclose(operator.bias, [0.1, 0.4, 0.9], rtol=1e-6)


def test_float16_weights_are_unpacked(tmp_path: Path) -> None:
    net = Writer()
    image = net.tensor((1, 2, 2, 1))
    kernel = np.array([0.5, 1.5], np.float16).reshape(2, 1, 1, 1)
    half = net.tensor(kernel.shape, kernel)
    weight = net.operator("DEQUANTIZE", [half], kernel.shape)
    out = net.operator("CONV_2D", [image, weight], (1, 1, 1, 2), conv_options())
    graph = read(net.finish([image], [out]), tmp_path)
    assert [(operator.index, operator.kind) for operator in graph.operators] == [(1, "CONV_2D")]
    assert graph.operators[0].weight is not None
    np.testing.assert_array_equal(graph.operators[0].weight.ravel(), [0.5, 1.5])


def test_unknown_operator_is_kept(tmp_path: Path) -> None:
    net = Writer()
    image = net.tensor((1, 2, 2, 1))
    out = net.operator(150, [image, -1], (1, 2, 2, 1))
    operator = read(net.finish([image], [out]), tmp_path).operators[0]
    assert (operator.kind, operator.weight, operator.attributes) == ("OP_150", None, {})


def test_many_claims_on_the_same_bytes_are_refused(tmp_path: Path) -> None:
    net = Writer()
    last = net.tensor((1, 4, 4, 64))
    weight = net.tensor((64, 4, 4, 64), np.ones((64, 4, 4, 64), np.int8), scale=[1.0], zero=[0])
    for _ in range(100):
        last = net.operator("CONV_2D", [last, weight], (1, 4, 4, 64), conv_options())
    with pytest.raises(WeightsError, match="more weights than the file has room for"):
        read(net.finish([0], [last]), tmp_path)


@pytest.mark.parametrize(
    ("scale", "shape", "message"),
    [
        ([], (2, 1, 1, 3), "without a scale"),
        ([1.0, 2.0, 3.0], (2, 1, 1, 3), r"3 scales for shape \[2, 1, 1, 3\]"),
        ([float("nan")], (2, 1, 1, 3), "not finite"),
        ([1.0], (2, 1, 1, 4), "has 6 bytes of data"),
        ([1.0], (2, -1, -1, 3), "has 6 bytes of data"),
        ([1.0], (1 << 30, 1 << 30, 1 << 30, 1 << 30), "has 6 bytes of data"),
        ([1.0], (6,), r"has shape \[6\]"),
    ],
)
def test_impossible_weight_is_refused(scale: list[float], shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    net = Writer()
    image = net.tensor((1, 4, 4, 3))
    weight = net.tensor(shape, np.ones(6, np.int8), scale=scale, zero=[0] * len(scale))
    out = net.operator("CONV_2D", [image, weight], (1, 2, 2, 2), conv_options())
    with pytest.raises(WeightsError, match=message) as caught:
        read(net.finish([image], [out]), tmp_path)
    assert "operator 0 CONV_2D" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    for name, data in (
        ("empty.tflite", b""),
        ("text.tflite", b"no weights in here"),
        ("short.tflite", b"\0\0\0\0TFL3"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match=name):
            read_tflite(tmp_path / name)
    for place in (tmp_path, tmp_path / "missing.tflite"):
        with pytest.raises(WeightsError, match="no such TFLite file"):
            read_tflite(place)


def test_truncation_never_passes(tmp_path: Path) -> None:
    data = small_net()
    for length in sorted({*range(0, 300, 7), *range(0, len(data), 53), len(data) - 1}):
        with pytest.raises(WeightsError, match=r"net\.tflite"):
            read(data[:length], tmp_path)


def test_flipped_bytes_end_in_a_result_or_one_line(tmp_path: Path) -> None:
    whole, rng = small_net(), random.Random(0)
    messages = []
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4, 20))):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        data[4:8] = b"TFL3"
        try:
            read(bytes(data), tmp_path)
            messages.append("")
        except WeightsError as error:
            messages.append(str(error))
    assert not [message for message in messages if "\n" in message or len(message) > 600]
    assert 20 < messages.count("") < 580


@pytest.mark.shared
@pytest.mark.parametrize(("name", "operators"), RELEASES)
def test_releases(name: str, operators: int, shared: Path, tmp_path: Path) -> None:
    path = shared / "weights" / name
    graph = read_tflite(path)
    assert len(graph.operators) == operators
    weighted = [operator for operator in graph.operators if operator.weight is not None]
    assert all(operator.bias is not None for operator in weighted)
    assert not [operator.kind for operator in graph.operators if operator.kind.startswith("OP_")]
    data = path.read_bytes()
    for part in (0.001, 0.1, 0.5, 0.9, 0.99, 0.9999, 1):
        with pytest.raises(WeightsError, match="truncated"):
            read(data[: int(part * len(data)) - 1], tmp_path)
