"""ncnn's two files: a text ``.param`` with a line per layer, and a ``.bin`` with all weights in the same order.

Format: Tencent/ncnn, docs/developer-guide/param-and-model-file-structure.md. Every count is checked before it is
relied on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.convert.graph import DamagedError, damage_located, printable

MAGIC = "7767517"  # the first line of a .param
MAX_LAYERS, MAX_BLOBS = 10_000, 256  # of a network, and of a layer: far above any of this family
REST = -233  # ncnn's number for "what is left" or "as the input"

# the tag before a weight says how it is stored
FLOAT16, INT8, FLOAT32 = 0x01306B47, 0x000D4B38, (0, 0x0002C056)

# Types of layers without weights. How many bytes an unknown type has in the .bin cannot be known.
WEIGHTLESS = {
    "AbsVal", "ArgMax", "BinaryOp", "Cast", "Clip", "Concat", "Crop", "DetectionOutput", "Dropout", "ELU", "Eltwise",
    "ExpandDims", "Flatten", "HardSigmoid", "HardSwish", "Input", "Interp", "LRN", "Mish", "Noop", "Packing", "Padding",
    "Permute", "Pooling", "Power", "PriorBox", "Proposal", "ROIPooling", "ReLU", "Reduction", "Reorg", "Reshape",
    "ShuffleChannel", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Swish", "TanH", "Tile", "UnaryOp",
    "Yolov3DetectionOutput",
}  # fmt: skip
# layers whose weights are passed over: floats without a tag, as many as a parameter says, times a factor
UNTAGGED = {"BatchNorm": {0: 4}, "Bias": {0: 1}, "PReLU": {0: 1}}
WEIGHTED = ("Convolution", "ConvolutionDepthWise", "InnerProduct")

INTEGER = re.compile(r"[-+]?\d{1,10}", re.ASCII)
NUMBER = re.compile(r"[-+]?(\d{1,20}\.?\d{0,20}|\.\d{1,20})([eE][-+]?\d{1,3})?", re.ASCII)
SETTING = re.compile(r"(-?\d{1,5})=(\S+)", re.ASCII)

Number = int | float


@dataclass
class Layer:
    """One line of the ``.param``.

    Attributes:
        index: Position in the file, from 0.
        kind: ncnn's type, such as ``Convolution``.
        name: At most 80 printable characters.
        inputs: Names of the blobs it reads.
        outputs: Names of the blobs it writes.
        settings: Parameters by ncnn's number; an array is a tuple.
        weight: float32 in torch's layout, (out, in / groups, kh, kw) or (out, in).
        bias: float32 (out,), or None.
    """

    index: int
    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: dict[int, Number | tuple[Number, ...]] = field(default_factory=dict)
    weight: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None

    @property
    def display_name(self) -> str:
        """The layer's number, name and type, for messages."""
        return f"layer {self.index} '{self.name}' {self.kind}"

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


def is_ncnn(start: bytes) -> bool:
    """Whether these are the first bytes (at least 8) of a ``.param``."""
    return start[:7] == MAGIC.encode() and start[7:8].isspace()


def parse_param(text: str) -> list[Layer]:
    """Reads the layers, without their weights.

    Args:
        text: Contents of the ``.param``.

    Raises:
        DamagedError: A line is not as ncnn writes it, or the counts at the top are not those of the lines below.
    """
    lines = text.rstrip().split("\n")
    if len(lines) < 2 or lines[0].strip() != MAGIC:
        raise DamagedError(f"'{MAGIC}' and two counts expected in its first lines")
    words = lines[1].split()
    counts = [int(word) for word in words if INTEGER.fullmatch(word)]
    if len(words) != 2 or len(counts) != 2 or not 0 < counts[0] <= MAX_LAYERS:
        raise DamagedError(f"line 2 is '{printable(lines[1])}', expected the numbers of layers and blobs")
    if len(lines) - 2 != counts[0]:
        raise DamagedError(f"{len(lines) - 2} layers, but line 2 says {counts[0]}")
    layers = []
    for index, line in enumerate(lines[2:]):
        with damage_located(f"line {index + 3}"):
            layers.append(_parse_layer(index, line.split()))
    blobs = sum(len(layer.outputs) for layer in layers)
    if blobs != counts[1]:
        raise DamagedError(f"{blobs} blobs, but line 2 says {counts[1]}")
    return layers


