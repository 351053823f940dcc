"""Reads ncnn files, a text ``.param`` and its ``.bin`` (float32, float16 or int8), as a list of operators.

Kinds are TFLite's where it has the operator, and so are shapes: (1, H, W, C). Layers that compute nothing (``Split``,
``Noop``) are left out. ncnn pads both sides alike, so its files reach TensorFlow's SAME by padding too much and
cropping the first row and column of the result; the reader merges these crops into their convolution. A damaged or
hostile file ends in a `WeightsError`.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

from mnv2det.convert.graph import DamagedError, Graph, Operator, TensorInfo, damage_located, printable, read_bounded
from mnv2det.convert.ncnn.layers import MAGIC, REST, Layer, is_ncnn, parse_param, read_bin
from mnv2det.errors import WeightsError
from mnv2det.ops.padding import same_padding

MAX_PARAM_BYTES, MAX_BIN_BYTES = 1 << 20, 1 << 31
MAX_STEP = 1 << 15  # far above any stride, dilation or padding of this family

ACTIVATIONS = {0: "NONE", 1: "RELU", 2: "LEAKY_RELU", 4: "LOGISTIC", 5: "MISH", 6: "HARD_SWISH"}
KINDS = {
    "BinaryOp": "ADD", "Concat": "CONCATENATION", "Convolution": "CONV_2D", "ConvolutionDepthWise": "DEPTHWISE_CONV_2D",
    "Eltwise": "ADD", "InnerProduct": "FULLY_CONNECTED", "Padding": "PAD", "ReLU": "RELU", "Reshape": "RESHAPE",
    "Sigmoid": "LOGISTIC", "Softmax": "SOFTMAX",
}  # fmt: skip
KEEP_SHAPE = ("BatchNorm", "Dropout", "HardSwish", "PReLU", "Scale", "Sigmoid", "Swish")


def read_ncnn(path: str | os.PathLike[str]) -> Graph:
    """Reads an ncnn network.

    Beside the attributes that `Operator` documents, ``padding`` may be ``SYMMETRIC`` or state numbers, ``Permute`` has
    ``order``, ``RESHAPE`` ``rows`` or ``to``, ``SOFTMAX`` and ``CONCATENATION`` ``over`` (ncnn's axis; a softmax over
    the last axis has none), ``PriorBox`` and ``DetectionOutput`` what `_prior_box` and `_detection_output` return.

    Args:
        path: The ``.param`` or the ``.bin``; the other one lies beside it under the same name.

    Raises:
        WeightsError: One of the files is missing, truncated, damaged, or has a layer that this reader does not know.
    """
    if Path(path).suffix not in (".param", ".bin"):
        raise WeightsError(f"{path}: expected an ncnn file that ends in .param or .bin")
    param, weights = Path(path).with_suffix(".param"), Path(path).with_suffix(".bin")
    hint = "; an ncnn network is a .param and a .bin of the same name"
    text, data = (
        read_bounded(file, limit, kind="ncnn file", hint=hint)
        for file, limit in ((param, MAX_PARAM_BYTES), (weights, MAX_BIN_BYTES))
    )
    if not is_ncnn(text):
        raise WeightsError(f"{param}: not a text .param of ncnn ('{MAGIC}' expected in its first line)")
    try:
        layers = parse_param(text.decode("utf-8", "surrogateescape"))
        read_bin(data, layers)
        operators, inputs, outputs = _Translator(layers).translate()
    except DamagedError as error:
        raise WeightsError(f"{path}: truncated, damaged or unsupported ncnn file ({error})") from None
    parts = {weights.name: hashlib.sha256(data).hexdigest()}
    sha256 = hashlib.sha256(text).hexdigest()
    return Graph(operators, inputs, outputs, "an ncnn file", param.name, sha256, parts)


class _Translator:
    """Translates layers into operators. Its methods raise `DamagedError`."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self.tensors: dict[str, TensorInfo] = {}  # by the name of the blob
        self.operators: list[Operator] = []
        self.inputs: list[TensorInfo] = []
        self.split_from: dict[str, str] = {}  # output of a Split to the blob that it copies
        self.readers: Counter[str] = Counter()  # how many layers read a blob, itself or a copy by Split
        self.discarded: set[str] = set()  # blobs that nothing computes from, by intent
        for layer in layers:
            blobs = [self.split_from.get(blob, blob) for blob in layer.inputs]
            if layer.kind == "Split" and len(blobs) == 1:
                self.split_from |= dict.fromkeys(layer.outputs, blobs[0])
            elif layer.kind == "Noop":
                self.discarded |= set(blobs)
            else:
                self.readers.update(blobs)

    def translate(self) -> tuple[list[Operator], tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        """The operators, the network's inputs, and its outputs: what is computed and read by no layer."""
        for layer in self.layers:
            with damage_located(layer.display_name):
                self.add(layer)
        for operator in self.operators:
            if "start" in operator.attributes:
                operator.attributes["padding"] = _padding(operator)
        used = {*self.readers, *self.discarded, *self.split_from}
        outputs = tuple(info for blob, info in self.tensors.items() if blob not in used)
        return self.operators, tuple(self.inputs), outputs

    def add(self, layer: Layer) -> None:
        """Translates the next layer."""
        for blob in layer.inputs:
            if blob not in self.tensors:
                raise DamagedError(f"reads '{printable(blob)}', which no layer before it writes")
        inputs = tuple(self.tensors[blob] for blob in layer.inputs)
        if layer.kind == "Input" and not inputs and len(layer.outputs) == 1:
            width, height, channels = (layer.integer(number) for number in range(3))
            sized = min(width, height, channels) > 0
            self.inputs += self.write(layer, (1, height, width, channels) if sized else ())
        elif layer.kind == "Split" and len(inputs) == 1:
            for blob in layer.outputs:
                self.define(blob, inputs[0])
        elif layer.kind == "Slice" and self.is_crop(layer):
            self.merge_crop(layer)
        elif layer.kind != "Noop" or layer.outputs:
            attributes, shape = _describe(layer, inputs)
            kind = attributes.pop("kind", KINDS.get(layer.kind, layer.kind))
            outputs = self.write(layer, shape)
            self.operators.append(
                Operator(layer.index, kind, inputs, outputs, layer.weight, layer.bias, attributes, layer.name)
            )

    def write(self, layer: Layer, shape: tuple[int, ...]) -> tuple[TensorInfo, ...]:
        """Makes new tensors of this shape for a layer's outputs."""
        return tuple(self.define(blob, TensorInfo(len(self.tensors), printable(blob), shape)) for blob in layer.outputs)

    def define(self, blob: str, info: TensorInfo) -> TensorInfo:
        """Says which tensor a blob is."""
        if blob in self.tensors:
            raise DamagedError(f"writes '{printable(blob)}', as a layer before it does")
        self.tensors[blob] = info
        return info

    def is_crop(self, layer: Layer) -> bool:
        """Whether a ``Slice`` does nothing but crop the first rows or columns of the last convolution's output."""
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
            and self.readers[self.split_from.get(layer.inputs[0], layer.inputs[0])] == 1
            and not self.readers[layer.outputs[0]]
            and len(last.outputs[0].shape) == 4
        )

    def merge_crop(self, layer: Layer) -> None:
        """Merges a ``Slice`` that only crops into the convolution before it."""
        last, cropped, axis = self.operators[-1], int(layer.reals(0)[0]), layer.integer(1)
        shape, start = list(last.outputs[0].shape), list(last.attributes["start"])
        shape[axis] -= cropped
        start[axis - 1] -= cropped * last.attributes["stride"][axis - 1]
        if shape[axis] < 1:
            raise DamagedError(f"cuts {cropped} off {last.outputs[0].shape[axis]}")
        _, rest = self.write(layer, tuple(shape))
        self.discarded.add(layer.outputs[0])
        last.outputs, last.attributes["start"] = (rest,), tuple(start)


