"""Takes the layers of one of our networks out of a state dict by their names in another project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mnv2det.errors import WeightsError, near
from mnv2det.models.layers import Conv, ConvNorm, InvertedResidual
from mnv2det.models.mobilenet_v2 import TABLE_2, MobileNetV2, width_of

MOST_CHANNELS = 2**16
NORM = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"
# the row of Table 2 and the place in it, both from 0, of each bottleneck
PLACES = [(row, place) for row, (_, _, repeats, _) in enumerate(TABLE_2) for place in range(repeats)]

LayerNames = tuple[str, str]  # of a convolution and of its batch norm
Naming = Callable[[str, int], LayerNames]
"""Names of a backbone's layer: of ``stem`` and ``last``, and of a bottleneck's ``expand``, ``depthwise`` and
``project``; the number is the bottleneck's, from 0."""


class StateDictLayers:
    """The layers that were taken so far.

    Args:
        tensors: A state dict.
        where: Name of the file, for messages.
        network: What it should be, for messages.

    Attributes:
        taken: By their names in a weight file.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, where: str, network: str) -> None:
        self.theirs = tensors
        self.error_prefix = f"{where}: nearest to {network}, but"
        self.taken: dict[str, Tensor] = {}
        self._used: set[str] = set()

    def outputs(self, layer: str) -> int:
        """Outputs of a convolution or linear layer.

        Raises:
            WeightsError: Its weights are missing, or are none.
        """
        shape = self._stored(f"{layer}.weight").shape
        if len(shape) not in (2, 4) or not 0 < shape[0] <= MOST_CHANNELS:
            raise WeightsError(f"{self.error_prefix} '{layer}.weight' is {list(shape)}, expected a layer's weights")
        return int(shape[0])

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor of its own memory.

        Raises:
            WeightsError: It is missing, has another shape, or holds whole numbers.
        """
        tensor = self._stored(name)
        if tensor.shape != shape:
            raise WeightsError(f"{self.error_prefix} '{name}' is {list(tensor.shape)}, expected {list(shape)}")
        if not tensor.is_floating_point():
            raise WeightsError(f"{self.error_prefix} '{name}' holds {tensor.dtype}, expected floating-point numbers")
        return tensor.clone(memory_format=torch.contiguous_format)

    def _stored(self, name: str) -> Tensor:
        self._used.add(name)
        if name not in self.theirs:
            ending = f".{name.rpartition('.')[2]}"
            others = [other for other in self.theirs if other.endswith(ending)]
            hint = near(name, others) if len(others) <= 500 else ""
            raise WeightsError(f"{self.error_prefix} '{name}' is missing{hint if 'did you mean' in hint else ''}")
        return self.theirs[name]

    def take_layer(self, layer: ConvNorm, ours: str, theirs: LayerNames) -> None:
        """Takes a convolution with its batch norm.

        A bias of the convolution goes into the norm, which subtracts its mean from it: the result is the same.

        Args:
            layer: The expected layer.
            ours: Its name in a weight file.
            theirs: Its names in the other project.
        """
        conv, norm = theirs
        count = (layer.conv.out_channels,)
        self._take_weight(layer.conv, f"{ours}.conv", conv)
        for name in NORM:
            self.taken[f"{ours}.norm.{name}"] = self.tensor(f"{norm}.{name}", count)
        if f"{conv}.bias" in self.theirs:
            self.taken[f"{ours}.norm.running_mean"] -= self.tensor(f"{conv}.bias", count)
        if (self.taken[f"{ours}.norm.running_var"] < 0).any():
            raise WeightsError(f"{self.error_prefix} '{norm}.running_var' has values below 0")
        self.taken[f"{ours}.norm.{COUNTER}"] = torch.tensor(0)

    def take_linear(self, layer: Conv | nn.Linear, ours: str, theirs: str) -> None:
        """Takes a convolution or linear layer with biases; arguments as those of `take_layer`."""
        self._take_weight(layer, ours, theirs)
        self.taken[f"{ours}.bias"] = self.tensor(f"{theirs}.bias", (layer.weight.shape[0],))

    def _take_weight(self, layer: nn.Conv2d | nn.Linear, ours: str, theirs: str) -> None:
        self.taken[f"{ours}.weight"] = self.tensor(f"{theirs}.weight", tuple(layer.weight.shape))

    def take_mobilenet_v2(
        self, names: Naming, *, norm_eps: float, last: bool = True, **others: Any
    ) -> tuple[MobileNetV2, dict[str, Any]]:
        """Takes a MobileNetV2 of whatever width it is.

        Args:
            names: Of its layers.
            norm_eps: Epsilon of its batch norm.
            last: Whether it has the last convolution.
            others: Further arguments of `MobileNetV2`.

        Returns:
            The backbone, on torch's device ``meta``, and its arguments.

        Raises:
            WeightsError: Its channels are those of no width, or a layer differs.
        """
        outputs = [self.outputs(names("project", number)[0]) for number in range(len(PLACES))]
        width, divisor = width_of(self.outputs(names("stem", 0)[0]), outputs, where=self.error_prefix)
        args: dict[str, Any] = {"width": width, "padding": "symmetric", "norm_eps": norm_eps, **others}
        if divisor != 8:
            args["divisor"] = divisor
        with torch.device("meta"):  # only the shapes matter
            backbone = MobileNetV2(**args)
        assert backbone.last is not None
        if last and (channels := self.outputs(names("last", 0)[0])) != backbone.last.conv.out_channels:
            args["last_channels"] = channels
            with torch.device("meta"):
                backbone = MobileNetV2(**args)
        self.take_layer(backbone.stem, "backbone.stem", names("stem", 0))
        for number, block in enumerate(backbone.blocks):
            assert isinstance(block, InvertedResidual)
            for part in ("expand", "depthwise", "project"):
                if (layer := getattr(block, part)) is not None:
                    self.take_layer(layer, f"backbone.blocks.{number}.{part}", names(part, number))
        if last:
            assert backbone.last is not None
            self.take_layer(backbone.last, "backbone.last", names("last", 0))
        return backbone, args

    def check_all_taken(self, *ignored: str) -> None:
        """Checks that no tensor is left.

        Args:
            ignored: Beginnings of names that may be left.

        Raises:
            WeightsError: One is; it is another or a larger network.
        """
        for name in self.theirs:
            if name not in self._used and not name.endswith(f".{COUNTER}") and not name.startswith(ignored):
                raise WeightsError(f"{self.error_prefix} it also has '{name}'")
