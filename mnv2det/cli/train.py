"""The verbs that train and measure."""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path
from typing import Any

from mnv2det.cli.common import (
    add_device,
    add_json,
    add_overrides,
    is_main_process,
    new_verb,
    print_metrics,
    write_json_file,
)
from mnv2det.commands.train import run_name, train_run
from mnv2det.config import load_config, to_yaml
from mnv2det.errors import ConfigError, Mnv2detError
from mnv2det.io import RunFolder, config_file

STOPPING = """Ctrl-C, SIGTERM and SIGUSR1 finish the step, save and exit with 130; once more, a second later, ends it at
once. Other exit codes: 0 done, 1 failed (a non-finite loss, a full disk, a dead process), 2 your mistake."""


def add(verbs: Any) -> None:
    """Adds them to the command line."""
    verb = new_verb(
        verbs,
        "train",
        _train,
        "train a model into a run folder, or resume one",
        examples="""
            mnv2det train data/photos
            mnv2det train configs/ssdlite_bccd.yaml data.root=/data train.steps=500 --out runs/cells
            mnv2det train --resume runs/cells""",
        codes=STOPPING,
    )
    verb.add_argument(
        "config",
        nargs="?",
        help="a YAML, the name of one of configs/, or a folder that data import wrote (not with --resume)",
    )
    add_overrides(verb)
    verb.add_argument("--out", metavar="DIR", help="run folder (default: runs/NAME of the config or imported folder)")
    verb.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with this run folder from its last checkpoint; of key=value only those that say where and how"
        " often (data.root, data.workers, train.log_every, train.log_to, train.checkpoint_every,"
        " train.keep_checkpoints) go with it",
    )
    verb.add_argument("--allow-changes", action="store_true", help="with --resume: also keys that change the result")
    add_device(verb)
    add_json(verb)

    verb = new_verb(
        verbs,
        "eval",
        _eval,
        "measure trained weights, or a file of detections",
        examples="""
            mnv2det eval runs/photos --json metrics.json
            mnv2det eval configs/ssdlite_coco.yaml data.root=/data model.weights=coco
            mnv2det eval --ground-truth instances.json --detections results.json --protocol voc10""",
    )
    verb.add_argument("source", nargs="?", metavar="CONFIG_OR_RUN", help="a run folder, or a YAML with model.weights")
    add_overrides(verb)
    verb.add_argument("--weights", metavar="FILE", help="measure these weights instead of the run's best")
    verb.add_argument("--ground-truth", metavar="GT.json", help="COCO-style annotations; with --detections, no model")
    verb.add_argument("--detections", metavar="DT.json", help="COCO-style results, or predict's json")
    verb.add_argument(
        "--protocol", choices=("coco", "voc07", "voc10"), default="coco", help="for files (default: coco)"
    )
    verb.add_argument("--iou", type=float, help="IoU of a match, for the VOC protocols (default: 0.5)")
    add_device(verb)
    add_json(verb)

    verb = new_verb(
        verbs,
        "config",
        _config,
        "print a config with its bases and overrides merged",
        examples="""
            mnv2det config ssdlite_bccd
            mnv2det config data/photos train.steps=500 --check""",
    )
    verb.add_argument("config", help="a YAML, the name of one of configs/, or a folder with one")
    add_overrides(verb)
    verb.add_argument("--check", action="store_true", help="also check every component's arguments (loads torch)")

    verb = new_verb(
        verbs,
        "grid",
        _grid,
        "picture of predictions beside ground truth on a run's validation set",
        examples="""
            mnv2det grid runs/photos
            mnv2det grid runs/photos --count 30 --threshold 0.2 --out grid.png""",
    )
    verb.add_argument("source", metavar="RUN", help="a run folder")
    add_overrides(verb)
    verb.add_argument("--out", metavar="FILE", help="the picture (default: RUN/predictions.png)")
    verb.add_argument("--count", type=int, default=12, metavar="N", help="images shown (default: %(default)s)")
    verb.add_argument(
        "--threshold", type=float, default=0.4, metavar="T", help="least score shown (default: %(default)s)"
    )
    add_device(verb)


