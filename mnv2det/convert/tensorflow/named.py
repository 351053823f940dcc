"""Takes the layers of one of our networks out of variables by their names in TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnv2det.convert.tensorflow.folded import OFFSET, SCALE
from mnv2det.convert.tensorflow.variables import Variables
from mnv2det.errors import WeightsError, near
from mnv2det.models.backbone import Backbone
from mnv2det.models.layers import Conv, ConvNorm, InvertedResidual, Separable
from mnv2det.models.mobilenet_v2 import MobileNetV2, width_of
from mnv2det.models.variants.mobilenet_v1 import MobileNetV1

NORM_EPS = 1e-3
MOST_CHANNELS = 2**16
STEM_CHANNELS = 32  # of MobileNetV1 at width 1
NORMS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
WEIGHTS = ("weights", "depthwise_weights")


class NamedLayers:
    """The layers that were taken so far.

    Args:
        variables: From a reader.
        where: Name of the file, for messages.
        network: What it should be, for messages.

    Attributes:
        tensors: By their names in a weight file.
        used: Names in TensorFlow that were asked for.
    """

    def __init__(self, variables: Variables, *, where: str, network: str) -> None:
        self.arrays = variables.arrays
        self.variables = variables
        self.error_prefix = f"{where}: {variables.format}, but not a {network} that can be read:"
        self.tensors: dict[str, Tensor] = {}
        self.used: set[str] = set()

    def outputs(self, name: str) -> int:
        """Output channels of a convolution.

        Args:
            name: Of its weights in TensorFlow.

        Raises:
            WeightsError: They are missing, or no convolution's.
        """
        shape = self._stored(name).shape
        if len(shape) != 4 or not 0 < shape[-1] <= MOST_CHANNELS:
            raise WeightsError(f"{self.error_prefix} '{name}' is {list(shape)}, expected a convolution's weights")
        return int(shape[-1])

    def kernel(self, name: str) -> int:
        """Side of a square convolution; argument and errors as those of `outputs`."""
        self.outputs(name)
        return int(self._stored(name).shape[0])

    def array(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A variable as float32.

        Args:
            name: In TensorFlow.
            shape: What is expected.

        Raises:
            WeightsError: It is missing, has another shape, or values that are not finite.
        """
        array = self._stored(name)
        if array.shape != shape:
            raise WeightsError(f"{self.error_prefix} '{name}' is {list(array.shape)}, expected {list(shape)}")
        values: NDArray[np.float32] = array.astype(np.float32)
        if not np.isfinite(values).all():
            raise WeightsError(f"{self.error_prefix} '{name}' has values that are not finite")
        return values

    def _stored(self, name: str) -> NDArray[np.generic]:
        self.used.add(name)
        if name not in self.arrays:
            raise WeightsError(f"{self.error_prefix} no '{name}'{self._near(name)}")
        return self.arrays[name]

    def _near(self, name: str) -> str:
        if any("quant" in other.lower() for other in self.arrays):
            return "; it was quantised: import the graph from before that"
        last = f"/{name.rpartition('/')[2]}"
        return near(name, [other for other in self.arrays if other.endswith(last)][:500])

    def take_layer(self, layer: ConvNorm, ours: str, theirs: str) -> None:
        """Takes a convolution with its batch norm, which may have been folded away but for an offset.

        Args:
            layer: The expected layer.
            ours: Its name in a weight file.
            theirs: Its scope in TensorFlow.
        """
        self._take_weight(layer.conv, f"{ours}.conv", theirs)
        if (offset := self._folded_offset(theirs)) is not None:
            self._take_folded(layer, ours, theirs, offset)
        else:
            self._take_norm(layer, ours, theirs)
        self.tensors[f"{ours}.norm.num_batches_tracked"] = torch.tensor(0)

    def _folded_offset(self, theirs: str) -> str | None:
        """The name of the offset that is all that is left of a layer's batch norm; None where that is whole."""
        if f"{theirs}/{OFFSET}" in self.arrays:
            return f"{theirs}/{OFFSET}"
        whole = any(f"{theirs}/BatchNorm/{name}" in self.arrays for name in NORMS.values())
        return f"{theirs}/biases" if not whole and f"{theirs}/biases" in self.arrays else None

    def _take_folded(self, layer: ConvNorm, ours: str, theirs: str, offset: str) -> None:
        """Takes a folded norm as one that only adds the offset."""
        count = (layer.conv.out_channels,)
        if f"{theirs}/{SCALE}" in self.arrays:
            scale = torch.from_numpy(self.array(f"{theirs}/{SCALE}", count))
            self.tensors[f"{ours}.conv.weight"] *= scale[:, None, None, None]
        ones = torch.ones(count)
        self.tensors[f"{ours}.norm.weight"] = (ones.double() + layer.norm.eps).sqrt().float()
        self.tensors[f"{ours}.norm.bias"] = torch.from_numpy(self.array(offset, count).copy())
        self.tensors[f"{ours}.norm.running_mean"] = torch.zeros(count)
        self.tensors[f"{ours}.norm.running_var"] = ones
        self.variables.folded = True

    def _take_norm(self, layer: ConvNorm, ours: str, theirs: str) -> None:
        count = (layer.conv.out_channels,)
        for name, their_name in NORMS.items():
            scope = f"{theirs}/BatchNorm/{their_name}"
            if name == "weight" and scope not in self.arrays and f"{theirs}/BatchNorm/beta" in self.arrays:
                values = np.ones(count, np.float32)  # norms without a scale
            else:
                values = self.array(scope, count)
            self.tensors[f"{ours}.norm.{name}"] = torch.from_numpy(values.copy())
        if (self.tensors[f"{ours}.norm.running_var"] < 0).any():
            raise WeightsError(f"{self.error_prefix} '{theirs}/BatchNorm/moving_variance' has values below 0")

    def take_linear(self, conv: Conv, ours: str, theirs: str) -> None:
        """Takes a convolution with biases; arguments as those of `take_layer`."""
        self._take_weight(conv, ours, theirs)
        self.tensors[f"{ours}.bias"] = torch.from_numpy(self.array(f"{theirs}/biases", (conv.out_channels,)).copy())

    def _take_weight(self, conv: nn.Conv2d, ours: str, theirs: str) -> None:
        outputs, inputs, *kernel = conv.weight.shape
        if conv.groups > 1:
            weight = self.array(f"{theirs}/depthwise_weights", (*kernel, outputs, 1)).transpose(2, 3, 0, 1)
        else:
            weight = self.array(f"{theirs}/weights", (*kernel, inputs, outputs)).transpose(3, 2, 0, 1)
        self.tensors[f"{ours}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))

    def take_mobilenet_v2(self, scope: str, *, last: bool = True, **others: Any) -> tuple[MobileNetV2, dict[str, Any]]:
        """Takes a MobileNetV2 of whatever width it is.

        Args:
            scope: Of the network: ``FeatureExtractor/MobilenetV2``.
            last: Whether it has the last convolution.
            others: Further arguments of `MobileNetV2`.

        Returns:
            The backbone, on torch's device ``meta``, and its arguments.

        Raises:
            WeightsError: Its channels are those of no width, or a layer differs.
        """

        def block(number: int) -> str:
            return f"{scope}/expanded_conv" + (f"_{number}" if number else "")

        outputs = [self.outputs(f"{block(number)}/project/weights") for number in range(17)]
        width, divisor = width_of(self.outputs(f"{scope}/Conv/weights"), outputs, where=self.error_prefix)
        args: dict[str, Any] = {"width": width, "padding": "same", "norm_eps": NORM_EPS, **others}
        if divisor != 8:
            args["divisor"] = divisor
        with torch.device("meta"):  # only the shapes matter
            backbone = MobileNetV2(**args)
        assert backbone.last is not None
        if last and (channels := self.outputs(f"{scope}/Conv_1/weights")) != backbone.last.conv.out_channels:
            args["last_channels"] = channels
            with torch.device("meta"):
                backbone = MobileNetV2(**args)
        self.take_layer(backbone.stem, "backbone.stem", f"{scope}/Conv")
        for number, layers in enumerate(backbone.blocks):
            assert isinstance(layers, InvertedResidual)
            for name in ("expand", "depthwise", "project"):
                if (layer := getattr(layers, name)) is not None:
                    self.take_layer(layer, f"backbone.blocks.{number}.{name}", f"{block(number)}/{name}")
        if last:
            assert backbone.last is not None
            self.take_layer(backbone.last, "backbone.last", f"{scope}/Conv_1")
        return backbone, args

    def take_mobilenet_v1(self, scope: str) -> tuple[MobileNetV1, dict[str, Any]]:
        """Takes a MobileNetV1 of whatever width it is.

        Args:
            scope: Of the network: ``FeatureExtractor/MobilenetV1``.

        Returns:
            The backbone, on torch's device ``meta``, and its arguments.

        Raises:
            WeightsError: A layer differs.
        """
        args: dict[str, Any] = {"width": self.outputs(f"{scope}/Conv2d_0/weights") / STEM_CHANNELS}
        args |= {"padding": "same", "norm_eps": NORM_EPS}
        with torch.device("meta"):  # only the shapes matter
            backbone = MobileNetV1(**args)
        self.take_layer(backbone.stem, "backbone.stem", f"{scope}/Conv2d_0")
        for number, layers in enumerate(backbone.blocks):
            assert isinstance(layers, Separable)
            for name in ("depthwise", "pointwise"):
                layer = getattr(layers, name)
                self.take_layer(layer, f"backbone.blocks.{number}.{name}", f"{scope}/Conv2d_{number + 1}_{name}")
        return backbone, args

    def take_backbone(self, scope: str, **others: Any) -> tuple[Backbone, dict[str, Any], str]:
        """Takes the backbone that a scope is named after.

        Args:
            scope: It ends in ``MobilenetV1`` or ``MobilenetV2``.
            others: For `take_mobilenet_v2`.

        Returns:
            The backbone, its arguments and its registered name.
        """
        if scope.endswith("V1"):
            return *self.take_mobilenet_v1(scope), "mobilenet_v1"
        return *self.take_mobilenet_v2(scope, **others), "mobilenet_v2"

    def names(self, pattern: str) -> list[re.Match[str]]:
        """Matches of all names that fit a pattern completely, in the order of the file."""
        return [match for match in map(re.compile(pattern).fullmatch, self.arrays) if match]

    def check_all_taken(self, scopes: Iterable[str]) -> None:
        """Checks that no layer below some scopes is left.

        Raises:
            WeightsError: One is; it is a larger network.
        """
        beginnings = tuple(f"{scope}/" for scope in scopes)
        for name in self.arrays:
            if name.startswith(beginnings) and name.rpartition("/")[2] in WEIGHTS and name not in self.used:
                raise WeightsError(f"{self.error_prefix} also has '{name}', for which it has no place")
