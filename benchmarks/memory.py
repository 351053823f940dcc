"""Measures memory and time of a forward: plain, and with expanded tensors in parts (paper, section 5.1).

    python benchmarks/memory.py [--threads 1] [--rounds 20] [--cpu-time] [--plot FILE] [--json FILE] [--resident]
    python benchmarks/memory.py --onnx      # the exported graph, whole and split, in onnxruntime (Linux)

The networks are the classifier at 224, SSDLite at 320 and Mobile DeepLabv3 at 513 (output stride 16), with batch 1 and
random weights. Memory is the peak of torch's own allocations. --resident also measures by how much a process grows that
computes in one way only, which includes what oneDNN allocates by itself (Linux only). --onnx measures raw exports in
the same manner, in onnxruntime without its arena, so that freed memory is really free.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mnv2det.models  # noqa: F401 - registers
from mnv2det.graphs.graph import fold
from mnv2det.graphs.program import ExportMetadata
from mnv2det.models.build import assemble
from mnv2det.models.model import Model
from mnv2det.runtime.base import write
from mnv2det.runtime.strips.backbone import StripBackbone, cache_size, memory_efficient
from mnv2det.structures import Preprocess
from mnv2det.testing import peak_memory

NETWORKS: dict[str, tuple[str, str, int, int, int]] = {
    # task, head, classes, side of the input, output stride
    "classifier 224": ("cls", "classifier", 1000, 224, 32),
    "SSDLite 320": ("det", "ssdlite", 80, 320, 32),
    "DeepLabv3 513": ("seg", "mobile_deeplab", 21, 513, 16),
}
PARTS = {"t = 1": 1, "t = 2": 2, "t = 3": 3, "t = 5": 5, "t = all": 1 << 20}
BUDGETS = (6, 4, 3, 2.5, 2, 1.5, 1, 0.7)  # MB
PLAIN, FOLDED = "plain eager", "folded, channels_last"
Way = tuple[Model, Tensor]


def build(network: str) -> Way:
    """A model with random weights, and a picture for it."""
    torch.manual_seed(0)
    task, head, classes, side, stride = NETWORKS[network]
    model = assemble(
        {"name": "mobilenet_v2", "args": {"output_stride": stride}},
        {task: {"name": head, "args": {}}},
        classes={task: [str(n) for n in range(classes)]},
        preprocess=Preprocess((side, side)),
    )
    return model.eval(), torch.randn(1, 3, side, side)


def way(network: str, name: str) -> Way:
    """Prepares one way to compute a network: plain, folded, in t parts, or in strips within a budget."""
    model, image = build(network)
    last = image.contiguous(memory_format=torch.channels_last)
    if name == PLAIN:
        return model, image
    if name == FOLDED:
        return fold(model).to(memory_format=torch.channels_last), last
    if name in PARTS:
        return memory_efficient(model, splits=PARTS[name], strips=False), last
    budget = None if name == "strips by cache" else round(float(name.split()[2]) * 1e6)
    return memory_efficient(model, budget), last


def resident(network: str, name: str) -> int:
    """Measures by how many bytes this process grows at most while it computes; large blocks must come from mmap."""
    if name.startswith("onnx"):
        run = onnx_run(network, int(name.split()[1]), torch.get_num_threads())
    else:
        model, image = way(network, name)
        run = functools.partial(model, image)
    for _ in range(3):
        run()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    run()
    return _status("VmHWM") - before


def onnx_run(network: str, splits: int, threads: int) -> Callable[[], object]:
    """Opens a raw export in onnxruntime, whole (``splits`` 1) or with its bottlenecks in parts."""
    import numpy as np
    import onnxruntime

    model, _ = build(network)
    metadata = ExportMetadata(model.header(), "raw")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        write(model, metadata, path, splits=None if splits == 1 else splits)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.enable_cpu_mem_arena, options.enable_mem_pattern = threads, False, False
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    side = NETWORKS[network][3]
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    return lambda: session.run(None, {"image": image})


def onnx_rows(network: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Measures the whole graph and each number of parts."""
    runs = {splits: onnx_run(network, splits, threads) for splits in (1, 2, 3, 5)}
    times: dict[int, list[float]] = {splits: [] for splits in runs}
    for turn in range(rounds + 3):
        for splits, run in runs.items():
            started = time.perf_counter()
            run()
            if turn >= 3:
                times[splits].append((time.perf_counter() - started) * 1e3)
    return [
        {
            "network": network,
            "splits": splits,
            "grown_mb": _in_child(network, f"onnx {splits}", threads) / 1e6,
            "median_ms": statistics.median(each),
        }
        for splits, each in times.items()
    ]


def _status(key: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) * 1024


