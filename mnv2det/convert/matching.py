"""Follows a foreign graph operator by operator along one of our backbones.

Found and expected layers are both put into words; the first pair of words that differs ends the
walk with a message that quotes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mnv2det.convert.graph import Graph, Operator
from mnv2det.errors import WeightsError
from mnv2det.models.layers import Conv, ConvNorm, InvertedResidual, make_divisible
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.ops.padding import same_padding

GLOBAL_POOL = "global average pool"
ACTIVATIONS = {6.0: "RELU6", float("inf"): "RELU", None: "NONE"}  # by the bound that `ConvNorm` keeps
# the one asked for most often first: it serves as the example if none fits
WIDTHS = (1.0, *(round(0.05 * n, 2) for n in range(1, 81)))
# attributes that tell two operators of a kind apart
DETAILS = ("filter", "axes", "paddings", "over", "order", "rows", "to", "range", "mode")

C = TypeVar("C")
R = TypeVar("R")


class MismatchError(WeightsError):
    """The graph is another network.

    Attributes:
        position: How many steps did fit, to tell the nearest of several candidates.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class Step:
    """An operator, in words and by the tensors that connect it."""

    operator: Operator
    what: str
    reads: tuple[int, ...]
    writes: int


class Walk:
    """Takes the steps of a graph in order.

    Args:
        graph: From `read_tflite` or `read_ncnn`.
        where: Name of the file, for messages.
        network: What the graph should be, for messages.

    Attributes:
        steps: All of them.
        position: How many were taken.
        current: The tensor that the last one computed.
        taps: Tensors by the names that the backbone gives its features, once it was passed.
    """

    def __init__(self, graph: Graph, *, where: str, network: str = "MobileNetV2") -> None:
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            counts = f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
            raise WeightsError(f"{where}: not a {network}: {counts}, expected one of each")
        self.start = f"{where}: not a {network}:"
        self.names = {info.index: info.name for info in graph.inputs + graph.outputs}
        for operator in graph.operators:
            self.names |= {info.index: info.name for info in operator.outputs}
        self.steps, alias = _steps(graph.operators)
        self.result = alias.get(graph.outputs[0].index, graph.outputs[0].index)
        self.current = alias.get(graph.inputs[0].index, graph.inputs[0].index)
        self.position = 0
        self.taps: dict[str, int] = {}

    def peek(self) -> Step | None:
        """The next step, None at the end."""
        return self.steps[self.position] if self.position < len(self.steps) else None

    def take(self, *expected: str, reads: Sequence[int] | None = None) -> Operator:
        """Passes one step.

        Args:
            expected: Its description; several where either will do.
            reads: Tensors it must compute from, by default the previous step's output.

        Raises:
            MismatchError: The next step is another one.
        """
        wanted, step = " or ".join(expected), self.peek()
        if step is None:
            last = f"after {self.steps[-1].operator.place}" if self.steps else "without an operator"
            raise self.error(f"ends {last}, expected {wanted}")
        if step.what not in expected:
            raise self.error(f"{step.operator.place} is {step.what}, expected {wanted}")
        sources = (self.current,) if reads is None else tuple(reads)
        # only an addition may read them in any order
        fits = sorted(step.reads) == sorted(sources) if step.operator.kind == "ADD" else step.reads == sources
        if not fits:
            found, needed = (" and ".join(f"'{self.names.get(n, n)}'" for n in ids) for ids in (step.reads, sources))
            raise self.error(
                f"{step.operator.place} {step.operator.kind} reads {found or 'nothing'}, expected {needed}"
            )
        self.position += 1
        self.current = step.writes
        return step.operator

    def skip(self, *what: str) -> None:
        """Passes steps of these descriptions, if they come next."""
        while (step := self.peek()) is not None and step.what in what and step.reads == (self.current,):
            self.take(step.what)

    def end(self) -> None:
        """Insists that nothing is left, and that the graph gives what was computed last.

        Raises:
            MismatchError: It is not so.
        """
        step = self.peek()
        if step is not None:
            raise self.error(f"{step.operator.place} is {step.what}, expected the end of the network")
        if self.result != self.current:
            raise self.error(f"its output '{self.names[self.result]}' is not what the last operator computes")

    def backbone(self, backbone: MobileNetV2) -> dict[str, Tensor]:
        """Passes all layers of a backbone.

        Args:
            backbone: With the width, stride and padding to expect; its weights do not matter.

        Returns:
            Tensors by their names in a weight file. Batch norm holds the folded bias and is
            otherwise the identity in eval mode.

        Raises:
            MismatchError: The graph has another layer there.
        """
        tensors = self.layer(backbone.stem, "backbone.stem")
        self.taps["stem"] = self.current
        for number, block in enumerate(backbone.blocks):
            assert isinstance(block, InvertedResidual)
            entry = self.current
            for part in ("expand", "depthwise", "project"):
                layer = getattr(block, part)
                if layer is not None:
                    tensors |= self.layer(layer, f"backbone.blocks.{number}.{part}")
                if part == "expand":
                    self.taps[f"block{number + 1}.expand"] = self.current
            if block.shortcut:
                self.take("ADD, NONE", reads=(entry, self.current))
            self.taps[f"block{number + 1}"] = self.current
        if backbone.last is not None:
            tensors |= self.layer(backbone.last, "backbone.last")
            self.taps["last"] = self.current
        return tensors

    def layer(self, layer: ConvNorm, name: str) -> dict[str, Tensor]:
        """Passes one convolution with its folded batch norm; see `backbone`."""
        conv = layer.conv
        operator = self.take(
            convolution(
                "DEPTHWISE_CONV_2D" if conv.groups > 1 else "CONV_2D",
                conv.kernel_size,
                conv.stride,
                conv.dilation,
                self.padding(conv),
                (conv.in_channels, conv.out_channels),
                ACTIVATIONS[layer.high],
            )
        )
        weight, bias = weight_and_bias(operator)
        ones = torch.ones(len(bias))
        return {
            f"{name}.conv.weight": weight,
            f"{name}.norm.weight": (ones.double() + layer.norm.eps).sqrt().float(),
            f"{name}.norm.bias": bias,
            f"{name}.norm.running_mean": torch.zeros(len(bias)),
            f"{name}.norm.running_var": ones,
            f"{name}.norm.num_batches_tracked": torch.tensor(0),
        }

    def padding(self, conv: Conv) -> str:
        """What the next step must say of its padding; on some sizes symmetric padding is what SAME does."""
        step = self.peek()
        shape = step.operator.inputs[0].shape[1:3] if step is not None and step.operator.inputs else ()
        axes = zip(shape, conv.kernel_size, conv.stride, conv.dilation, strict=False)
        same = all(same_padding(*axis) == (pad, pad) for axis, pad in zip(axes, conv.padding, strict=False))
        return "SAME" if conv.pads_by_size or conv.stride == (1, 1) or (shape and same) else "SYMMETRIC"

    def error(self, text: str) -> MismatchError:
        """An error at the present position."""
        return MismatchError(f"{self.start} {text}", self.position)


