"""Compares the bfloat16 gradients of depthwise 3x3 convolutions on the CPU: torch's own and this package's.

    python benchmarks/depthwise_gradients.py [--rounds 5]

In each round both run in turn. The table shows the best time of each, their ratio, and the largest error of each weight
gradient against float32, relative to the largest value of the gradient (bfloat16 is accurate to 0.004).
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnv2det.models.layers import Conv

# input, stride, dilation
CASES = (
    ((16, 96, 160, 160), 2, 1),
    ((16, 144, 80, 80), 2, 1),
    ((16, 192, 40, 40), 2, 1),
    ((16, 576, 20, 20), 2, 1),
    ((8, 960, 20, 26), 1, 2),
    ((8, 960, 23, 31), 1, 2),
    ((8, 960, 33, 33), 1, 2),
    ((8, 960, 40, 52), 1, 4),
)


def gradients(images: torch.Tensor, weight: torch.Tensor, layer: Conv | None, stride: int, dilation: int):
    """Measures one backward pass of a layer, or without a layer of torch's own convolution.

    Returns:
        Milliseconds, and the gradient of the weight.
    """
    images, weight = images.detach().requires_grad_(), weight.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=images.dtype == torch.bfloat16):
        if layer is not None:
            out = layer.convolve(images, weight, None)
        else:
            out = F.conv2d(images, weight, None, stride, dilation, dilation, groups=len(weight))
    direction = torch.cos(torch.arange(out.numel(), dtype=torch.float32)).view(out.shape).to(out.dtype)
    direction = direction.contiguous(memory_format=torch.channels_last)
    started = time.perf_counter()
    out.backward(direction)
    return (time.perf_counter() - started) * 1e3, weight.grad


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, best of {rounds}")
    print(f"{'input':<18}{'stride':>7}{'dilation':>9}{'torch ms':>10}{'ours ms':>9}{'ratio':>7}{'error':>9}{'ours':>8}")
    for shape, stride, dilation in CASES:
        images = torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)
        layer = Conv(shape[1], shape[1], 3, stride=stride, dilation=dilation, groups=shape[1])
        rows = [
            [gradients(images, layer.weight, chosen, stride, dilation) for chosen in (None, layer)]
            for _ in range(rounds + 1)
        ]
        theirs, mine = (min(row[column][0] for row in rows[1:]) for column in (0, 1))
        exact = gradients(images.float(), layer.weight.bfloat16().float(), None, stride, dilation)[1]
        errors = [float((rows[-1][column][1] - exact).abs().max() / exact.abs().max()) for column in (0, 1)]
        name = "x".join(map(str, shape))
        print(
            f"{name:<18}{stride:>7}{dilation:>9}{theirs:>10.1f}{mine:>9.1f}{theirs / mine:>7.1f}"
            f"{errors[0]:>9.3f}{errors[1]:>8.3f}"
        )


if __name__ == "__main__":
    main()
