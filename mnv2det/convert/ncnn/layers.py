"""ncnn's two files: layers as lines of a text ``.param``, their weights one after another in a ``.bin``.

Format: Tencent/ncnn, docs/developer-guide/param-and-model-file-structure.md. Every count is checked
before it is followed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.convert.graph import DamagedError, printable

MAX_LAYERS, MAX_BLOBS = 10_000, 256  # of a network, of a layer: far above any of this family
REST = -233  # ncnn's number for "what is left" or "as the input"

# what a weight starts with says how it is stored
FLOAT16, INT8, FLOAT32 = 0x01306B47, 0x000D4B38, (0, 0x0002C056)

# Layers without weights. Where those of any other lie in the .bin is not known.
WEIGHTLESS = {
    "AbsVal", "ArgMax", "BinaryOp", "Cast", "Clip", "Concat", "Crop", "DetectionOutput", "Dropout", "ELU", "Eltwise",
    "ExpandDims", "Flatten", "HardSigmoid", "HardSwish", "Input", "Interp", "LRN", "Mish", "Noop", "Packing", "Padding",
    "Permute", "Pooling", "Power", "PriorBox", "Proposal", "ROIPooling", "ReLU", "Reduction", "Reorg", "Reshape",
    "ShuffleChannel", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Swish", "TanH", "Tile", "UnaryOp",
    "Yolov3DetectionOutput",
}  # fmt: skip
# layers whose weights are so many plain floats, by parameter: they are passed over
PLAIN = {"BatchNorm": {0: 4}, "Bias": {0: 1}, "PReLU": {0: 1}}
WEIGHTED = ("Convolution", "ConvolutionDepthWise", "InnerProduct")

INTEGER = re.compile(r"[-+]?\d{1,10}", re.ASCII)
NUMBER = re.compile(r"[-+]?(\d{1,20}\.?\d{0,20}|\.\d{1,20})([eE][-+]?\d{1,3})?", re.ASCII)
SETTING = re.compile(r"(-?\d{1,5})=(\S+)", re.ASCII)

Number = int | float


@dataclass
class Layer:
    """One line of the ``.param``.

    Attributes:
        index: Counted from 0.
        kind: Such as ``Convolution``.
        name: Of the layer, fit to be shown.
        inputs: Names of the blobs it reads.
        outputs: Names of the blobs it writes.
        settings: By ncnn's number of the parameter; those of an array are tuples.
        weight: float32 in torch's layout, (out, in / groups, kh, kw) or (out, in).
        bias: float32 (out,).
    """

    index: int
    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: dict[int, Number | tuple[Number, ...]] = field(default_factory=dict)
    weight: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None

    def integer(self, number: int, default: int = 0) -> int:
        """A parameter that is an integer, ``default`` if it is left out."""
        value = self.settings.get(number, default)
        if not isinstance(value, int):
            raise DamagedError(f"parameter {number} is {value}, expected an integer")
        return value

    def real(self, number: int, default: float = 0.0) -> float:
        """A parameter that is a number, ``default`` if it is left out."""
        value = self.settings.get(number, default)
        if isinstance(value, tuple):
            raise DamagedError(f"parameter {number} is a list, expected a number")
        return float(value)

    def reals(self, number: int) -> tuple[float, ...]:
        """A parameter that is an array, empty if it is left out."""
        value = self.settings.get(number, ())
        if not isinstance(value, tuple):
            raise DamagedError(f"parameter {number} is {value}, expected a list")
        return tuple(float(item) for item in value)


def parse_param(text: str) -> list[Layer]:
    """Reads the layers, without their weights.

    Args:
        text: The ``.param``, from its first line.

    Raises:
        DamagedError: A line is not as ncnn writes it, or the counts at the top do not fit.
    """
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) < 2 or lines[0].strip() != "7767517":
        raise DamagedError("'7767517' and two counts expected in its first lines")
    words = lines[1].split()
    counts = [int(word) for word in words if INTEGER.fullmatch(word)]
    if len(words) != 2 or len(counts) != 2 or not 0 < counts[0] <= MAX_LAYERS:
        raise DamagedError(f"line 2 is '{printable(lines[1])}', expected the numbers of layers and blobs")
    if len(lines) - 2 != counts[0]:
        raise DamagedError(f"{len(lines) - 2} layers, but line 2 says {counts[0]}")
    layers = []
    for index, line in enumerate(lines[2:]):
        try:
            layers.append(_parse_layer(index, line.split()))
        except DamagedError as error:
            raise DamagedError(f"line {index + 3}: {error}") from None
    blobs = sum(len(layer.outputs) for layer in layers)
    if blobs != counts[1]:
        raise DamagedError(f"{blobs} blobs, but line 2 says {counts[1]}")
    return layers


def read_bin(data: bytes, layers: list[Layer]) -> None:
    """Adds the weights to their layers.

    Args:
        data: The ``.bin``.
        layers: From `parse_param`, changed in place.

    Raises:
        DamagedError: It is too short or too long, a weight is not finite, or a layer's type is unknown.
    """
    weights = _Weights(data)
    for layer in layers:
        try:
            _load(layer, weights)
        except DamagedError as error:
            raise DamagedError(f"layer {layer.index} '{layer.name}' {layer.kind}: {error}") from None
    if weights.at != len(data):
        raise DamagedError(f"{len(data) - weights.at} bytes are left in the .bin behind the last layer's weights")


def _parse_layer(index: int, words: list[str]) -> Layer:
    if len(words) < 4:
        raise DamagedError("expected a layer's type, name, and numbers of inputs and outputs")
    counts = [_integer(word) for word in words[2:4]]
    first, last = 4 + counts[0], 4 + sum(counts)
    if min(counts) < 0 or max(counts) > MAX_BLOBS or last > len(words):
        raise DamagedError(f"{counts[0]} inputs and {counts[1]} outputs announced, {len(words) - 4} words follow")
    layer = Layer(index, printable(words[0]), printable(words[1]), tuple(words[4:first]), tuple(words[first:last]))
    for word in words[last:]:
        match = SETTING.fullmatch(word)
        if match is None:
            raise DamagedError(f"'{printable(word)}', expected number=value")
        number, value = int(match[1]), match[2]
        if number > -23300:
            layer.settings[number] = _number(value)
            continue
        size, *items = value.split(",")
        if _integer(size) != len(items):
            raise DamagedError(f"'{printable(word)}': {len(items)} values, {size} announced")
        layer.settings[-number - 23300] = tuple(_number(item) for item in items)
    return layer


def _integer(text: str) -> int:
    if not INTEGER.fullmatch(text) or abs(int(text)) >= 1 << 31:
        raise DamagedError(f"'{printable(text)}', expected an integer")
    return int(text)


def _number(text: str) -> Number:
    if INTEGER.fullmatch(text):
        return _integer(text)
    if not NUMBER.fullmatch(text) or abs(float(text)) > 3.4e38:
        raise DamagedError(f"'{printable(text)}', expected a number")
    return float(text)


class _Weights:
    """Takes what lies in a ``.bin`` from front to back."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int, dtype: str) -> NDArray[Any]:
        """A view of the next ``count`` numbers; ncnn fills up to a multiple of 4 bytes."""
        size = count * np.dtype(dtype).itemsize
        if count < 1 or self.at + size + -size % 4 > len(self.data):
            raise DamagedError(f"wants {count} numbers at byte {self.at} of the .bin, which has {len(self.data)}")
        values: NDArray[Any] = np.frombuffer(self.data, dtype, count, self.at)
        self.at += size + -size % 4
        return values

    def tagged(self, count: int) -> NDArray[Any]:
        """As `take`, but stored as the tag before it says: float32, float16 or int8."""
        tag = int(self.take(1, "<u4")[0])
        if tag in FLOAT32:
            return self.take(count, "<f4")
        if tag in (FLOAT16, INT8):
            return self.take(count, "<f2" if tag == FLOAT16 else "i1")
        raise DamagedError(f"its weights are stored as 0x{tag:08X}, which is none of float32, float16 and int8")