def nearest(candidates: Sequence[C], attempt: Callable[[C], R]) -> R:
    """What the first candidate gives that fits.

    Raises:
        MismatchError: None does; that of the candidate that came furthest.
    """
    errors = []
    for candidate in candidates:
        try:
            return attempt(candidate)
        except MismatchError as error:
            errors.append(error)
    raise max(errors, key=lambda error: error.position)


def widths(graph: Graph) -> list[float]:
    """Width multipliers that give the first convolution as many channels; 1.0 if there are none."""
    stem = next((len(operator.weight) for operator in graph.operators if operator.weight is not None), 0)
    return [width for width in WIDTHS if make_divisible(32 * width) == stem] or [1.0]


def weight_and_bias(operator: Operator) -> tuple[Tensor, Tensor]:
    """An operator's weight and bias as tensors; zeros where it has no bias."""
    assert operator.weight is not None
    weight = torch.from_numpy(operator.weight.copy())
    return weight, torch.zeros(len(weight)) if operator.bias is None else torch.from_numpy(operator.bias.copy())


def convolution(
    kind: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: str,
    channels: tuple[int, int],
    activation: str,
) -> str:
    """A convolution in words. SAME or VALID padding of a 1x1 and a dilation of 1 change nothing and go unsaid."""
    words = [kind, "x".join(map(str, kernel)), "stride", "x".join(map(str, sorted(set(stride))))]
    words += [f"dilation {'x'.join(map(str, sorted(set(dilation))))}"] if set(dilation) != {1} else []
    words += [padding] if set(kernel) != {1} or padding not in ("", "SAME", "VALID") else []
    return " ".join([*words, f"{channels[0]} to {channels[1]} channels, {activation}"])