def read_bin(data: bytes, layers: list[Layer]) -> None:
    """Gives the layers their weights.

    Args:
        data: Contents of the ``.bin``.
        layers: From `parse_param`; changed in place.

    Raises:
        DamagedError: The file is too short or too long, a weight is not finite, or a layer's type is unknown.
    """
    stream = _WeightStream(data)
    for layer in layers:
        with damage_located(layer.display_name):
            _load(layer, stream)
    if stream.position != len(data):
        raise DamagedError(f"{len(data) - stream.position} bytes are left in the .bin behind the last layer's weights")


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


class _WeightStream:
    """Reads a ``.bin`` from front to back."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def read(self, count: int, dtype: str = "<f4") -> NDArray[Any]:
        """A view of the next ``count`` numbers; ncnn pads them to a multiple of 4 bytes."""
        size = count * np.dtype(dtype).itemsize
        if count < 1 or self.position + size + -size % 4 > len(self.data):
            raise DamagedError(f"wants {count} numbers at byte {self.position} of the .bin, which has {len(self.data)}")
        values: NDArray[Any] = np.frombuffer(self.data, dtype, count, self.position)
        self.position += size + -size % 4
        return values

    def read_tagged(self, count: int) -> NDArray[Any]:
        """As `read`, but of the type that the tag before the numbers names: float32, float16 or int8."""
        tag = int(self.read(1, "<u4")[0])
        if tag in FLOAT32:
            return self.read(count)
        if tag in (FLOAT16, INT8):
            return self.read(count, "<f2" if tag == FLOAT16 else "i1")
        raise DamagedError(f"its weights are stored as 0x{tag:08X}, which is none of float32, float16 and int8")


def _load(layer: Layer, stream: _WeightStream) -> None:
    """Reads the weights of a layer, or passes over them where nothing needs them."""
    if layer.kind in WEIGHTED:
        _load_weighted(layer, stream)
    elif layer.kind == "Scale" and layer.integer(0) != REST:
        stream.read(layer.integer(0) * (2 if layer.integer(1) else 1))
    elif layer.kind in UNTAGGED:
        stream.read(sum(layer.integer(number) * times for number, times in UNTAGGED[layer.kind].items()))
    elif layer.kind not in WEIGHTLESS and layer.kind != "Scale":
        raise DamagedError("an unknown type of layer, whose weights cannot be passed over")


def _load_weighted(layer: Layer, stream: _WeightStream) -> None:
    """Reads weight, bias and, for int8, a scale per output (or group) and one or two scales of activations."""
    dense, depthwise = layer.kind == "InnerProduct", layer.kind == "ConvolutionDepthWise"
    outputs, groups = layer.integer(0), layer.integer(7, 1) if depthwise else 1
    kernel = (1, 1) if dense else (layer.integer(11, layer.integer(1)), layer.integer(1))
    size, area = layer.integer(2 if dense else 6), kernel[0] * kernel[1]
    if min(outputs, groups, size, *kernel) < 1 or outputs % groups or size % (outputs * area):
        raise DamagedError(f"{size} weights for {outputs} outputs in {groups} groups and a {kernel} kernel")
    raw = stream.read_tagged(size)
    if layer.integer(1 if dense else 5):
        layer.bias = stream.read(outputs)
    values = raw.astype(np.float32)
    int8_scale_term = layer.integer(8)
    if int8_scale_term:
        one_scale = depthwise and int8_scale_term in (2, 102)
        scales = stream.read(1 if one_scale else groups if depthwise else outputs)
        stream.read(1)  # the input's scale, which float32 does without
        if int8_scale_term > 100:
            stream.read(1)  # the output's scale
        if raw.dtype == np.int8:
            with np.errstate(all="ignore"):
                scaled = values.reshape(len(scales), -1) / scales[:, None]
            values = np.where(scales[:, None] == 0, np.float32(0), scaled).ravel()  # ncnn, too, takes a scale of 0 so
    elif raw.dtype == np.int8:
        raise DamagedError("its weights are int8 but have no scales")
    if not np.isfinite(values).all() or (layer.bias is not None and not np.isfinite(layer.bias).all()):
        raise DamagedError("its weights are not all finite")
    shape = (outputs, size // outputs) if dense else (outputs, size // (outputs * area), *kernel)
    layer.weight = values.reshape(shape)
