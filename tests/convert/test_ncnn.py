from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ncnn_writer import RELU6, Storage, Writer

from mnv2det.convert.graph import Graph
from mnv2det.convert.ncnn.layers import is_ncnn
from mnv2det.convert.ncnn.reader import read_ncnn
from mnv2det.errors import WeightsError

ONES = np.ones((4, 3, 3, 3), np.float32)


def one_conv(settings: str, size: int = 8, weight: np.ndarray = ONES) -> Writer:
    net = Writer()
    net.conv("conv", net.add("Input", "data", [], f"0={size} 1={size} 2=3"), weight, None, settings)
    return net


def small_net(folder: Path, storage: Storage = "float32") -> Path:
    """A crop, an activation of its own, a shortcut and depthwise weights in 1.5 KB."""
    rng = np.random.default_rng(0)
    net = Writer(storage)
    data = net.add("Input", "data", [], "0=8 1=8 2=3")
    first = net.conv("first", data, rng.standard_normal((5, 3, 3, 3), np.float32), np.ones(5, np.float32), "3=2 4=2")
    tall = net.add("Slice", "slice", [first], "-23300=2,1,-233 1=1", ["m1", "c1"])
    wide = net.add("Slice", "slice", [tall], "-23300=2,1,-233 1=2", ["m2", "c2"])
    relu = net.add("Clip", "relu", [wide], "0=0.0 1=6.000000e+00")
    weight = rng.standard_normal((5, 1, 3, 3), np.float32)
    second = net.conv("second", relu, weight, np.zeros(5, np.float32), f"4=1 {RELU6}", depthwise=True)
    net.add("Eltwise", "sum", [relu, second], "0=1")
    net.layers.append(["Noop", "silence", ["m1", "m2"], [], ""])
    return net.finish(folder / "net.param")


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_ncnn(path)
    text = str(caught.value)
    assert path.stem in text
    assert "\n" not in text
    assert len(text) < 500
    return text


def edit(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def kinds(graph: Graph) -> list[str]:
    return [operator.kind for operator in graph.operators]


def test_small_net(tmp_path: Path) -> None:
    graph = read_ncnn(small_net(tmp_path))
    assert kinds(graph) == ["CONV_2D", "RELU6", "DEPTHWISE_CONV_2D", "ADD"]
    first, relu, second, add = graph.operators
    assert (first.index, first.name, first.display_name) == (1, "first", "operator 1 'first'")
    assert first.attributes == {"activation": "NONE", "stride": (2, 2), "dilation": (1, 1), "padding": "SAME"}
    assert second.attributes["activation"] == "RELU6"
    assert [info.shape for info in (*graph.inputs, *first.outputs, *add.outputs)] == [
        (1, 8, 8, 3), (1, 4, 4, 5), (1, 4, 4, 5),
    ]  # fmt: skip
    # the Split is gone: both read what the activation computes
    assert second.inputs == relu.outputs
    assert add.inputs == (*relu.outputs, *second.outputs)
    assert graph.outputs == add.outputs
    assert list(graph.parts) == ["net.bin"]
    assert len(graph.sha256) == 64


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_weights_are_what_was_stored(storage: Storage, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 1, 3, 3)).astype(np.float32)
    weight[3] = 0
    bias = rng.standard_normal(5).astype(np.float32)
    net = Writer(storage)
    data = net.add("Input", "data", [], "0=8 1=8 2=5")
    net.conv("a", net.conv("b", data, weight, bias, depthwise=True), np.ones((2, 5, 1, 1), np.float32), None)
    operator = read_ncnn(net.finish(tmp_path / "net.param")).operators[0]
    scale = 127 / np.maximum(np.abs(weight).reshape(5, -1).max(1), 1e-6).reshape(5, 1, 1, 1)
    expected = {"float32": weight, "float16": weight.astype(np.float16), "int8": np.round(weight * scale) / scale}
    assert operator.weight is not None
    assert operator.weight.dtype == np.float32
    np.testing.assert_allclose(operator.weight, expected[storage], rtol=1e-6)
    np.testing.assert_array_equal(operator.bias, bias)


def test_int8_scale_of_zero_means_zero_weights(tmp_path: Path) -> None:
    net = Writer("int8")
    net.conv("conv", net.add("Input", "data", [], "0=8 1=8 2=3"), ONES, None)
    net.weights[-1] = np.array([0, 127, 127, 127, 20], "<f4").tobytes()
    weight = read_ncnn(net.finish(tmp_path / "net.param")).operators[0].weight
    np.testing.assert_array_equal(weight, ONES * np.array([0, 1, 1, 1], np.float32).reshape(4, 1, 1, 1))