def describe(operator: Operator, padding: str = "") -> str:
    """An operator in words; ``padding`` overrides its own."""
    kind, known = operator.kind, operator.attributes
    shape = operator.inputs[0].shape if operator.inputs else ()
    if operator.weight is not None and kind == "FULLY_CONNECTED":
        outputs, inputs = operator.weight.shape
        return f"{kind} {inputs} to {outputs} channels, {known['activation']}"
    if operator.weight is not None:
        outputs, inputs = operator.weight.shape[:2]
        if kind == "DEPTHWISE_CONV_2D":
            inputs = shape[-1] if len(shape) == 4 else outputs
        kernel, pad = operator.weight.shape[2:], padding or known["padding"]
        return convolution(
            kind, kernel, known["stride"], known["dilation"], pad, (inputs, outputs), known["activation"]
        )
    if kind == "MEAN" and len(shape) == 4 and sorted(axis % 4 for axis in known.get("axes", ())) == [1, 2]:
        return GLOBAL_POOL
    if kind == "AVERAGE_POOL_2D":
        whole = len(shape) == 4 and known["filter"] == shape[1:3]
        if whole and known["padding"] == "VALID" and known["activation"] == "NONE":
            return GLOBAL_POOL
    if kind == "SOFTMAX" and known["beta"] != 1:
        return f"{kind} with beta {known['beta']:g}"
    details = [f"{name} {known[name]}" for name in DETAILS if name in known]
    return ", ".join([" ".join([kind, *details]), *([known["activation"]] if "activation" in known else [])])


def _steps(operators: Sequence[Operator]) -> tuple[list[Step], dict[int, int]]:
    """Operators in words, without those that only change how a tensor is stored.

    QUANTIZE and DEQUANTIZE are dropped, a RELU or RELU6 of its own joins its convolution, a PAD that
    adds what SAME would joins the convolution behind it. The dictionary leads from a tensor that was
    dropped to the one it stands for.
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
        elif _activates(operator, last, reads) and readers[operator.inputs[0].index] == 1:
            assert last is not None
            steps[-1] = Step(last.operator, last.what.removesuffix("NONE") + operator.kind, last.reads, last.writes)
            alias[writes] = last.writes
        else:
            padding = ""
            if pad is not None and last is not None and reads == (last.writes,) and _pads_same(pad, operator):
                reads, padding = steps.pop().reads, "SAME"
            steps.append(Step(operator, describe(operator, padding), reads, writes))
        pad = operator if operator.kind == "PAD" else None
    return steps, alias


def _activates(operator: Operator, last: Step | None, reads: tuple[int, ...]) -> bool:
    """Whether an operator is the activation that the convolution before it leaves out."""
    return (
        operator.kind in ("RELU", "RELU6")
        and last is not None
        and reads == (last.writes,)
        and last.what.endswith("channels, NONE")
    )


def _pads_same(pad: Operator, conv: Operator) -> bool:
    """Whether a PAD and a VALID convolution make a SAME one on the input they were built for."""
    amounts, shape = pad.attributes.get("paddings", ()), pad.inputs[0].shape if pad.inputs else ()
    if conv.weight is None or conv.attributes.get("padding") != "VALID" or len(shape) != 4:
        return False
    expected = [0, 0]
    for size, kernel, step, spread in zip(
        shape[1:3], conv.weight.shape[2:], conv.attributes["stride"], conv.attributes["dilation"], strict=False
    ):
        if step < 1 or size < 1:
            return False
        expected += same_padding(size, kernel, step, spread)
    return list(amounts) == [*expected, 0, 0]
