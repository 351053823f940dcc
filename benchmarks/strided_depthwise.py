"""Gradient of a stride-2 depthwise 3x3 in bfloat16 on the CPU: torch's own against ours.

    python benchmarks/strided_depthwise.py [--rounds 5]

Both run in turn in each round; the table gives the best of each and their ratio.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnv2det.models.layers import Conv

SHAPES = ((16, 96, 160, 160), (16, 144, 80, 80), (16, 192, 40, 40), (16, 576, 20, 20))


def backward_ms(layer: Conv, images: torch.Tensor) -> float:
    """Milliseconds of one backward pass."""
    images = images.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(images)
    direction = torch.ones_like(out)
    started = time.perf_counter()
    out.backward(direction)
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, best of {rounds}")
    print(f"{'input':<22}{'torch ms':>10}{'ours ms':>10}{'ratio':>8}")
    for shape in SHAPES:
        images = torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)
        ours = Conv(shape[1], shape[1], 3, stride=2, groups=shape[1])
        plain = Conv(shape[1], shape[1], 3, stride=2, groups=shape[1])
        plain.spreads = False
        times = [(backward_ms(plain, images), backward_ms(ours, images)) for _ in range(rounds + 1)][1:]
        theirs, mine = (min(column) for column in zip(*times, strict=True))
        print(f"{'x'.join(map(str, shape)):<22}{theirs:>10.1f}{mine:>10.1f}{theirs / mine:>8.1f}")


if __name__ == "__main__":
    main()