def _load(layer: Layer, weights: _Weights) -> None:
    if layer.kind in WEIGHTED:
        _load_weighted(layer, weights)
    elif layer.kind == "Scale" and layer.integer(0) != REST:
        weights.take(layer.integer(0) * (2 if layer.integer(1) else 1), "<f4")
    elif layer.kind in PLAIN:
        weights.take(sum(layer.integer(number) * times for number, times in PLAIN[layer.kind].items()), "<f4")
    elif layer.kind not in WEIGHTLESS and layer.kind != "Scale":
        raise DamagedError("an unknown type of layer, whose weights cannot be passed over")


def _load_weighted(layer: Layer, weights: _Weights) -> None:
    """Weight, bias, and for int8 a scale per output (or group) and one or two of activations."""
    dense, split = layer.kind == "InnerProduct", layer.kind == "ConvolutionDepthWise"
    outputs, groups = layer.integer(0), layer.integer(7, 1) if split else 1
    kernel = (1, 1) if dense else (layer.integer(11, layer.integer(1)), layer.integer(1))
    size, area = layer.integer(2 if dense else 6), kernel[0] * kernel[1]
    if min(outputs, groups, size, *kernel) < 1 or outputs % groups or size % (outputs * area):
        raise DamagedError(f"{size} weights for {outputs} outputs in {groups} groups and a {kernel} kernel")
    raw = weights.tagged(size)
    if layer.integer(1 if dense else 5):
        layer.bias = weights.take(outputs, "<f4")
    values = raw.astype(np.float32)
    term = layer.integer(8)
    if term:
        scales = weights.take(1 if split and term in (2, 102) else groups if split else outputs, "<f4")
        weights.take(1, "<f4")  # of the input, which float32 does without
        if term > 100:
            weights.take(1, "<f4")  # of the output
        if raw.dtype == np.int8:
            with np.errstate(all="ignore"):
                shared = values.reshape(len(scales), -1) / scales[:, None]
            values = np.where(scales[:, None] == 0, np.float32(0), shared).ravel()  # as ncnn takes a scale of 0
    elif raw.dtype == np.int8:
        raise DamagedError("its weights are int8 but have no scales")
    if not np.isfinite(values).all() or (layer.bias is not None and not np.isfinite(layer.bias).all()):
        raise DamagedError("its weights are not all finite")
    shape = (outputs, size // outputs) if dense else (outputs, size // (outputs * area), *kernel)
    layer.weight = values.reshape(shape)