def _train(args: argparse.Namespace) -> int:
    if args.resume and args.config and "=" in args.config:  # argparse cannot know it for an override
        args.overrides, args.config = [args.config, *args.overrides], None
    if args.resume and (args.config or args.out):
        raise ConfigError("--resume RUN goes alone: the run folder holds its config")
    if not args.resume and not args.config:
        raise ConfigError("train needs a config, or --resume RUN")
    run = RunFolder(args.resume or args.out or Path("runs") / run_name(args.config))
    if args.resume:
        run.check_begun()
    config = load_config(run.config if args.resume else config_file(args.config), args.overrides)
    try:
        summary = train_run(
            config,
            run.path,
            resume=bool(args.resume),
            allow_changes=args.allow_changes,
            device=args.device,
            progress=is_main_process(),
        )
    except Mnv2detError as error:
        if error.silent:  # torchrun's first process prints it
            return error.exit_code
        raise
    if not is_main_process():
        return 0
    print_metrics(summary["metrics"])
    print(f"{summary['steps']} steps, {summary['seconds'] / 60:.1f} minutes of training; run folder: {run}")
    write_json_file(args, summary)
    return 0


def _eval(args: argparse.Namespace) -> int:
    if args.ground_truth or args.detections:
        if not (args.ground_truth and args.detections) or args.source or args.overrides or args.weights:
            raise ConfigError("--ground-truth and --detections go together, and without a config, run or weights")
        from mnv2det.commands.evaluate_files import evaluate_files

        metrics = evaluate_files(args.ground_truth, args.detections, protocol=args.protocol, iou=args.iou)
        print_metrics(metrics)
        write_json_file(args, {"metrics": metrics})
        return 0
    if not args.source:
        raise ConfigError("eval needs a config or run, or --ground-truth and --detections")
    if args.iou is not None or args.protocol != "coco":
        raise ConfigError("--protocol and --iou are for --ground-truth and --detections; a config names its evaluator")
    config = load_config(config_file(args.source), args.overrides)  # its mistakes are reported before torch is imported
    from mnv2det.commands.evaluate import evaluate_source
    from mnv2det.commands.weights import provide

    provide(args.weights or config.model.weights, progress=is_main_process())
    summary = evaluate_source(args.source, args.overrides, weights=args.weights, device=args.device)
    if not is_main_process():
        return 0
    for problem in summary["problems"]:
        print(f"left out: {problem}", file=sys.stderr)
    print_metrics(summary["metrics"])
    height, width = summary["input_size"]
    print(f"{summary['images']} images seen at {height}x{width}, weights {summary['weights']}")
    write_json_file(args, summary)
    return 0


def _config(args: argparse.Namespace) -> int:
    config = load_config(config_file(args.config), args.overrides)
    if args.check:
        from mnv2det.engine.build import check

        check(config)
    print(to_yaml(config), end="")
    return 0


def _grid(args: argparse.Namespace) -> int:
    if args.count < 1 or not 0 <= args.threshold <= 1:
        raise ConfigError("--count must be at least 1, --threshold from 0 to 1")
    RunFolder(args.source).check_begun()  # before torch is imported
    from mnv2det.commands.grid import prediction_grid

    path = prediction_grid(
        args.source,
        args.overrides,
        output=args.out,
        count=args.count,
        threshold=args.threshold,
        device=args.device,
    )
    from mnv2det.report.text import font_note
    from mnv2det.runtime.predictor import header_of

    if note := font_note(chain(*header_of(args.source).classes.values())):
        print(f"mnv2det: {note}", file=sys.stderr)
    print(f"predictions beside ground truth: {path}")
    return 0
