"""A small TFLite writer: test graphs as bytes, and our own classifier and segmenter as float32 files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from numpy.typing import NDArray
from torch import nn

from mnv2det.models.deeplab import MobileDeepLab
from mnv2det.models.layers import ConvNorm, InvertedResidual
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.models.model import Model

CODES = {
    "ADD": 0,
    "AVERAGE_POOL_2D": 1,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 4,
    "DEQUANTIZE": 6,
    "FULLY_CONNECTED": 9,
    "LOGISTIC": 14,
    "MUL": 18,
    "RELU6": 21,
    "RESHAPE": 22,
    "RESIZE_BILINEAR": 23,
    "SOFTMAX": 25,
    "PAD": 34,
    "MEAN": 40,
    "ARG_MAX": 56,
    "QUANTIZE": 114,
}
TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "int8": 9}
NONE, RELU, RELU6 = 0, 1, 3
SAME, VALID = 0, 1

Value = tuple[str, Any]  # flatbuffers' name of a slot type, and what goes into it


class Writer:
    """Collects tensors and operators; `finish` gives the file."""

    def __init__(self) -> None:
        self.tensors: list[dict[str, Any]] = []
        self.operators: list[tuple[int, list[int], list[int], int, dict[int, Value]]] = []

    def tensor(
        self,
        shape: Sequence[int],
        data: NDArray[Any] | None = None,
        *,
        dtype: str = "float32",
        scale: Sequence[float] = (),
        zero: Sequence[int] = (),
        axis: int = 0,
    ) -> int:
        """Adds a tensor, a constant if it has data; returns its index."""
        dtype = dtype if data is None else str(data.dtype)
        self.tensors.append({"shape": shape, "data": data, "dtype": dtype, "scale": scale, "zero": zero, "axis": axis})
        return len(self.tensors) - 1

    def operator(
        self,
        kind: str | int,
        inputs: Sequence[int],
        shape: Sequence[int],
        options: tuple[int, dict[int, Value]] = (0, {}),
        dtype: str = "float32",
    ) -> int:
        """Adds an operator with one output of this shape; returns the output's index."""
        output = self.tensor(shape, dtype=dtype)
        code = CODES[kind] if isinstance(kind, str) else kind
        self.operators.append((code, list(inputs), [output], *options))
        return output

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        b = flatbuffers.Builder(1 << 16)
        buffers = [_table(b, {})]
        numbers = []
        for tensor in self.tensors:
            numbers.append(0 if tensor["data"] is None else len(buffers))
            if tensor["data"] is not None:
                buffers.append(_table(b, {0: ("UOffsetTRelative", _bytes(b, tensor["data"].tobytes()))}))
        tensors = [
            _tensor(b, n, tensor, number) for n, (tensor, number) in enumerate(zip(self.tensors, numbers, strict=True))
        ]
        codes = sorted({operator[0] for operator in self.operators})
        operators = []
        for code, reads, writes, options, fields in self.operators:
            slots: dict[int, Value] = {0: ("Uint32", codes.index(code))}
            slots[1] = ("UOffsetTRelative", b.CreateNumpyVector(np.array(reads, np.int32)))
            slots[2] = ("UOffsetTRelative", b.CreateNumpyVector(np.array(writes, np.int32)))
            if options:
                slots |= {3: ("Uint8", options), 4: ("UOffsetTRelative", _table(b, fields))}
            operators.append(_table(b, slots))
        main = {
            0: _offsets(b, tensors),
            1: b.CreateNumpyVector(np.array(inputs, np.int32)),
            2: b.CreateNumpyVector(np.array(outputs, np.int32)),
            3: _offsets(b, operators),
        }
        graph = _table(b, {slot: ("UOffsetTRelative", place) for slot, place in main.items()})
        kinds = [_table(b, {0: ("Int8", min(code, 127)), 2: ("Int32", 1), 3: ("Int32", code)}) for code in codes]
        model = {1: _offsets(b, kinds), 2: _offsets(b, [graph]), 4: _offsets(b, buffers)}
        slots = {slot: ("UOffsetTRelative", place) for slot, place in model.items()}
        b.Finish(_table(b, {0: ("Uint32", 3), **slots}), file_identifier=b"TFL3")
        return bytes(b.Output())


def _table(b: Any, slots: dict[int, Value]) -> int:
    b.StartObject(max(slots, default=-1) + 1)
    for slot, (kind, value) in slots.items():
        getattr(b, f"Prepend{kind}Slot")(slot, value, None if kind != "UOffsetTRelative" else 0)
    return b.EndObject()


def _offsets(b: Any, places: Sequence[int]) -> int:
    b.StartVector(4, len(places), 4)
    for place in reversed(places):
        b.PrependUOffsetTRelative(place)
    return b.EndVector()


