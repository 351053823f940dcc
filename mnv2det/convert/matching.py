"""Matches a foreign graph, operator by operator, with the layers of one of our networks.

The operators that the file has and those that our layers call for are both put into words. The first pair that differs
ends the matching with a message that quotes both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor

from mnv2det.convert.graph import Graph, Operator
from mnv2det.convert.operators import Step, describe_convolution, merge_operators
from mnv2det.errors import WeightsError
from mnv2det.models.layers import Conv, ConvNorm, InvertedResidual, make_divisible
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.ops.padding import same_padding

NORM_EPS = 1e-3  # TensorFlow's; folded away in the files, but the norms of an imported network need one
ACTIVATIONS = {6.0: "RELU6", float("inf"): "RELU", None: "NONE"}  # by the upper bound that `ConvNorm` states
# The multiplier asked for most often comes first: if none fits, the message is about that one.
WIDTHS = (1.0, *(round(0.05 * n, 2) for n in range(1, 81)))

Candidate = TypeVar("Candidate")
Match = TypeVar("Match")


class MismatchError(WeightsError):
    """The graph is another network.

    Attributes:
        position: How many steps did match, which tells the nearest of several candidates.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class GraphMatcher:
    """Goes through the steps of a graph in order and compares them with what is expected.

    Args:
        graph: From a reader.
        where: Name of the file, for messages.
        network: What the graph should be, for messages.

    Attributes:
        steps: All steps of the graph.
        position: How many of them were matched.
        current: The tensor that the last matched step writes; the next one must read it.
        features: Tensors by the names that the backbone gives its features, once `match_backbone` returned.
    """

    def __init__(self, graph: Graph, *, where: str, network: str = "MobileNetV2") -> None:
        self.error_prefix = f"{where}: {graph.format}, but not a {network}:"
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            counts = f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
            raise WeightsError(f"{self.error_prefix} {counts}, expected one of each")
        tensors = [*graph.inputs, *graph.outputs, *(info for op in graph.operators for info in op.outputs)]
        self.names = {info.index: info.name for info in tensors}
        self.steps, alias = merge_operators(graph.operators)
        self.result = alias.get(graph.outputs[0].index, graph.outputs[0].index)
        self.current = alias.get(graph.inputs[0].index, graph.inputs[0].index)
        self.position = 0
        self.features: dict[str, int] = {}

    @property
    def next_step(self) -> Step | None:
        """The step to be matched next; None at the end."""
        return self.steps[self.position] if self.position < len(self.steps) else None

    def output_channels(self, default: int, *, ahead: int = 0) -> int:
        """Output channels of the step ``ahead`` of the next one; ``default`` where that has no weight."""
        number = self.position + ahead
        weight = self.steps[number].operator.weight if number < len(self.steps) else None
        return default if weight is None else len(weight)

    def match(self, *expected: str, reads: Sequence[int] | None = None) -> Operator:
        """Matches the next step.

        Args:
            expected: The description it must have; any of several.
            reads: The tensors it must read; by default `current`.

        Returns:
            The operator of the step.

        Raises:
            MismatchError: The next step is another one.
        """
        wanted, step = " or ".join(expected), self.next_step
        if step is None:
            last = f"after {self.steps[-1].operator.display_name}" if self.steps else "without an operator"
            raise self.mismatch(f"ends {last}, expected {wanted}")
        if step.description not in expected:
            raise self.mismatch(f"{step.operator.display_name} is {step.description}, expected {wanted}")
        sources = (self.current,) if reads is None else tuple(reads)
        # only an addition may read its inputs in any order
        fits = sorted(step.reads) == sorted(sources) if step.operator.kind == "ADD" else step.reads == sources
        if not fits:
            actual, needed = (" and ".join(f"'{self.names.get(n, n)}'" for n in ids) for ids in (step.reads, sources))
            reader = f"{step.operator.display_name} {step.operator.kind}"
            raise self.mismatch(f"{reader} reads {actual or 'nothing'}, expected {needed}")
        self.position += 1
        self.current = step.writes
        return step.operator

    def skip(self, *descriptions: str) -> None:
        """Passes over all next steps that have one of these descriptions and read `current`."""
        while (step := self.next_step) and step.description in descriptions and step.reads == (self.current,):
            self.match(step.description)

    def match_end(self) -> None:
        """Checks that no step is left, and that the graph's output is what the last one wrote.

        Raises:
            MismatchError: It is not so.
        """
        step = self.next_step
        if step is not None:
            raise self.mismatch(f"{step.operator.display_name} is {step.description}, expected the end of the network")
        if self.result != self.current:
            raise self.mismatch(f"its output '{self.names[self.result]}' is not what the last operator computes")

    def match_backbone(self, backbone: MobileNetV2) -> dict[str, Tensor]:
        """Matches all layers of a backbone.

        Args:
            backbone: With the expected width, stride and padding; its weights do not matter.

        Returns:
            Tensors by their names in a weight file. Batch norm holds the folded bias and is otherwise the identity in
            eval mode.

        Raises:
            MismatchError: The graph has another layer somewhere.
        """
        tensors = self.match_layer(backbone.stem, "backbone.stem")
        self.features["stem"] = self.current
        for number, block in enumerate(backbone.blocks):
            assert isinstance(block, InvertedResidual)
            block_input = self.current
            for name in ("expand", "depthwise", "project"):
                layer = getattr(block, name)
                if layer is not None:
                    tensors |= self.match_layer(layer, f"backbone.blocks.{number}.{name}")
                if name == "expand":
                    self.features[f"block{number + 1}.expand"] = self.current
            if block.shortcut:
                self.match("ADD, NONE", reads=(block_input, self.current))
            self.features[f"block{number + 1}"] = self.current
        if backbone.last is not None:
            tensors |= self.match_layer(backbone.last, "backbone.last")
            self.features["last"] = self.current
        return tensors

    def match_layer(self, layer: ConvNorm, name: str) -> dict[str, Tensor]:
        """Matches one convolution with its folded batch norm.

        Args:
            layer: The expected layer.
            name: Of the layer in a weight file.

        Returns:
            As `match_backbone`.
        """
        conv = layer.conv
        operator = self.match(
            describe_convolution(
                "DEPTHWISE_CONV_2D" if conv.groups > 1 else "CONV_2D",
                conv.kernel_size,
                conv.stride,
                conv.dilation,
                self._expected_padding(conv),
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

    def _expected_padding(self, conv: Conv) -> str:
        """The padding that the next step must state; on some sizes symmetric padding is what SAME does."""
        step = self.next_step
        shape = step.operator.inputs[0].shape[1:3] if step is not None and step.operator.inputs else ()
        axes = zip(shape, conv.kernel_size, conv.stride, conv.dilation, strict=False)
        same = all(same_padding(*axis) == (pad, pad) for axis, pad in zip(axes, conv.padding, strict=False))
        return "SAME" if conv.pads_by_size or conv.stride == (1, 1) or (shape and same) else "SYMMETRIC"

    def mismatch(self, text: str) -> MismatchError:
        """Makes the error that says why the graph is another network, at the present position."""
        return MismatchError(f"{self.error_prefix} {text}", self.position)


def first_match(candidates: Sequence[Candidate], attempt: Callable[[Candidate], Match]) -> Match:
    """Tries candidates in order and returns what ``attempt`` returns for the first that matches.

    Raises:
        MismatchError: None matches; the error is that of the candidate that came furthest.
    """
    errors = []
    for candidate in candidates:
        try:
            return attempt(candidate)
        except MismatchError as error:
            errors.append(error)
    raise max(errors, key=lambda error: error.position)


def candidate_widths(graph: Graph, divisors: Sequence[int] = (8,)) -> list[dict[str, Any]]:
    """Arguments of `MobileNetV2` that give the first convolution the channels it has; width 1 if none does.

    No two multipliers give all layers the same channels, so at most one of them matches the whole backbone.

    Args:
        graph: From a reader.
        divisors: What channels may be multiples of.
    """
    stem = next((len(operator.weight) for operator in graph.operators if operator.weight is not None), 0)
    found: list[dict[str, Any]] = [
        {"width": width, **({} if divisor == 8 else {"divisor": divisor})}
        for divisor, width in product(divisors, WIDTHS)
        if make_divisible(32 * width, divisor) == stem
    ]
    return found or [{"width": 1.0}]


def weight_and_bias(operator: Operator) -> tuple[Tensor, Tensor]:
    """An operator's weight and bias as tensors; zeros where it has no bias."""
    assert operator.weight is not None
    weight = torch.from_numpy(operator.weight.copy())
    return weight, torch.zeros(len(weight)) if operator.bias is None else torch.from_numpy(operator.bias.copy())
