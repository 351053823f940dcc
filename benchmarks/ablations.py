"""Trains the paper's ablations of the bottleneck (Figure 6 and more) over several seeds on a CPU.

    python datasets/patches.py configs/deeplabv3_camvid.yaml data.root=DATA --out DATA/patches
    python benchmarks/ablations.py configs/mobilenetv2_patches.yaml data.root=DATA --seeds 5 --plot figure6.png

Every variant is the given config with some overrides of the backbone. Every seed draws other initial weights and
another order of the pictures. The run folders are below --out. Finished runs are not trained again and stopped ones are
resumed, so the script can be stopped and started again at any time, also with more seeds. The table shows, for each
variant, the mean of --metric over the seeds with its standard deviation, and the mean difference to the published block
over the seeds that both were trained with, with the standard error of that mean.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import mnv2det.models  # noqa: F401 - registers
from mnv2det.config import Config, load_config
from mnv2det.errors import Mnv2detError
from mnv2det.models.build import assemble
from mnv2det.models.counting import multiply_adds, parameters
from mnv2det.structures import Preprocess

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = "published"
BACKBONE = "model.backbone."
# name: its description, overrides of the backbone
VARIANTS: dict[str, tuple[str, list[str]]] = {
    PUBLISHED: ("linear bottleneck, shortcut between bottlenecks, t = 6, ReLU6", []),
    "relu6-bottleneck": ("ReLU6 in the bottleneck", ["args.bottleneck_act=relu6"]),
    "shortcut-expansion": ("shortcut between expansions", ["args.shortcut=expansion"]),
    "shortcut-none": ("no shortcut", ["args.shortcut=none"]),
    "expansion-3": ("t = 3", ["args.expansion=3"]),
    "relu": ("ReLU for ReLU6", ["args.act=relu"]),
    "act-none": ("no activation at all", ["args.act=none"]),
    "residual": ("residual bottlenecks, not inverted", ["name=mobilenet_residual"]),
    "mobilenet-v1": ("MobileNetV1", ["name=mobilenet_v1"]),
}
# the two panels of the paper's Figure 6: label of each variant
PANELS = {
    "non-linearity in the bottleneck": {PUBLISHED: "linear", "relu6-bottleneck": "ReLU6"},
    "shortcut": {
        PUBLISHED: "between bottlenecks",
        "shortcut-expansion": "between expansions",
        "shortcut-none": "none",
    },
}


def overrides_of(variant: str, config: Config) -> list[str]:
    """The overrides that turn a config into this variant."""
    changes = [BACKBONE + change for change in VARIANTS[variant][1]]
    if any(change.startswith(f"{BACKBONE}name=") for change in changes):
        # another component starts without arguments
        given = config.model.backbone.args
        changes += [f"{BACKBONE}args.{key}={given[key]}" for key in ("width", "norm_momentum") if key in given]
    return changes


def curve(folder: Path, metric: str) -> dict[int, float]:
    """A metric by step, of all evaluations that a run has logged so far."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return {}
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row[metric] for row in rows if row.get("kind") == "eval" and metric in row}


def train(config: str, folder: Path, overrides: list[str]) -> None:
    """Trains a run, or resumes it if it has a checkpoint."""
    command = [sys.executable, str(ROOT / "tools/train.py")]
    if (folder / "last.pt").exists():
        command += ["--resume", str(folder)]
    else:
        command += [config, *overrides, "--out", str(folder)]
    with open(folder.with_suffix(".log"), "a") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        tail = folder.with_suffix(".log").read_text(errors="replace").strip().splitlines()[-1:]
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}: {''.join(tail)}")


def costs(config: Config, classes: int) -> tuple[float, float]:
    """Counts the millions of parameters and of multiply-adds of a config's model."""
    with torch.device("meta"):
        model = assemble(
            {"name": config.model.backbone.name, "args": dict(config.model.backbone.args)},
            {task: {"name": part.head.name, "args": dict(part.head.args)} for task, part in config.tasks.items()},
            classes={task: [str(n) for n in range(classes)] for task in config.tasks},
            preprocess=Preprocess(config.model.input_size),
        ).eval()
        images = torch.zeros(1, 3, *config.model.input_size)
    return parameters(model) / 1e6, multiply_adds(model, images) / 1e6