def test_other_layouts_of_int8_scales(tmp_path: Path) -> None:
    net = Writer("int8")
    weight = np.full((4, 1, 3, 3), 2, np.float32)
    net.conv("conv", net.add("Input", "data", [], "0=8 1=8 2=4"), weight, None, depthwise=True)
    net.weights[-1] = np.array([63.5, 20, 30], "<f4").tobytes()  # one for all, of the input, of the output
    path = edit(net.finish(tmp_path / "net.param"), " 8=1", " 8=102")
    np.testing.assert_array_equal(read_ncnn(path).operators[0].weight, weight)


@pytest.mark.parametrize(
    ("settings", "size", "expected", "shape"),
    [
        ("3=2 4=1", 8, "SYMMETRIC", (4, 4)),
        ("3=2 4=1", 7, "SAME", (4, 4)),
        ("3=1 4=1", 8, "SAME", (8, 8)),
        ("3=2", 8, "VALID", (3, 3)),
        ("3=2 4=0 15=1 16=1", 8, "SAME", (4, 4)),
        ("3=2 4=-233", 8, "SAME", (4, 4)),
        ("3=2 4=-233", 7, "SAME", (4, 4)),
        ("3=2 4=2", 8, "padding (2, 2) to (5, 5)", (5, 5)),
        ("3=2 4=1 14=0", 8, "padding (0, 1) to (3, 4)", (3, 4)),
        ("2=2 4=2", 8, "SAME", (8, 8)),
        ("3=2 4=1 13=1", 8, "SYMMETRIC", (8, 4)),
    ],
)
def test_padding_by_name(settings: str, size: int, expected: str, shape: tuple[int, int], tmp_path: Path) -> None:
    (operator,) = read_ncnn(one_conv(settings, size).finish(tmp_path / "net.param")).operators
    assert operator.attributes["padding"] == expected
    assert operator.outputs[0].shape == (1, *shape, 4)


def test_kernels_need_not_be_square(tmp_path: Path) -> None:
    weight = np.arange(4 * 3 * 1 * 3, dtype=np.float32).reshape(4, 3, 1, 3)
    (operator,) = read_ncnn(one_conv("11=1 4=1 14=0", weight=weight).finish(tmp_path / "net.param")).operators
    np.testing.assert_array_equal(operator.weight, weight)
    assert operator.attributes["padding"] == "SAME"


@pytest.mark.parametrize(
    ("kind", "settings", "expected", "attributes"),
    [
        ("Clip", "0=0.0 1=6.0", "RELU6", {}),
        ("Clip", "0=0.0 1=1.0", "Clip", {"range": (0, 1)}),
        ("ReLU", "", "RELU", {}),
        ("ReLU", "0=0.1", "LEAKY_RELU", {}),
        ("Permute", "0=3", "Permute", {"order": 3}),
        ("Reshape", "0=21 1=-1 2=0", "RESHAPE", {"rows": 21}),
        ("Reshape", "0=-1 1=21", "RESHAPE", {"to": (-233, 21, -1)}),
        ("Softmax", "0=0", "SOFTMAX", {"beta": 1.0, "over": 0}),
        ("Softmax", "0=2", "SOFTMAX", {"beta": 1.0, "over": 2}),
        ("Pooling", "0=1 4=1", "Pooling", {}),
    ],
)
def test_other_layers(kind: str, settings: str, expected: str, attributes: dict[str, object], tmp_path: Path) -> None:
    net = Writer()
    net.add(kind, "layer", [net.add("Input", "data", [], "0=8 1=8 2=3")], settings)
    (operator,) = read_ncnn(net.finish(tmp_path / "net.param")).operators
    assert (operator.kind, operator.attributes) == (expected, attributes)


def test_a_cut_that_somebody_reads_stays_a_slice(tmp_path: Path) -> None:
    for reader in ("m", "conv"):
        net = one_conv("3=2 4=2")
        net.add("Slice", "slice", ["conv"], "-23300=2,1,-233 1=1", ["m", "c"])
        net.add("ReLU", "relu", [reader])
        graph = read_ncnn(net.finish(tmp_path / "net.param"))
        assert kinds(graph) == ["CONV_2D", "Slice", "RELU"]