def _describe(layer: Layer, inputs: tuple[TensorInfo, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """An operator's attributes (with ``kind`` where it is not that of `KINDS`), and the shape of its outputs."""
    kind, shape = layer.kind, inputs[0].shape if inputs else ()
    if layer.weight is not None and len(inputs) == 1:
        return _describe_weighted(layer, shape)
    if kind == "Clip":
        low, high = layer.real(0, -3.4e38), layer.real(1, 3.4e38)
        return ({"kind": "RELU6"} if (low, high) == (0, 6) else {"range": (low, high)}), shape
    if kind == "ReLU":
        return ({"kind": "LEAKY_RELU"} if layer.real(0) else {}), shape
    if kind in ("Eltwise", "BinaryOp"):
        plain = layer.integer(0) == (1 if kind == "Eltwise" else 0) and len(inputs) == 2
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
    return {}, shape if kind in KEEP_SHAPE else ()


def _describe_weighted(layer: Layer, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """`_describe` for convolutions and dense layers.

    ``start`` is where the first window starts, as (rows, columns) before the input; it is replaced by ``padding`` once
    the crops behind the convolution are known.
    """
    assert layer.weight is not None
    number, bounds = layer.integer(9), layer.reals(10)
    activation = ACTIVATIONS.get(number, f"ACTIVATION_{number}")
    if number == 3:
        activation = "RELU6" if bounds == (0, 6) else f"CLIP {bounds[:2]}"
    attributes: dict[str, Any] = {"activation": activation}
    if layer.kind == "InnerProduct":
        return attributes, ()
    if layer.kind == "ConvolutionDepthWise" and not len(layer.weight) == layer.integer(7, 1) > layer.weight.shape[1]:
        attributes["kind"] = layer.kind  # in groups, but not one for each channel
    attributes["stride"] = stride = (layer.integer(13, layer.integer(3, 1)), layer.integer(3, 1))
    attributes["dilation"] = dilation = (layer.integer(12, layer.integer(2, 1)), layer.integer(2, 1))
    left = layer.integer(4)
    top = layer.integer(14, left)
    pads = ((top, layer.integer(16, top)), (left, layer.integer(15, left)))
    if min(*stride, *dilation) < 1 or max(*stride, *dilation) > MAX_STEP:
        raise DamagedError(f"a stride of {stride} and a dilation of {dilation}")
    if layer.real(18) or layer.integer(19):
        attributes["kind"] = layer.kind  # pads with another value than 0, or reads its weight from a blob
    if len(shape) != 4:
        return attributes | {"padding": "of unknown size"}, ()
    size = []
    for axis, (before, after) in enumerate(pads):
        kernel, side = layer.weight.shape[2 + axis], shape[1 + axis]
        if (before, after) == (REST, REST):
            before, after = same_padding(side, kernel, stride[axis], dilation[axis])
        room = side + before + after - dilation[axis] * (kernel - 1) - 1
        if min(before, after) < 0 or max(before, after) > MAX_STEP or room < 0:
            raise DamagedError(f"a kernel of {kernel} on {side} pixels padded by {before} and {after}")
        attributes["start"] = (*attributes.get("start", ()), before)
        size.append(room // stride[axis] + 1)
    return attributes, (1, *size, len(layer.weight))


def _padding(operator: Operator) -> str:
    """Name of a convolution's padding, which follows from where its first window starts and how many there are."""
    assert operator.weight is not None
    attributes = operator.attributes
    start, sides, size = attributes.pop("start"), operator.inputs[0].shape[1:3], operator.outputs[0].shape[1:3]
    axes = list(zip(sides, operator.weight.shape[2:], attributes["stride"], attributes["dilation"], strict=True))
    if size == tuple(-(-side // stride) for side, _, stride, _ in axes):
        if start == tuple(same_padding(*axis)[0] for axis in axes):
            return "SAME"
        if start == tuple(dilation * (kernel - 1) // 2 for _, kernel, _, dilation in axes):
            return "SYMMETRIC"
    valid = tuple((side - dilation * (kernel - 1) - 1) // stride + 1 for side, kernel, stride, dilation in axes)
    return "VALID" if (start, size) == ((0, 0), valid) else f"padding {start} to {size}"


def _prior_box(layer: Layer) -> dict[str, Any]:
    """Attributes of a layer that makes anchors, as Caffe's SSD names them.

    ``min_sizes`` and ``max_sizes`` are sides in pixels. ``image`` and ``step`` are (H, W), with `REST` where they
    follow from the input.
    """
    return {
        "min_sizes": layer.reals(0),
        "max_sizes": layer.reals(1),
        "ratios": layer.reals(2),
        "variances": tuple(layer.real(3 + n, 0.1 if n < 2 else 0.2) for n in range(4)),
        "flip": bool(layer.integer(7, 1)),
        "clip": bool(layer.integer(8)),
        "image": (layer.integer(10), layer.integer(9)),
        "step": (layer.real(12, REST), layer.real(11, REST)),
        "offset": layer.real(13),
    }


def _detection_output(layer: Layer) -> dict[str, Any]:
    """Attributes of the layer that decodes boxes; ``classes`` includes the background, ``keep`` is per image."""
    return {
        "classes": layer.integer(0),
        "nms_iou": layer.real(1, 0.05),
        "candidates": layer.integer(2, 300),
        "keep": layer.integer(3, 100),
        "threshold": layer.real(4, 0.5),
    }
