"""A trained model as the graph that leaves this project: batch norm folded, uint8 pictures in."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mnv2det.errors import ConfigError
from mnv2det.graphs.ops import fit
from mnv2det.models.head import Head
from mnv2det.models.layers import ConvNorm, JoinPooled, repeat_and_join
from mnv2det.models.model import Model
from mnv2det.ops.nms import Suppress, suppress_greedily
from mnv2det.ops.padding import same_padding


class Folded(nn.Module):
    """A `ConvNorm` in evaluation as one convolution, which can be traced for pictures of any size."""

    def __init__(self, block: ConvNorm) -> None:
        super().__init__()
        conv, norm = block.conv, block.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        self.conv = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
        )
        self.conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
        self.conv.bias = nn.Parameter(norm.bias - norm.running_mean * scale, requires_grad=False)
        self.pads_by_size = conv.pads_by_size
        self.high = block.high

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        if self.pads_by_size:
            axis = (self.conv.kernel_size[0], self.conv.stride[0], self.conv.dilation[0])
            x = nn.functional.pad(x, (*same_padding(x.shape[-1], *axis), *same_padding(x.shape[-2], *axis)))
        return self.activate(self.conv(x))

    def activate(self, x: Tensor) -> Tensor:
        """Clips to the activation's range, in place where that can be."""
        if self.high is None:
            return x
        # torch.export takes many times longer if this is done in place
        return x.clamp(0.0, self.high) if torch.compiler.is_exporting() else x.clamp_(0.0, self.high)


class FoldedJoin(Folded):
    """A `JoinPooled` in evaluation, which multiplies the pooled channels once and not at every position.

    A 1x1 convolution W = [A B] of channels that are alike everywhere and of others needs no map of the former:
    act(W [pooled, rest] + b) = act((A pooled + b) + B rest). A larger one, which sees padding, is computed as it is.
    """

    def __init__(self, block: JoinPooled) -> None:
        super().__init__(block)
        self.splits = self.conv.kernel_size == (1, 1)
        if not self.splits:
            return
        weight, bias = self.conv.weight, self.conv.bias
        outputs, inputs = weight.shape[:2]
        del self.conv
        self.on_pooled = nn.Conv2d(block.pooled, outputs, 1)
        self.on_rest = nn.Conv2d(inputs - block.pooled, outputs, 1, bias=False)
        self.on_pooled.weight = nn.Parameter(weight[:, : block.pooled].clone(), requires_grad=False)
        self.on_rest.weight = nn.Parameter(weight[:, block.pooled :].clone(), requires_grad=False)
        self.on_pooled.bias = bias

    def forward(self, pooled: Tensor, rest: Tensor) -> Tensor:  # type: ignore[override]
        """See `JoinPooled`."""
        if not self.splits:
            return super().forward(repeat_and_join(pooled, rest))
        return self.activate(self.on_pooled(pooled) + self.on_rest(rest))


@torch.no_grad()
def fold(model: Model) -> Model:
    """Copies a model such that every convolution contains its batch norm, without what only training needs."""
    copied = copy.deepcopy(model).eval()
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ConvNorm):
                setattr(parent, name, FoldedJoin(child) if isinstance(child, JoinPooled) else Folded(child))
    for head in _heads(copied).values():
        head.drop_training_parts()
    return copied.requires_grad_(False)


class Raw(nn.Module):
    """The network alone, for pictures that have been brought to the input's size.

    Args:
        model: Any model; it is copied.
        dtype: Type of its weights, and of what it computes with.
    """

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.dtype = fold(model), dtype
        means, stds = self.model.mean, self.model.std
        # one number for all channels, where they are equal: other runtimes are faster with it, in either layout
        self.equal_channels = bool((means == means[:, :1]).all() and (stds == stds[:, :1]).all())
        if self.equal_channels:
            self.model.mean, self.model.std = means[:, :1].clone(), stds[:, :1].clone()
        self.model.backbone.to(dtype)
        self.model.heads.to(dtype)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Computes the tensors of `Head.forward_export`, float32, as ``task.name``.

        Args:
            image: uint8 (B, H, W, 3), RGB, brought to the input's size.
        """
        if self.equal_channels:
            # OpenVINO leaves the permutation out if it is next to the first convolution
            inputs = self.model.normalize(image).permute(0, 3, 1, 2)
        else:
            inputs = self.model.normalize(image.permute(0, 3, 1, 2))
        return self._tensors(inputs)

    def of_planes(self, planes: Tensor) -> dict[str, Tensor]:
        """Computes the same of pixels as planes, float32 (B, 3, H, W) from 0 to 255."""
        return self._tensors(self.model.normalize(planes))

    def _tensors(self, inputs: Tensor) -> dict[str, Tensor]:
        inputs = inputs.to(self.dtype)
        features = self.model.backbone(inputs, self.model.taps)
        return {
            f"{task}.{name}": value.float()
            for task, head in _heads(self.model).items()
            for name, value in head.forward_export(features).items()
        }


class Complete(nn.Module):
    """A model with all that surrounds it: it takes pictures of any size and returns results.

    Args:
        model: Its heads must have `Head.export_outputs`; it is copied.
        suppress: Does the NMS of detectors.

    Raises:
        ConfigError: A head has no complete export.
    """

    def __init__(self, model: Model, suppress: Suppress = suppress_greedily) -> None:
        super().__init__()
        self.raw, self.preprocess, self.suppress = Raw(model), model.preprocess, suppress
        self.constants: dict[str, list[str]] = {}
        for task, head in _heads(model).items():
            if type(head).export_outputs is Head.export_outputs:
                raise ConfigError(f"tasks.{task}: no complete export of a {type(head).__name__}; use --form raw")
            constants = head.export_constants(model.preprocess.input_size)
            self.constants[task] = list(constants)
            for name, value in constants.items():
                self.register_buffer(f"{task}_{name}", value)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Computes what `Head.export_outputs` describes, as ``task.name``.

        Args:
            image: uint8 (B, H, W, 3), RGB, of any size.
        """
        fitted, frame = fit(image, self.preprocess)
        raw = self.raw(fitted)
        outputs: dict[str, Tensor] = {}
        for task, head in _heads(self.raw.model).items():
            prefix = f"{task}."
            tensors = {name.removeprefix(prefix): raw[name] for name in raw if name.startswith(prefix)}
            tensors |= {name: getattr(self, f"{task}_{name}") for name in self.constants[task]}
            results = head.export_outputs(tensors, frame, self.suppress)
            outputs |= {f"{prefix}{name}": value for name, value in results.items()}
        return outputs


def _heads(model: Model) -> Mapping[str, Head]:
    return model.heads  # type: ignore[return-value]