def test_layers_whose_weights_are_passed_over(tmp_path: Path) -> None:
    net = Writer()
    blob = net.add("Input", "data", [], "0=8 1=8 2=3")
    for kind, words, count in (
        ("BatchNorm", "0=3", 12), ("Scale", "0=3 1=1", 6), ("Scale", "0=3", 3), ("PReLU", "0=3", 3),
    ):  # fmt: skip
        blob = net.add(kind, f"layer{len(net.layers)}", [blob], words)
        net.weights.append(np.ones(count, "<f4").tobytes())
    net.conv("conv", blob, ONES * 7, None)
    graph = read_ncnn(net.finish(tmp_path / "net.param"))
    assert kinds(graph) == ["BatchNorm", "Scale", "Scale", "PReLU", "CONV_2D"]
    np.testing.assert_array_equal(graph.operators[-1].weight, ONES * 7)


def test_dense_layer(tmp_path: Path) -> None:
    net, weight = Writer(), np.arange(6, dtype=np.float32).reshape(2, 3)
    net.add("InnerProduct", "dense", [net.add("Input", "data", [], "0=3")], "0=2 1=1 2=6")
    net.store(weight, np.ones(2, np.float32))
    (operator,) = read_ncnn(net.finish(tmp_path / "net.param")).operators
    assert operator.kind == "FULLY_CONNECTED"
    np.testing.assert_array_equal(operator.weight, weight)


def test_either_file_names_the_network(tmp_path: Path) -> None:
    path = small_net(tmp_path)
    assert read_ncnn(path.with_suffix(".bin")).sha256 == read_ncnn(str(path)).sha256
    assert is_ncnn(path.read_bytes()[:16])
    edit(path, "\n", "\r\n")
    assert is_ncnn(path.read_bytes()[:16])
    assert len(read_ncnn(path).operators) == 4
    for start in (b"", b"7767517", b"77675170\n", b"\x5d\x86\x76\x00\x04\x00\x00\x00", b"\0\0\0\0TFL3"):
        assert not is_ncnn(start)


def test_missing_and_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = small_net(tmp_path)
    data = path.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").unlink()
    assert "net.bin: no such ncnn file" in refusal(path)
    path.with_suffix(".bin").write_bytes(data)
    path.write_bytes(b"\x5d\x86\x76\x00")
    assert "not a text .param of ncnn" in refusal(path)
    path.write_bytes(b"7767517\n" + b" " * (1 << 20))
    assert "over 1,048,576 bytes" in refusal(path)
    path.unlink()
    assert "net.param: no such ncnn file" in refusal(path)
    assert "ends in .param or .bin" in refusal(tmp_path / "net.tflite")
    assert "no such ncnn file" in refusal(tmp_path / "nowhere" / "net.param")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\n9 11\n", "\n10 11\n", "9 layers, but line 2 says 10"),
        ("\n9 11\n", "\n9 12\n", "11 blobs, but line 2 says 12"),
        ("\n9 11\n", "\n", "expected the numbers of layers and blobs"),
        ("\n9 11\n", "\n-9 11\n", "expected the numbers of layers and blobs"),
        ("\n9 11\n", "\n99999999999 11\n", "line 2 is '99999999999 11'"),
        ("1 1 data first", "1 1 data", "layer 1 'first' Convolution: 135 weights for 0 outputs"),
        ("1 1 data first", "2147483647 1 data first", "line 4: 2147483647 inputs and 1 outputs announced"),
        ("1 1 data first", "-1 1 data first", "line 4: -1 inputs"),
        ("1 1 data first", "1 1 sum first", "'first' Convolution: reads 'sum', which no layer before it writes"),
        ("1 1 data first", "1 1 data data", "writes 'data', as a layer before it does"),
        ("0=5 1=3", "0=5x 1=3", "line 4: '5x', expected a number"),
        ("0=5 1=3", "0=5 1:3", "line 4: '1:3', expected number=value"),
        ("0=5 1=3", "0=nan 1=3", "line 4: 'nan', expected a number"),
        ("0=5 1=3", "0=1e999 1=3", "line 4: '1e999', expected a number"),
        ("0=5 1=3", "0=5.5 1=3", "parameter 0 is 5.5, expected an integer"),
        ("0=5 1=3", "0=0 1=3", "135 weights for 0 outputs"),
        ("0=5 1=3", "0=7 1=3", "135 weights for 7 outputs"),
        ("0=5 1=3", "0=5 1=-3", "135 weights for 5 outputs"),
        ("-23300=2,1,-233", "-23300=3,1,-233", "2 values, 3 announced"),
        ("-23300=2,1,-233", "0=1", "parameter 0 is 1, expected a list"),
        ("-23300=2,1,-233", "-23300=2,9,-233", "cuts 9 off 5"),
        ("3=2 4=2", "3=0 4=2", "a stride of (0, 0)"),
        ("3=2 4=2", "3=2 4=-3", "padded by -3 and -3"),
        ("0=8 1=8", "0=2 1=2", "a kernel of 3 on 2 pixels"),
        ("Eltwise", "LSTM", "layer 7 'sum' LSTM: an unknown type of layer"),
    ],
)  # fmt: skip
def test_damaged_text_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = edit(small_net(tmp_path), old, new)
    if "pixels" in message:
        edit(path, "4=2", "4=0")
    assert message in refusal(path)


