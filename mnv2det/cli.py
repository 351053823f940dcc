"""The command line: arguments in, one-line errors out; the work lives in the rooms."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnv2det.config import load_config, to_yaml
from mnv2det.errors import ConfigError, Mnv2detError
from mnv2det.version import __version__

EXAMPLES = """examples:
  mnv2det train configs/ssdlite_shapes.yaml
  mnv2det train configs/ssdlite_bccd.yaml data.root=/data train.steps=500 --out runs/cells
  mnv2det train --resume runs/cells
  mnv2det eval runs/cells --json figures.json
  mnv2det predict runs/cells photo.jpg folder/

exit codes: 0 done, 1 failed, 2 your mistake (one line says which), 130 interrupted and saved"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        arguments: Without the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    parser = build_parser()
    given, rest = parser.parse_known_args(arguments)
    # argparse takes no positional arguments after an option: overrides may stand there
    if rest and not (hasattr(given, "overrides") and all("=" in item and item[0] != "-" for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        given.overrides += rest
    try:
        return int(given.run(given))
    except Mnv2detError as error:
        print(f"mnv2det: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"mnv2det: {error.filename or ''}: {error.strerror or error}".replace(": :", ":"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mnv2det: interrupted", file=sys.stderr)
        return 130


def run() -> None:
    """Entry point of the installed command and of tools/."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # piped into head
        sys.stderr.close()
        code = 1
    sys.exit(code)


def tool(verb: str) -> None:
    """Entry point of tools/VERB.py."""
    sys.argv.insert(1, verb)
    run()


def build_parser() -> argparse.ArgumentParser:
    """All verbs with their arguments."""
    parser = argparse.ArgumentParser(
        prog="mnv2det",
        description="MobileNetV2 detection, segmentation and classification: train, measure, ship.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mnv2det {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = _verb(verbs, "train", _train, "train a model into a run folder, or resume one")
    verb.add_argument("config", nargs="?", help="a YAML of configs/ (not with --resume)")
    _add_overrides(verb)
    verb.add_argument("--out", metavar="DIR", help="run folder (default: runs/NAME_OF_CONFIG)")
    verb.add_argument("--resume", metavar="RUN", help="go on with this run folder from its last checkpoint")
    _add_device(verb)
    _add_json(verb)

    verb = _verb(verbs, "eval", _eval, "measure trained weights, or a file of detections")
    verb.add_argument("source", nargs="?", metavar="CONFIG_OR_RUN", help="a run folder, or a YAML with model.weights")
    _add_overrides(verb)
    verb.add_argument("--weights", metavar="FILE", help="measure these weights instead of the run's best")
    verb.add_argument("--ground-truth", metavar="GT.json", help="COCO-style annotations; with --detections, no model")
    verb.add_argument("--detections", metavar="DT.json", help="COCO-style results")
    verb.add_argument(
        "--protocol", choices=("coco", "voc07", "voc10"), default="coco", help="for files (default: coco)"
    )
    verb.add_argument("--iou", type=float, help="IoU of a match, for the VOC protocols (default: 0.5)")
    _add_device(verb)
    _add_json(verb)

    verb = _verb(verbs, "predict", _predict, "write annotated pictures and videos, masks, json, csv and xml")
    verb.add_argument("source", metavar="RUN", help="a run folder or a .safetensors file")
    verb.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images, videos, folders of them, patterns in quotes ('day*/**/*.jpg'), camera:0 (until Ctrl-C)",
    )
    verb.add_argument("--out", metavar="DIR", default="predictions", help="output folder (default: %(default)s)")
    verb.add_argument(
        "--threshold", type=float, default=0.3, metavar="T", help="least score shown (default: %(default)s)"
    )
    verb.add_argument("--batch-size", type=int, default=8, metavar="N", help="images per pass (default: %(default)s)")
    verb.add_argument(
        "--formats",
        metavar="LIST",
        help="what to write, of json,voc,csv,masks,pictures (default: json,pictures and a segmenter's masks)",
    )
    verb.add_argument("--no-pictures", action="store_true", help="no annotated pictures and videos")
    verb.add_argument("--every", type=int, default=1, metavar="N", help="look at every N-th frame of a video")
    _add_device(verb)
    _add_json(verb)

    verb = _verb(verbs, "config", _config, "print a config with its bases and overrides merged")
    verb.add_argument("config", help="a YAML of configs/")
    _add_overrides(verb)
    verb.add_argument("--check", action="store_true", help="also check every component's arguments (loads torch)")

    verb = _verb(verbs, "import-weights", _import, "turn published weights into a file of ours")
    verb.add_argument("source", metavar="SOURCE", help="a .tflite, .pth or .param (ncnn) file, or torchvision:NAME")
    verb.add_argument("-o", "--output", required=True, metavar="FILE", help="the .safetensors file to write")
    verb.add_argument("--labels", metavar="FILE", help="class names, one per line")
    verb.add_argument(
        "--images", metavar="DIR", help="real photographs to re-estimate folded batch norm on, to make it trainable"
    )
    verb.add_argument("--limit", type=int, default=64, metavar="N", help="most images used (default: %(default)s)")
    _add_json(verb)

    verb = _verb(verbs, "grid", _grid, "picture of predictions beside ground truth on a run's validation set")
    verb.add_argument("source", metavar="RUN", help="a run folder")
    _add_overrides(verb)
    verb.add_argument("--out", metavar="FILE", help="the picture (default: RUN/predictions.png)")
    verb.add_argument("--count", type=int, default=12, metavar="N", help="images shown (default: %(default)s)")
    verb.add_argument(
        "--threshold", type=float, default=0.4, metavar="T", help="least score shown (default: %(default)s)"
    )
    _add_device(verb)
    return parser


def _verb(verbs: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the config")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")


def _train(given: argparse.Namespace) -> int:
    if given.resume and (given.config or given.overrides or given.out):
        raise ConfigError("--resume RUN goes alone: the run folder holds its config")
    if not given.resume and not given.config:
        raise ConfigError("train needs a config, or --resume RUN")
    if given.resume:
        from mnv2det.engine.trainer import resume_config

        config, folder = resume_config(Path(given.resume)), Path(given.resume)
    else:
        config = load_config(given.config, given.overrides)
        folder = Path(given.out or Path("runs") / Path(given.config).stem)
    from mnv2det.engine.trainer import train

    summary = train(config, folder, resume=bool(given.resume), device=given.device)
    if not _speaks():
        return 0
    _print_figures(summary["figures"])
    print(f"{summary['steps']} steps, {summary['seconds'] / 60:.1f} minutes of training; run folder: {folder}")
    _write_json(given, summary)
    return 0


def _eval(given: argparse.Namespace) -> int:
    if given.ground_truth or given.detections:
        if not (given.ground_truth and given.detections) or given.source or given.overrides or given.weights:
            raise ConfigError("--ground-truth and --detections go together, and without a config, run or weights")
        from mnv2det.evaluation.files import evaluate_files

        figures = evaluate_files(given.ground_truth, given.detections, protocol=given.protocol, iou=given.iou)
        _print_figures(figures)
        _write_json(given, {"figures": figures})
        return 0
    if not given.source:
        raise ConfigError("eval needs a config or run, or --ground-truth and --detections")
    if given.iou is not None or given.protocol != "coco":
        raise ConfigError("--protocol and --iou are for --ground-truth and --detections; a config names its evaluator")
    from mnv2det.engine.evaluate import evaluate_source

    summary = evaluate_source(given.source, given.overrides, weights=given.weights, device=given.device)
    if not _speaks():
        return 0
    for problem in summary["problems"]:
        print(f"left out: {problem}", file=sys.stderr)
    _print_figures(summary["figures"])
    height, width = summary["input_size"]
    print(f"{summary['images']} images seen at {height}x{width}, weights {summary['weights']}")
    _write_json(given, summary)
    return 0


def _predict(given: argparse.Namespace) -> int:
    if not 0 <= given.threshold <= 1 or given.batch_size < 1 or given.every < 1:
        raise ConfigError("--threshold must be from 0 to 1, --batch-size and --every at least 1")
    from mnv2det.deploy.predict import predict
    from mnv2det.engine.interrupt import stop_requests

    with stop_requests() as stop:
        summary = predict(
            given.source,
            given.inputs,
            output=given.out,
            threshold=given.threshold,
            batch_size=given.batch_size,
            pictures=not given.no_pictures,
            formats=None if given.formats is None else [name.strip() for name in given.formats.split(",")],
            every=given.every,
            device=given.device,
            stop=stop,
        )
    for name, classes in summary["classes"].items():
        print(f"{name}: " + ", ".join(f"{entry['name']} {entry['score']:.3f}" for entry in classes))
    print(f"{summary['images']} images, {summary['detections']} detections -> {summary['output']}")
    for line in summary["failed"]:
        print(f"mnv2det: failed: {line}", file=sys.stderr)
    _write_json(given, summary)
    if summary["stopped"]:
        print("mnv2det: interrupted; what was done is written", file=sys.stderr)
        return 130
    return 1 if summary["failed"] else 0


def _config(given: argparse.Namespace) -> int:
    config = load_config(given.config, given.overrides)
    if given.check:
        from mnv2det.engine.build import check

        check(config)
    print(to_yaml(config), end="")
    return 0


def _import(given: argparse.Namespace) -> int:
    if given.limit < 1:
        raise ConfigError("--limit must be at least 1")
    from mnv2det.engine.import_weights import import_weights

    summary = import_weights(given.source, given.output, labels=given.labels, images=given.images, limit=given.limit)
    for key, value in summary.items():
        if value not in ("", None):
            print(f"{key}: {value}")
    _write_json(given, summary)
    return 0


def _grid(given: argparse.Namespace) -> int:
    if given.count < 1 or not 0 <= given.threshold <= 1:
        raise ConfigError("--count must be at least 1, --threshold from 0 to 1")
    from mnv2det.engine.grid import prediction_grid

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


def _speaks() -> bool:
    """Whether this is the one of torchrun's processes that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def _print_figures(figures: dict[str, float]) -> None:
    """Main figures one to a line, then those per class."""
    depth = max((name.count("/") for name in figures), default=0)
    for name, value in sorted(figures.items(), key=lambda item: item[0].count("/") == depth > 1):
        print(f"{name:<32} {'-' if value == -1 else f'{value:.4f}':>8}")


def _write_json(given: argparse.Namespace, data: dict[str, Any]) -> None:
    if given.json:
        from mnv2det.engine.evaluate import write_json

        write_json(given.json, data)
