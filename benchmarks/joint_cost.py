"""Compares the cost of one joint model with that of a detector and a segmenter: multiply-adds and time.

    python benchmarks/joint_cost.py [--size 320 320] [--rounds 20]

The detector is SSDLite (80 classes) at output stride 32, the segmenter Mobile DeepLabv3 (21 classes) at 16. The joint
model has both heads on one backbone at 16. The three run in turn in each round; the table shows medians.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mnv2det.models  # noqa: F401 - registers
from mnv2det.models.build import assemble
from mnv2det.models.model import Model
from mnv2det.structures import Preprocess

CLASSES = {"det": [str(n) for n in range(80)], "seg": [str(n) for n in range(21)]}
KINDS = {"det": "ssdlite", "seg": "mobile_deeplab"}


def build(tasks: tuple[str, ...], size: tuple[int, int]) -> Model:
    """Builds a model with random weights for these tasks."""
    backbone = {"name": "mobilenet_v2", "args": {"output_stride": 16 if "seg" in tasks else 32}}
    heads = {task: {"name": KINDS[task], "args": {}} for task in tasks}
    model = assemble(backbone, heads, classes={task: CLASSES[task] for task in tasks}, preprocess=Preprocess(size))
    return model.eval().to(memory_format=torch.channels_last)


@torch.no_grad()
def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(320, 320), metavar=("H", "W"), help="input size")
    parser.add_argument("--rounds", type=int, default=20, help="(default: %(default)s)")
    given = parser.parse_args()
    torch.manual_seed(0)
    size = (given.size[0], given.size[1])
    images = torch.randn(1, 3, *size).contiguous(memory_format=torch.channels_last)
    models = {name: build(tasks, size) for name, tasks in
              (("detector", ("det",)), ("segmenter", ("seg",)), ("joint", ("det", "seg")))}  # fmt: skip
    work, times = {}, {name: [] for name in models}
    for name, model in models.items():
        with FlopCounterMode(display=False) as counter:
            model(images)
        work[name] = counter.get_total_flops() / 2e9
    for turn in range(given.rounds + 3):
        for name, model in models.items():
            started = time.perf_counter()
            model(images)
            if turn >= 3:
                times[name].append((time.perf_counter() - started) * 1e3)
    middle = {name: statistics.median(column) for name, column in times.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch 1 at {size[0]}x{size[1]}")
    print(f"{'model':<12}{'multiply-adds, B':>18}{'median ms':>11}")
    for name in models:
        print(f"{name:<12}{work[name]:>18.3f}{middle[name]:>11.1f}")
    both = work["detector"] + work["segmenter"], middle["detector"] + middle["segmenter"]
    share, duration = work["joint"] / both[0], middle["joint"] / both[1]
    print(f"joint against both: {share:.3f} of the multiply-adds, {duration:.3f} of the time")


if __name__ == "__main__":
    main()