def test_truncated_and_overlong_files_are_refused(tmp_path: Path) -> None:
    path = small_net(tmp_path)
    whole, text = path.with_suffix(".bin").read_bytes(), path.read_bytes()
    for length in range(len(whole)):
        path.with_suffix(".bin").write_bytes(whole[:length])
        assert "of the .bin, which has" in refusal(path)
    path.with_suffix(".bin").write_bytes(whole + b"\0")
    assert "1 bytes are left in the .bin behind the last layer's weights" in refusal(path)
    path.with_suffix(".bin").write_bytes(whole)
    for length in range(0, len(text.rstrip()) - 1, 7):
        path.write_bytes(text[:length])
        refusal(path)


def test_weights_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = small_net(tmp_path)
    whole = path.with_suffix(".bin").read_bytes()
    nan = np.array([np.nan], "<f4").tobytes()
    for at, put, message in (
        (0, b"\1\2\3\4", "stored as 0x04030201"),
        (8, nan, "not all finite"),
        (4 + 135 * 4, nan, "not all finite"),
        (0, (0x000D4B38).to_bytes(4, "little"), "int8 but have no scales"),
    ):
        path.with_suffix(".bin").write_bytes(whole[:at] + put + whole[at + len(put) :])
        text = refusal(path)
        assert message in text
        assert "layer 1 'first' Convolution" in text


def test_claims_cost_no_memory(tmp_path: Path) -> None:
    path = small_net(tmp_path)
    edit(path, "0=8 1=8 2=3", "0=2147483647 1=2147483647 2=3")
    edit(path, "6=45", "6=2147483635")
    edit(path, "0=5 1=3 6=2147483635", "0=5 1=1 6=2147483635")
    tracemalloc.start()
    try:
        assert "wants 2147483635 numbers" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.heavy
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_mutation_ends_in_a_network_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    path = small_net(tmp_path, data.draw(st.sampled_from(("float32", "int8"))))
    if data.draw(st.booleans()):
        words = path.read_text().split(" ")
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(words) - 1))
            words[at] = data.draw(
                st.one_of(st.sampled_from(words), st.text(max_size=8), st.integers(-(1 << 33), 1 << 33).map(str))
            )
        path.write_text(" ".join(words), encoding="utf-8", errors="replace")
    else:
        for file in (path, path.with_suffix(".bin")):
            raw = bytearray(file.read_bytes())
            for _ in range(data.draw(st.integers(0, 4))):
                raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
            file.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw))) or None]))
    message, weights = "", []
    try:
        weights = [op.weight for op in read_ncnn(path).operators if op.weight is not None]
    except WeightsError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 500
    assert all(np.isfinite(weight).all() for weight in weights)


@pytest.mark.shared
def test_release(shared: Path, tmp_path: Path) -> None:
    path = shared / "weights" / "ssdlite_mnv2_voc_ncnn_int8" / "mobilenetv2_ssdlite_voc.param"
    graph = read_ncnn(path)
    weighted = [operator for operator in graph.operators if operator.weight is not None]
    assert len(weighted) == 88
    assert all(op.bias is not None and op.attributes["padding"] == "SAME" for op in weighted)
    assert [info.name for info in (*graph.inputs, *graph.outputs)] == ["data", "detection_out"]
    data = path.with_suffix(".bin").read_bytes()
    (tmp_path / path.name).write_bytes(path.read_bytes())
    for length in (0, 3, 1000, len(data) // 2, len(data) - 1, len(data) - 4):
        (tmp_path / path.name).with_suffix(".bin").write_bytes(data[:length])
        refusal(tmp_path / path.name)