def _in_child(network: str, name: str, threads: int) -> int:
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
    command = [sys.executable, __file__, "--child", network, name, "--threads", str(threads)]
    return int(subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure(network: str, rounds: int, show_resident: bool, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Measures every way; rounds are interleaved, so that changes of the machine's speed affect all ways alike."""
    names = [PLAIN, FOLDED, *PARTS, "strips by cache", *(f"strips, budget {budget:g} MB" for budget in BUDGETS)]
    rows: list[dict[str, Any]] = []
    runs: list[tuple[list[float], Callable[[], object]]] = []
    for name in names:
        model, image = way(network, name)
        model(image)  # weights are packed
        row: dict[str, Any] = {"network": network, "way": name}
        row["peak_mb"] = peak_memory(lambda run=model, x=image: run(x)) / 1e6
        row["backbone_mb"] = peak_memory(lambda run=model, x=image: run.backbone(x, run.taps)) / 1e6
        if isinstance(model.backbone, StripBackbone):
            plan = model.backbone.plan((image.shape[2], image.shape[3]), model.taps)
            row |= {"planned_mb": plan.peak / 1e6, "over_mb": max(plan.over.values(), default=0) / 1e6}
        if show_resident:
            row["resident_mb"] = _in_child(network, name, torch.get_num_threads()) / 1e6
        rows.append(row)
        runs.append(([], lambda run=model, x=image: run(x)))
    for turn in range(rounds + 2):
        for row, (times, run) in zip(rows, runs, strict=True):
            if turn >= 2 and not (row["way"] == "t = all" and turn % 5 != 2):
                started = clock()
                run()
                times.append((clock() - started) * 1e3)
    for row, (times, _) in zip(rows, runs, strict=True):
        row |= {"median_ms": statistics.median(times), "least_ms": min(times)}
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Formats the rows as a Markdown table."""
    more = "resident_mb" in rows[0]
    lines = [
        f"| network | way | peak MB | backbone alone | {'process grew by |' if more else ''} x lower | ms | least |"
        " x plain | x folded |",
        "| --- | --- |" + " ---: |" * (8 if more else 7),
    ]
    for row in rows:
        same = {other["way"]: other for other in rows if other["network"] == row["network"]}
        plain, folded = same[PLAIN], same[FOLDED]
        grown = f" {row['resident_mb']:.1f} |" if more else ""
        over = "*" if row.get("over_mb") else ""
        lines.append(
            f"| {row['network']} | {row['way']}{over} | {row['peak_mb']:.2f} | {row['backbone_mb']:.2f} |{grown}"
            f" {plain['peak_mb'] / row['peak_mb']:.1f} | {row['median_ms']:.1f} | {row['least_ms']:.1f} |"
            f" {row['median_ms'] / plain['median_ms']:.2f} | {row['median_ms'] / folded['median_ms']:.2f} |"
        )
    return "\n".join(lines)


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draws memory against time, one panel per network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), dpi=120, layout="constrained")
    for place, network in enumerate(NETWORKS, 1):
        axes = figure.add_subplot(1, 3, place)
        own = [row for row in rows if row["network"] == network]
        kinds = {
            "plain": [row for row in own if row["way"] in (PLAIN, FOLDED)],
            "t parts of the channels (the paper's)": [row for row in own if row["way"].startswith("t =")],
            "strips within a budget": [row for row in own if row["way"].startswith("strips")],
        }
        for number, (kind, shown) in enumerate(kinds.items()):
            shown = sorted(shown, key=lambda row: row["peak_mb"])
            axes.plot(
                [row["peak_mb"] for row in shown],
                [row["median_ms"] for row in shown],
                f"{'sdo'[number]}{' ' if number == 0 else '-'}",
                color=f"C{number}",
                label=kind,
            )
            for row in shown:
                text = row["way"].removeprefix("strips, budget ").removeprefix("strips ")
                axes.annotate(text, (row["peak_mb"], row["median_ms"]), fontsize=6, xytext=(3, 3),
                              textcoords="offset points")  # fmt: skip
        axes.axhline(next(row["median_ms"] for row in own if row["way"] == PLAIN), color="gray", lw=0.7, ls=":")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(network)
        axes.set_xlabel("peak activation memory, MB (measured)")
        axes.set_ylabel("median ms")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    figure.savefig(path)


def print_onnx(rows: list[dict[str, Any]]) -> None:
    """Prints the rows as a Markdown table."""
    print(
        "| network | parts | process grew by MB | x lower | ms | x whole |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    whole = {row["network"]: row for row in rows if row["splits"] == 1}
    for row in rows:
        one = whole[row["network"]]
        print(
            f"| {row['network']} | {row['splits']} | {row['grown_mb']:.2f} | {one['grown_mb'] / row['grown_mb']:.2f} |"
            f" {row['median_ms']:.1f} | {row['median_ms'] / one['median_ms']:.2f} |"
        )


@torch.no_grad()
def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS], metavar="NAME")
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure the processor time of one thread, for a busy machine"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw memory against time (needs matplotlib)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all rows to this file")
    parser.add_argument("--resident", action="store_true", help="also measure the growth of a process (Linux)")
    parser.add_argument("--onnx", action="store_true", help="measure onnxruntime, whole and split graphs")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.child:
        print(resident(*given.child))
        return
    if given.cpu_time and given.threads != 1:
        parser.error("--cpu-time counts one thread")
    if given.onnx:
        print_onnx([row for network in given.networks for row in onnx_rows(network, given.threads, given.rounds)])
        return
    clock = time.thread_time if given.cpu_time else time.perf_counter
    rows = [row for network in given.networks for row in measure(network, given.rounds, given.resident, clock)]
    print(f"torch {torch.__version__}, {given.threads} threads, cache {cache_size() / 2**20:g} MiB, seed 0")
    print(table(rows))
    print("* the budget cannot be kept; the least possible")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    if given.plot:
        draw(given.plot, rows)


if __name__ == "__main__":
    main()