def main() -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML with a MobileNetV2 backbone")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), metavar="DIR", help="for the run folders")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="train seeds 0 to N-1 (default: %(default)s)")
    parser.add_argument("--variants", default=",".join(VARIANTS), metavar="LIST", help="(default: %(default)s)")
    parser.add_argument("--metric", default="cls/top1", help="the metric to compare (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw Figure 6 (needs matplotlib)")
    parser.add_argument("--json", metavar="FILE", help="also write the table and all curves to this file")
    given = parser.parse_args()
    wanted = [name.strip() for name in given.variants.split(",")]
    if unknown := [name for name in wanted if name not in VARIANTS]:
        parser.error(f"no variant '{unknown[0]}': expected some of {', '.join(VARIANTS)}")
    try:
        base = load_config(given.config, given.overrides)
        changes = {name: [*given.overrides, *overrides_of(name, base)] for name in wanted}
        configs = {name: load_config(given.config, changes[name]) for name in wanted}
    except Mnv2detError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    # one seed of all variants after the other, so that a first table of all variants exists early
    grid = [(seed, name) for seed in range(given.seeds) for name in wanted]
    for number, (seed, name) in enumerate(grid, 1):
        folder = given.out / f"{name}-{seed}"
        if configs[name].train.steps not in curve(folder, given.metric):
            train(given.config, folder, [*changes[name], f"seed={seed}"])
        found = curve(folder, given.metric)[configs[name].train.steps]
        minutes = (time.monotonic() - started) / 60
        print(f"{number} of {len(grid)}: {name}, seed {seed}: {found:.4f} ({minutes:.1f} minutes)", file=sys.stderr)
    curves = {
        name: [curve(given.out / f"{name}-{seed}", given.metric) for seed in range(given.seeds)] for name in wanted
    }
    report(curves, configs, given)


def report(curves: dict[str, list[dict[int, float]]], configs: dict[str, Config], given: argparse.Namespace) -> None:
    """Prints the table, and writes the JSON file and the plot if they are asked for."""
    last = {name: [each[configs[name].train.steps] for each in found] for name, found in curves.items()}
    rows = []
    print(f"\n{given.metric} after {configs[next(iter(configs))].train.steps} steps, {given.seeds} seeds")
    print(f"{'variant':20}{'mean':>8}{'sd':>8}{'to published':>22}{'params M':>10}{'MAdds M':>9}  what")
    for name, values in last.items():
        beside = [ours - theirs for ours, theirs in zip(values, last.get(PUBLISHED, values), strict=True)]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        error = statistics.stdev(beside) / len(beside) ** 0.5 if len(beside) > 1 else 0.0
        size, work = costs(configs[name], 11)
        row = {
            "variant": name,
            "what": VARIANTS[name][0],
            "values": values,
            "mean": statistics.mean(values),
            "sd": spread,
            "difference": statistics.mean(beside),
            "difference_error": error,
            "parameters_m": size,
            "multiply_adds_m": work,
        }
        rows.append(row)
        against = f"{row['difference']:+.4f} +- {error:.4f}" if PUBLISHED in last and name != PUBLISHED else ""
        print(f"{name:20}{row['mean']:8.4f}{spread:8.4f}{against:>22}{size:10.3f}{work:9.2f}  {row['what']}")
    if given.json:
        Path(given.json).write_text(json.dumps({"rows": rows, "curves": curves}, indent=2))
    if given.plot:
        from mnv2det.report.plots import draw_ablations

        panels = {
            title: {label: curves[name] for name, label in panel.items() if name in curves}
            for title, panel in PANELS.items()
        }
        draw_ablations(given.plot, panels, metric=given.metric)


if __name__ == "__main__":
    main()
