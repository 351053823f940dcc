"""The verbs that train and measure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mnv2det.cli.common import add_device, add_json, add_overrides, new_verb, print_metrics, speaks, write_json_file
from mnv2det.config import load_config, to_yaml
from mnv2det.errors import ConfigError, Mnv2detError

STOPPING = """Ctrl-C, SIGTERM and SIGUSR1 finish the step, save and exit with 130; once more, a second later, ends it at
once. Other exit codes: 0 done, 1 failed (a non-finite loss, a full disk, a dead process), 2 your mistake."""


def add(verbs: Any) -> None:
    """Adds them to the command line."""
    verb = new_verb(verbs, "train", _train, "train a model into a run folder, or resume one")
    verb.epilog = STOPPING
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.add_argument("config", nargs="?", help="a YAML of configs/ (not with --resume)")
    add_overrides(verb)
    verb.add_argument("--out", metavar="DIR", help="run folder (default: runs/NAME_OF_CONFIG)")
    verb.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with this run folder from its last checkpoint; of key=value only those that say where and how"
        " often (data.root, data.workers, train.log_every, train.checkpoint_every, train.keep_checkpoints) go with it",
    )
    verb.add_argument("--allow-changes", action="store_true", help="with --resume: also keys that change the result")
    add_device(verb)
    add_json(verb)

    verb = new_verb(verbs, "eval", _eval, "measure trained weights, or a file of detections")
    verb.add_argument("source", nargs="?", metavar="CONFIG_OR_RUN", help="a run folder, or a YAML with model.weights")
    add_overrides(verb)
    verb.add_argument("--weights", metavar="FILE", help="measure these weights instead of the run's best")
    verb.add_argument("--ground-truth", metavar="GT.json", help="COCO-style annotations; with --detections, no model")
    verb.add_argument("--detections", metavar="DT.json", help="COCO-style results")
    verb.add_argument(
        "--protocol", choices=("coco", "voc07", "voc10"), default="coco", help="for files (default: coco)"
    )
    verb.add_argument("--iou", type=float, help="IoU of a match, for the VOC protocols (default: 0.5)")
    add_device(verb)
    add_json(verb)

    verb = new_verb(verbs, "config", _config, "print a config with its bases and overrides merged")
    verb.add_argument("config", help="a YAML of configs/")
    add_overrides(verb)
    verb.add_argument("--check", action="store_true", help="also check every component's arguments (loads torch)")

    verb = new_verb(verbs, "grid", _grid, "picture of predictions beside ground truth on a run's validation set")
    verb.add_argument("source", metavar="RUN", help="a run folder")
    add_overrides(verb)
    verb.add_argument("--out", metavar="FILE", help="the picture (default: RUN/predictions.png)")
    verb.add_argument("--count", type=int, default=12, metavar="N", help="images shown (default: %(default)s)")
    verb.add_argument(
        "--threshold", type=float, default=0.4, metavar="T", help="least score shown (default: %(default)s)"
    )
    add_device(verb)


def _train(given: argparse.Namespace) -> int:
    if given.resume and given.config and "=" in given.config:  # argparse cannot know it for an override
        given.overrides, given.config = [given.config, *given.overrides], None
    if given.resume and (given.config or given.out):
        raise ConfigError("--resume RUN goes alone: the run folder holds its config")
    if not given.resume and not given.config:
        raise ConfigError("train needs a config, or --resume RUN")
    if given.resume:
        from mnv2det.engine.resume import resume_config

        config, folder = resume_config(Path(given.resume), given.overrides), Path(given.resume)
    else:
        config = load_config(given.config, given.overrides)
        folder = Path(given.out or Path("runs") / Path(given.config).stem)
    from mnv2det.engine.trainer import train

    try:
        summary = train(
            config, folder, resume=bool(given.resume), allow_changes=given.allow_changes, device=given.device
        )
    except Mnv2detError as error:
        if error.silent:  # torchrun's first process prints it
            return error.exit_code
        raise
    if not speaks():
        return 0
    print_metrics(summary["metrics"])
    print(f"{summary['steps']} steps, {summary['seconds'] / 60:.1f} minutes of training; run folder: {folder}")
    write_json_file(given, summary)
    return 0


def _eval(given: argparse.Namespace) -> int:
    if given.ground_truth or given.detections:
        if not (given.ground_truth and given.detections) or given.source or given.overrides or given.weights:
            raise ConfigError("--ground-truth and --detections go together, and without a config, run or weights")
        from mnv2det.commands.evaluate_files import evaluate_files

        metrics = evaluate_files(given.ground_truth, given.detections, protocol=given.protocol, iou=given.iou)
        print_metrics(metrics)
        write_json_file(given, {"metrics": metrics})
        return 0
    if not given.source:
        raise ConfigError("eval needs a config or run, or --ground-truth and --detections")
    if given.iou is not None or given.protocol != "coco":
        raise ConfigError("--protocol and --iou are for --ground-truth and --detections; a config names its evaluator")
    from mnv2det.engine.evaluate import evaluate_source

    summary = evaluate_source(given.source, given.overrides, weights=given.weights, device=given.device)
    if not speaks():
        return 0
    for problem in summary["problems"]:
        print(f"left out: {problem}", file=sys.stderr)
    print_metrics(summary["metrics"])
    height, width = summary["input_size"]
    print(f"{summary['images']} images seen at {height}x{width}, weights {summary['weights']}")
    write_json_file(given, summary)
    return 0


def _config(given: argparse.Namespace) -> int:
    config = load_config(given.config, given.overrides)
    if given.check:
        from mnv2det.engine.build import check

        check(config)
    print(to_yaml(config), end="")
    return 0


def _grid(given: argparse.Namespace) -> int:
    if given.count < 1 or not 0 <= given.threshold <= 1:
        raise ConfigError("--count must be at least 1, --threshold from 0 to 1")
    from mnv2det.commands.grid import prediction_grid

    path = prediction_grid(
        given.source,
        given.overrides,
        output=given.out,
        count=given.count,
        threshold=given.threshold,
        device=given.device,
    )
    print(f"predictions beside ground truth: {path}")
    return 0
