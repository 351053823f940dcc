"""Reads ncnn files: a text ``.param`` and its ``.bin`` (float32, float16 or int8) as a list of operators.

Kinds are TFLite's where it has the operator, and so are shapes: (1, H, W, C). Layers that compute
nothing (``Split``, ``Noop``) are left out. ncnn pads both sides alike, so its files reach
TensorFlow's SAME by padding too much and cutting the first row and column off the result; the
reader joins those cuts to their convolution. A damaged or hostile file ends in a `WeightsError`.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

from mnv2det.convert.graph import DamagedError, Graph, Operator, TensorInfo, printable
from mnv2det.convert.ncnn.layers import REST, Layer, parse_param, read_bin
from mnv2det.errors import WeightsError
from mnv2det.ops.padding import same_padding

MAX_PARAM_BYTES, MAX_BIN_BYTES = 1 << 20, 1 << 31

ACTIVATIONS = {0: "NONE", 1: "RELU", 2: "LEAKY_RELU", 4: "LOGISTIC", 5: "MISH", 6: "HARD_SWISH"}
KINDS = {
    "BinaryOp": "ADD", "Concat": "CONCATENATION", "Convolution": "CONV_2D", "ConvolutionDepthWise": "DEPTHWISE_CONV_2D",
    "Eltwise": "ADD", "InnerProduct": "FULLY_CONNECTED", "Padding": "PAD", "ReLU": "RELU", "Reshape": "RESHAPE",
    "Sigmoid": "LOGISTIC", "Softmax": "SOFTMAX",
}  # fmt: skip


def read_ncnn(path: str | os.PathLike[str]) -> Graph:
    """Reads an ncnn network.

    Beside the attributes that `Operator` explains: ``padding`` may be ``SYMMETRIC`` or tell the
    numbers, ``Permute`` has ``order``, ``RESHAPE`` ``rows`` or ``to``, ``SOFTMAX`` and
    ``CONCATENATION`` ``over`` (ncnn's axis; a softmax over the last has none), ``PriorBox`` and
    ``DetectionOutput`` what `_prior_box` and `_detection_output` name.

    Args:
        path: The ``.param`` or the ``.bin``; the other lies beside it under the same name.

    Raises:
        WeightsError: One of the files is missing, truncated, damaged, or of a kind this reader
            does not know.
    """
    if Path(path).suffix not in (".param", ".bin"):
        raise WeightsError(f"{path}: expected an ncnn file that ends in .param or .bin")
    param, weights = Path(path).with_suffix(".param"), Path(path).with_suffix(".bin")
    text, data = _read(param, MAX_PARAM_BYTES), _read(weights, MAX_BIN_BYTES)
    if not is_ncnn(text):
        raise WeightsError(f"{param}: not a text .param of ncnn ('7767517' expected in its first line)")
    try:
        layers = parse_param(text.decode("utf-8", "surrogateescape"))
        read_bin(data, layers)
        operators, inputs, outputs = _Translation(layers).result()
    except DamagedError as error:
        raise WeightsError(f"{path}: truncated, damaged or unsupported ncnn file ({error})") from None
    sha256 = hashlib.sha256(text).hexdigest()
    return Graph(operators, inputs, outputs, sha256, {weights.name: hashlib.sha256(data).hexdigest()})


def is_ncnn(start: bytes) -> bool:
    """Whether these are the first bytes (at least 8) of an ncnn ``.param``."""
    return start[:7] == b"7767517" and start[7:8].isspace()


def _read(path: Path, most: int) -> bytes:
    try:
        if not path.is_file():
            raise WeightsError(f"{path}: no such file; an ncnn network is a .param and a .bin of the same name")
        if path.stat().st_size > most:
            raise WeightsError(f"{path}: over {most:,} bytes, no ncnn file of this family")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot read the ncnn file ({getattr(error, 'strerror', error)})") from None


class _Translation:
    """Layers into operators. Its methods raise `DamagedError`."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self.tensors: dict[str, TensorInfo] = {}  # by blob
        self.operators: list[Operator] = []
        self.inputs: list[TensorInfo] = []
        self.origin: dict[str, str] = {}  # of what a Split gives
        self.readers: Counter[str] = Counter()
        self.ended: set[str] = set()
        for layer in layers:
            read = [self.origin.get(blob, blob) for blob in layer.inputs]
            if layer.kind == "Split" and len(read) == 1:
                self.origin |= dict.fromkeys(layer.outputs, read[0])
            elif layer.kind == "Noop":
                self.ended |= set(read)
            else:
                self.readers.update(read)

    def result(self) -> tuple[list[Operator], tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        """Operators, what they start from, and what they compute and nobody reads."""
        for layer in self.layers:
            try:
                self.add(layer)
            except DamagedError as error:
                raise DamagedError(f"layer {layer.index} '{layer.name}' {layer.kind}: {error}") from None
        for operator in self.operators:
            if "start" in operator.attributes:
                operator.attributes["padding"] = _padding(operator)
        dead = {*self.readers, *self.ended, *self.origin}
        open_ends = [blob for blob in self.tensors if blob not in dead]
        return self.operators, tuple(self.inputs), tuple(self.tensors[blob] for blob in open_ends)

    def add(self, layer: Layer) -> None:
        for blob in layer.inputs:
            if blob not in self.tensors:
                raise DamagedError(f"reads '{printable(blob)}', which no layer before it writes")
        given = tuple(self.tensors[blob] for blob in layer.inputs)
        if layer.kind == "Input" and not given and len(layer.outputs) == 1:
            width, height, channels = (layer.integer(number) for number in range(3))
            sized = min(width, height, channels) > 0
            self.inputs += self.write(layer, (1, height, width, channels) if sized else ())
        elif layer.kind == "Split" and len(given) == 1:
            for blob in layer.outputs:
                self.claim(blob)
                self.tensors[blob] = given[0]
        elif layer.kind == "Slice" and self.crops(layer):
            self.crop(layer)
        elif layer.kind != "Noop" or layer.outputs:
            attributes, shape = _describe(layer, given)
            kind = attributes.pop("kind", KINDS.get(layer.kind, layer.kind))
            outputs = self.write(layer, shape)
            self.operators.append(
                Operator(layer.index, kind, given, outputs, layer.weight, layer.bias, attributes, layer.name)
            )

    def write(self, layer: Layer, shape: tuple[int, ...]) -> tuple[TensorInfo, ...]:
        found = []
        for blob in layer.outputs:
            self.claim(blob)
            self.tensors[blob] = TensorInfo(len(self.tensors), printable(blob), shape)
            found.append(self.tensors[blob])
        return tuple(found)

    def claim(self, blob: str) -> None:
        if blob in self.tensors:
            raise DamagedError(f"writes '{printable(blob)}', as a layer before it does")

    def crops(self, layer: Layer) -> bool:
        """Whether a ``Slice`` only cuts the first rows or columns off what the convolution before it gives."""
        sizes, last = layer.reals(0), self.operators[-1] if self.operators else None
        return (
            len(layer.inputs) == 1
            and len(layer.outputs) == 2
            and (len(sizes), sizes[1:]) == (2, (REST,))
            and sizes[0] >= 1
            and layer.integer(1) in (1, 2)
            and last is not None
            and last.outputs == (self.tensors[layer.inputs[0]],)
            and "start" in last.attributes
            and last.attributes["activation"] == "NONE"
            and self.readers[self.origin.get(layer.inputs[0], layer.inputs[0])] == 1
            and not self.readers[layer.outputs[0]]
            and len(last.outputs[0].shape) == 4
        )

    def crop(self, layer: Layer) -> None:
        last, cut, axis = self.operators[-1], int(layer.reals(0)[0]), layer.integer(1)
        shape, start = list(last.outputs[0].shape), list(last.attributes["start"])
        shape[axis] -= cut
        start[axis - 1] -= cut * last.attributes["stride"][axis - 1]
        if shape[axis] < 1:
            raise DamagedError(f"cuts {cut} off {last.outputs[0].shape[axis]}")
        _, rest = self.write(layer, tuple(shape))
        self.ended.add(layer.outputs[0])
        last.outputs, last.attributes["start"] = (rest,), tuple(start)


def _describe(layer: Layer, given: tuple[TensorInfo, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Attributes (``kind`` among them where it is not the table's), and the shape of what it computes."""
    kind, shape = layer.kind, given[0].shape if given else ()
    if layer.weight is not None and len(given) == 1:
        return _weighted(layer, shape)
    if kind == "Clip":
        low, high = layer.real(0, -3.4e38), layer.real(1, 3.4e38)
        return ({"kind": "RELU6"} if (low, high) == (0, 6) else {"range": (low, high)}), shape
    if kind == "ReLU":
        return ({"kind": "LEAKY_RELU"} if layer.real(0) else {}), shape
    if kind in ("Eltwise", "BinaryOp"):
        plain = layer.integer(0) == (1 if kind == "Eltwise" else 0) and len(given) == 2
        plain &= set(layer.reals(1)) <= {1.0} if kind == "Eltwise" else not layer.integer(1)
        return ({"activation": "NONE"} if plain else {"kind": kind, "mode": layer.integer(0)}), shape
    if kind == "Permute":
        return {"order": layer.integer(0)}, ()
    if kind == "Reshape":
        size = tuple(layer.integer(number, REST) for number in (2, 1, 0))
        rows = size[1] == -1 and size[0] in (REST, 0, 1) and size[2] > 0
        return ({"rows": size[2]} if rows else {"to": size}), tuple(n for n in size if n != REST)
    if kind == "Concat":
        return {"over": layer.integer(0)}, ()
    if kind == "Softmax":
        axis, rank = layer.integer(0), len(shape)
        last = axis == -1 or (1 <= rank <= 3 and axis == rank - 1)
        return {"beta": 1.0, **({} if last and rank < 4 else {"over": axis})}, shape
    if kind == "PriorBox":
        return _prior_box(layer), ()
    if kind == "DetectionOutput":
        return _detection_output(layer), ()
    return {}, shape if kind in ("Sigmoid", "HardSwish", "Swish", "Dropout", "BatchNorm", "Scale", "PReLU") else ()


def _weighted(layer: Layer, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
    assert layer.weight is not None
    number, bounds = layer.integer(9), layer.reals(10)
    activation = ACTIVATIONS.get(number, f"ACTIVATION_{number}")
    if number == 3:
        activation = "RELU6" if bounds == (0, 6) else f"CLIP {bounds[:2]}"
    found: dict[str, Any] = {"activation": activation}
    if layer.kind == "InnerProduct":
        return found, ()
    if layer.kind == "ConvolutionDepthWise" and not len(layer.weight) == layer.integer(7, 1) > layer.weight.shape[1]:
        found["kind"] = layer.kind  # in groups, but not one for each channel
    found["stride"] = stride = (layer.integer(13, layer.integer(3, 1)), layer.integer(3, 1))
    found["dilation"] = dilation = (layer.integer(12, layer.integer(2, 1)), layer.integer(2, 1))
    left = layer.integer(4)
    top = layer.integer(14, left)
    pads = ((top, layer.integer(16, top)), (left, layer.integer(15, left)))
    if min(*stride, *dilation) < 1 or max(*stride, *dilation) > 1 << 15:
        raise DamagedError(f"a stride of {stride} and a dilation of {dilation}")
    if layer.real(18) or layer.integer(19):
        found["kind"] = layer.kind  # pads with another value than 0, or takes its weight from outside
    if len(shape) != 4:
        return found | {"padding": "of unknown size"}, ()
    size = []
    for axis, (before, after) in enumerate(pads):
        kernel, side = layer.weight.shape[2 + axis], shape[1 + axis]
        if (before, after) == (REST, REST):
            before, after = same_padding(side, kernel, stride[axis], dilation[axis])
        room = side + before + after - dilation[axis] * (kernel - 1) - 1
        if min(before, after) < 0 or max(before, after) > 1 << 15 or room < 0:
            raise DamagedError(f"a kernel of {kernel} on {side} pixels padded by {before} and {after}")
        found["start"] = (*found.get("start", ()), before)
        size.append(room // stride[axis] + 1)
    return found, (1, *size, len(layer.weight))


def _padding(operator: Operator) -> str:
    """What the padding amounts to, by where the first window starts and how many there are."""
    assert operator.weight is not None
    known = operator.attributes
    start, sides, size = known.pop("start"), operator.inputs[0].shape[1:3], operator.outputs[0].shape[1:3]
    axes = list(zip(sides, operator.weight.shape[2:], known["stride"], known["dilation"], strict=True))
    if size == tuple(-(-side // step) for side, _, step, _ in axes):
        if start == tuple(same_padding(*axis)[0] for axis in axes):
            return "SAME"
        if start == tuple(spread * (kernel - 1) // 2 for _, kernel, _, spread in axes):
            return "SYMMETRIC"
    whole = tuple((side - spread * (kernel - 1) - 1) // step + 1 for side, kernel, step, spread in axes)
    return "VALID" if (start, size) == ((0, 0), whole) else f"padding {start} to {size}"


def _prior_box(layer: Layer) -> dict[str, Any]:
    """``least``, ``greatest`` (sides in pixels), ``ratios``, ``flip``, ``clip``, ``variances`` ... of its anchors.

    ``image`` and ``step`` are (H, W), `REST` where they follow from the input.
    """
    return {
        "least": layer.reals(0),
        "greatest": layer.reals(1),
        "ratios": layer.reals(2),
        "variances": tuple(layer.real(3 + n, 0.1 if n < 2 else 0.2) for n in range(4)),
        "flip": bool(layer.integer(7, 1)),
        "clip": bool(layer.integer(8)),
        "image": (layer.integer(10), layer.integer(9)),
        "step": (layer.real(12, REST), layer.real(11, REST)),
        "offset": layer.real(13),
    }


def _detection_output(layer: Layer) -> dict[str, Any]:
    """``classes`` (background included), ``nms_iou``, ``candidates`` and ``keep`` (counts), ``threshold``."""
    return {
        "classes": layer.integer(0),
        "nms_iou": layer.real(1, 0.05),
        "candidates": layer.integer(2, 300),
        "keep": layer.integer(3, 100),
        "threshold": layer.real(4, 0.5),
    }
