"""Operators in words, so that a foreign graph and the layers of our network can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mnv2det.convert.graph import Operator
from mnv2det.ops.padding import same_padding

GLOBAL_POOL = "global average pool"
# attributes that distinguish operators of the same kind; the description states them
DETAILS = ("filter", "axes", "paddings", "over", "order", "rows", "to", "range", "mode")


@dataclass(frozen=True)
class Step:
    """An operator with what comparing needs.

    Attributes:
        operator: As read from the file.
        description: From `describe`; with the activation and the padding of neighbours that were merged into it.
        reads: Indices of the tensors it reads.
        writes: Index of the tensor it writes; -1 if there is not exactly one.
    """

    operator: Operator
    description: str
    reads: tuple[int, ...]
    writes: int


def describe_convolution(
    kind: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: str,
    channels: tuple[int, int],
    activation: str,
) -> str:
    """A convolution in words. A dilation of 1, and SAME or VALID padding of a 1x1, change nothing and go unsaid."""
    words = [kind, "x".join(map(str, kernel)), "stride", "x".join(map(str, sorted(set(stride))))]
    words += [f"dilation {'x'.join(map(str, sorted(set(dilation))))}"] if set(dilation) != {1} else []
    words += [padding] if set(kernel) != {1} or padding not in ("", "SAME", "VALID") else []
    return " ".join([*words, f"{channels[0]} to {channels[1]} channels, {activation}"])


def describe_linear(inputs: int, outputs: int) -> str:
    """A 1x1 convolution without activation, in words."""
    return describe_convolution("CONV_2D", (1, 1), (1, 1), (1, 1), "", (inputs, outputs), "NONE")


def describe(operator: Operator, padding: str = "") -> str:
    """An operator in words.

    Args:
        operator: From a reader.
        padding: States a convolution's padding in place of its own attribute.
    """
    kind, attributes = operator.kind, operator.attributes
    shape = operator.inputs[0].shape if operator.inputs else ()
    if operator.weight is not None and kind == "FULLY_CONNECTED":
        outputs, inputs = operator.weight.shape
        return f"{kind} {inputs} to {outputs} channels, {attributes['activation']}"
    if operator.weight is not None:
        outputs, inputs, *kernel = operator.weight.shape
        if kind == "DEPTHWISE_CONV_2D":
            inputs = shape[-1] if len(shape) == 4 else outputs
        stride, dilation, activation = (attributes[name] for name in ("stride", "dilation", "activation"))
        padding = padding or attributes["padding"]
        return describe_convolution(kind, kernel, stride, dilation, padding, (inputs, outputs), activation)
    if kind == "MEAN" and len(shape) == 4 and sorted(axis % 4 for axis in attributes.get("axes", ())) == [1, 2]:
        return GLOBAL_POOL
    if kind == "AVERAGE_POOL_2D":
        whole = len(shape) == 4 and attributes["filter"] == shape[1:3]
        if whole and attributes["padding"] == "VALID" and attributes["activation"] == "NONE":
            return GLOBAL_POOL
    if kind == "SOFTMAX" and attributes["beta"] != 1:
        return f"{kind} with beta {attributes['beta']:g}"
    details = [f"{name} {attributes[name]}" for name in DETAILS if name in attributes]
    activation = [attributes["activation"]] if "activation" in attributes else []
    return ", ".join([" ".join([kind, *details]), *activation])


def merge_operators(operators: Sequence[Operator]) -> tuple[list[Step], dict[int, int]]:
    """Describes operators and merges those that only a converter separates.

    QUANTIZE and DEQUANTIZE are dropped, a RELU or RELU6 of its own is merged into the convolution before it, and a PAD
    that adds what SAME would into the convolution behind it.

    Returns:
        The steps, and for every tensor that was dropped the index of the one it stands for.
    """
    steps: list[Step] = []
    alias: dict[int, int] = {}
    pad: Operator | None = None
    readers = Counter(info.index for operator in operators for info in operator.inputs)
    for operator in operators:
        reads = tuple(alias.get(info.index, info.index) for info in operator.inputs)
        writes = operator.outputs[0].index if len(operator.outputs) == 1 else -1
        last = steps[-1] if steps else None
        if operator.kind in ("QUANTIZE", "DEQUANTIZE") and len(reads) == 1:
            alias[writes] = reads[0]
        elif last and _is_activation_of(operator, last, reads) and readers[operator.inputs[0].index] == 1:
            steps[-1] = replace(last, description=last.description.removesuffix("NONE") + operator.kind)
            alias[writes] = last.writes
        else:
            padding = ""
            if pad is not None and last is not None and reads == (last.writes,) and _pads_same(pad, operator):
                reads, padding = steps.pop().reads, "SAME"
            steps.append(Step(operator, describe(operator, padding), reads, writes))
        pad = operator if operator.kind == "PAD" else None
    return steps, alias


def _is_activation_of(operator: Operator, last: Step, reads: tuple[int, ...]) -> bool:
    """Whether an operator is the activation of the convolution before it, which has none of its own."""
    return (
        operator.kind in ("RELU", "RELU6") and reads == (last.writes,) and last.description.endswith("channels, NONE")
    )


def _pads_same(pad: Operator, conv: Operator) -> bool:
    """Whether a PAD and a VALID convolution make a SAME one, at the input size they were exported for."""
    shape = pad.inputs[0].shape if pad.inputs else ()
    if conv.weight is None or conv.attributes.get("padding") != "VALID" or len(shape) != 4:
        return False
    kernel, stride, dilation = conv.weight.shape[2:], conv.attributes["stride"], conv.attributes["dilation"]
    expected = [0, 0]
    for axis in zip(shape[1:3], kernel, stride, dilation, strict=False):
        if axis[0] < 1 or axis[2] < 1:
            return False
        expected += same_padding(*axis)
    return list(pad.attributes.get("paddings", ())) == [*expected, 0, 0]