def _bytes(b: Any, data: bytes) -> int:
    b.StartVector(1, len(data), 16)
    b.head -= len(data)
    b.Bytes[b.head : b.head + len(data)] = data
    return b.EndVector()


def _tensor(b: Any, number: int, tensor: dict[str, Any], buffer: int) -> int:
    slots: dict[int, Value] = {
        0: ("UOffsetTRelative", b.CreateNumpyVector(np.array(tensor["shape"], np.int32))),
        1: ("Int8", TYPES[tensor["dtype"]]),
        2: ("Uint32", buffer),
        3: ("UOffsetTRelative", b.CreateString(f"tensor{number}")),
    }
    if len(tensor["scale"]):
        quantization: dict[int, Value] = {
            2: ("UOffsetTRelative", b.CreateNumpyVector(np.array(tensor["scale"], np.float32))),
            3: ("UOffsetTRelative", b.CreateNumpyVector(np.array(tensor["zero"], np.int64))),
            6: ("Int32", tensor["axis"]),
        }
        slots[4] = ("UOffsetTRelative", _table(b, quantization))
    return _table(b, slots)


class Layers(Writer):
    """Writer of float32 networks; keeps the current tensor and its (N, H, W, C)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.shape = [1, size, size, 3]
        self.start = self.current = self.tensor(self.shape)

    def conv(
        self,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        *,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        activation: int = NONE,
        padding: int = SAME,
    ) -> int:
        """Adds a convolution with a weight in torch's layout."""
        axes = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
        kernel = np.ascontiguousarray(weight.transpose(axes))
        inputs = [self.current, self.tensor(kernel.shape, kernel)]
        inputs += [] if bias is None else [self.tensor(bias.shape, bias)]
        reach = 0 if padding == SAME else dilation * (weight.shape[-1] - 1)
        side = [-(-(n - reach) // stride) for n in self.shape[1:3]]
        self.shape = [1, *side, len(weight)]
        common: dict[int, Value] = {0: ("Int8", padding), 1: ("Int32", stride), 2: ("Int32", stride)}
        spread: Value = ("Int32", dilation)
        if depthwise:
            options = (2, {**common, 3: ("Int32", 1), 4: ("Int8", activation), 5: spread, 6: spread})
        else:
            options = (1, {**common, 3: ("Int8", activation), 4: spread, 5: spread})
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        self.current = self.operator(kind, inputs, self.shape, options)
        return self.current

    def add(self, other: int) -> None:
        self.current = self.operator("ADD", [self.current, other], self.shape, (11, {0: ("Int8", NONE)}))

    def pad(self, before: int, after: int) -> None:
        amounts = np.array([[0, 0], [before, after], [before, after], [0, 0]], np.int32)
        self.shape = [1, *(n + before + after for n in self.shape[1:3]), self.shape[3]]
        self.current = self.operator("PAD", [self.current, self.tensor((4, 2), amounts)], self.shape)

    def norm(self, layer: ConvNorm, *, stem_pad: bool = False) -> None:
        """Adds one of our layers, its batch norm folded."""
        conv, norm = layer.conv, layer.norm
        slope = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        weight = (conv.weight.detach() * slope.view(-1, 1, 1, 1)).numpy()
        bias = (norm.bias - norm.running_mean * slope).detach().numpy()
        if stem_pad:
            self.pad(0, 1)
        self.conv(
            weight,
            bias,
            stride=conv.stride[0],
            dilation=conv.dilation[0],
            depthwise=conv.groups > 1,
            activation={nn.ReLU6: RELU6, nn.ReLU: RELU, type(None): NONE}[type(getattr(layer, "act", None))],
            padding=VALID if stem_pad else SAME,
        )

    def pool(self, *, mean: bool = False) -> None:
        side, self.shape = self.shape[1], [1, 1, 1, self.shape[3]]
        if mean:
            axes = self.tensor((2,), np.array([1, 2], np.int32))
            self.current = self.operator("MEAN", [self.current, axes], self.shape, (27, {0: ("Bool", True)}))
        else:
            window: dict[int, Value] = {slot: ("Int32", 1 if slot < 3 else side) for slot in (1, 2, 3, 4)}
            options = (5, {0: ("Int8", VALID), **window, 5: ("Int8", NONE)})
            self.current = self.operator("AVERAGE_POOL_2D", [self.current], self.shape, options)

    def multiply(self, other: int) -> None:
        self.current = self.operator("MUL", [self.current, other], self.shape, (21, {0: ("Int8", NONE)}))

    def sigmoid(self) -> None:
        self.current = self.operator("LOGISTIC", [self.current], self.shape)

    def resize(self, size: int, *, aligned: bool = True) -> None:
        """Bilinear, to (size, size)."""
        target = self.tensor((2,), np.array([size, size], np.int32))
        self.shape = [1, size, size, self.shape[3]]
        options: dict[int, Value] = {2: ("Bool", aligned), 3: ("Bool", not aligned)}
        self.current = self.operator("RESIZE_BILINEAR", [self.current, target], self.shape, (15, options))

    def concat(self, *others: int) -> None:
        """Puts maps of the same shape behind the current one."""
        inputs = [self.current, *others]
        self.shape = [*self.shape[:3], self.shape[3] * len(inputs)]
        options: dict[int, Value] = {0: ("Int32", 3), 1: ("Int8", NONE)}
        self.current = self.operator("CONCATENATION", inputs, self.shape, (10, options))

    def argmax(self) -> None:
        axis = self.tensor((), np.array(3, np.int32))
        self.shape = self.shape[:3]
        options: dict[int, Value] = {0: ("Int8", TYPES["int64"])}
        self.current = self.operator("ARG_MAX", [self.current, axis], self.shape, (40, options), "int64")

    def flatten(self) -> None:
        self.shape = [1, self.shape[-1]]
        target = self.tensor((2,), np.array(self.shape, np.int32))
        self.current = self.operator("RESHAPE", [self.current, target], self.shape)

    def dense(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        inputs = [self.current, self.tensor(weight.shape, weight), self.tensor(bias.shape, bias)]
        self.shape = [1, len(weight)]
        self.current = self.operator("FULLY_CONNECTED", inputs, self.shape, (8, {0: ("Int8", NONE)}))

    def softmax(self) -> None:
        self.current = self.operator("SOFTMAX", [self.current], self.shape, (9, {0: ("Float32", 1.0)}))

    def bytes(self) -> bytes:
        return self.finish([self.start], [self.current])


def write_classifier(model: Model, size: int, *, keras: bool = False) -> bytes:
    """Our classifier as a float32 TFLite file.

    Args:
        model: A MobileNetV2 with SAME padding and head ``cls``.
        size: Height and width of the input.
        keras: As Keras exports it: padded stride-2 convolutions by a PAD before them, MEAN and a
            dense layer; else pooling and a 1x1 convolution, as in the first releases.
    """
    net = Layers(size)
    _write_backbone(net, model, keras=keras)
    net.pool(mean=keras)
    linear = model.heads["cls"].linear
    weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    if keras:
        net.flatten()
        net.dense(weight, bias)
    else:
        net.conv(weight[:, :, None, None], bias)
        net.flatten()
    net.softmax()
    return net.bytes()


def write_deeplab(
    model: Model, size: int, *, order: Sequence[str] = ("pool", "branches", "project"), end: bool = True
) -> bytes:
    """Our Mobile DeepLabv3 as a float32 TFLite file, its operators in the order of the release.

    Args:
        model: A MobileNetV2 with SAME padding and head ``seg``, with ASPP or without.
        size: Height and width of the input.
        order: In which the head's first steps come: pooling, the branches that read the map itself,
            and the convolution and resizing of what was pooled.
        end: Whether the file ends in ARG_MAX, else in the logits at the input's size.
    """
    net, head = Layers(size), model.heads["seg"]
    assert isinstance(head, MobileDeepLab)
    _write_backbone(net, model)
    source, side, branches = (net.current, net.shape), net.shape[1], []
    pooled = source
    for step in order:
        if step == "branches":
            for branch in head.branches:
                net.current, net.shape = source
                net.norm(branch)
                branches.append(net.current)
            continue
        net.current, net.shape = source if step == "pool" else pooled
        if step == "pool":
            net.pool()
        else:
            net.norm(head.pool)
            net.resize(side)
        pooled = net.current, net.shape
    net.current, net.shape = pooled
    net.concat(*branches)
    net.norm(head.join)
    net.conv(head.classify.weight.detach().numpy(), head.classify.bias.detach().numpy())
    net.resize(side)
    net.resize(size)
    if end:
        net.argmax()
    return net.bytes()


def _write_backbone(net: Layers, model: Model, *, keras: bool = False) -> None:
    backbone = model.backbone
    assert isinstance(backbone, MobileNetV2)
    net.norm(backbone.stem, stem_pad=keras)
    for block in backbone.blocks:
        assert isinstance(block, InvertedResidual)
        entry = net.current
        if block.expand is not None:
            net.norm(block.expand)
        net.norm(block.depthwise, stem_pad=keras and block.depthwise.conv.stride[0] == 2)
        net.norm(block.project)
        if block.shortcut:
            net.add(entry)
    if backbone.last is not None:
        net.norm(backbone.last)
