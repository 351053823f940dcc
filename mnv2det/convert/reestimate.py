"""Makes an imported network trainable: estimates batch-norm statistics on real images, keeping the function."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mnv2det.errors import WeightsError
from mnv2det.models.layers import ConvNorm
from mnv2det.models.weight_file import Header


class ChannelStatistics:
    """Mean and variance per channel, accumulated in float64 over batches (Chan et al., 1979).

    Attributes:
        count: Values per channel so far.
        mean: float64 (C,).
        squares: Sum of squared deviations from the mean, float64 (C,).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, batch: Tensor) -> None:
        """Adds a (B, C, H, W) batch."""
        count = batch.numel() // batch.shape[1]
        variance, mean = torch.var_mean(batch.detach().double(), dim=(0, 2, 3), correction=0)
        shift, total = mean - self.mean, self.count + count
        self.squares = self.squares + variance * count + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Variance of all values, without Bessel's correction: what train mode normalises with."""
        return self.squares / self.count


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Tensor], *, header: Header | None = None) -> int:
    """Gives every batch norm the statistics of its actual input and keeps what the model computes.

    Where batch norm was folded away, the norms are the identity, so train mode, which normalises by the batch, would
    destroy the function. Here each norm gets the mean and variance of its input, and a weight and bias that undo them:
    eval mode computes the same as before and train mode agrees with it. As no norm's output changes, one pass over the
    images serves all of them.

    Args:
        model: Changed in place; its mode is kept.
        batches: float32 (B, 3, H, W), normalised as the model expects; B may vary.
        header: Its ``trainable`` is set.

    Returns:
        The number of images.

    Raises:
        WeightsError: There are no images, they do not reach a norm, or its input is not finite. The model is
            unchanged then.
    """
    norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    statistics = {name: ChannelStatistics() for name in norms}
    modes = {module: module.training for module in model.modules()}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, measured=statistics[name]: measured.add(inputs[0]))
        for name, layer in norms.items()
    ]
    blocks = [module for module in model.modules() if isinstance(module, ConvNorm)]
    images = 0
    try:
        model.eval()
        for block in blocks:
            block.fold = False
        for batch in batches:
            model(batch)
            images += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for block in blocks:
            block.fold = True
        for module, mode in modes.items():
            module.training = mode
    if not images:
        raise WeightsError("re-estimating batch norm needs at least one image")
    for name, measured in statistics.items():
        if not measured.count:
            raise WeightsError(f"re-estimating batch norm: the images do not reach layer '{name}'")
        if not (measured.mean.isfinite().all() and measured.squares.isfinite().all()):
            raise WeightsError(f"re-estimating batch norm: the input of layer '{name}' is not finite")
    for name, layer in norms.items():
        _set_statistics(layer, statistics[name])
    if header is not None:
        header.trainable = True
    return images


def _set_statistics(norm: nn.BatchNorm2d, statistics: ChannelStatistics) -> None:
    """Gives a norm other statistics, and the weight and bias with which it computes the same as before."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    slope = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    offset = norm.bias.double() - norm.running_mean.double() * slope
    norm.running_mean.copy_(statistics.mean)
    norm.running_var.copy_(statistics.variance)
    # from the statistics as they are stored, so that rounding them cancels out
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    norm.weight.copy_(slope * (variance + norm.eps).sqrt())
    norm.bias.copy_(offset + slope * mean)
