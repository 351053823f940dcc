"""The verbs for trained weights."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from mnv2det.cli.common import add_device, add_json, add_overrides, new_verb, write_json_file
from mnv2det.errors import ConfigError

MOST_LEFT_OUT = 10  # files left out of a prediction that are named


def add(verbs: Any) -> None:
    """Adds them to the command line."""
    verb = new_verb(
        verbs,
        "predict",
        _predict,
        "write annotated pictures and videos, masks, json, csv and xml",
        examples="""
            mnv2det predict runs/photos photo.jpg folder/ --out out/
            mnv2det predict runs/photos/model.onnx film.mp4 camera:0 --every 2 --formats pictures,json,csv
            mnv2det predict coco photo.jpg --threshold 0.5""",
    )
    verb.add_argument("source", metavar="RUN", help="a run folder, a .safetensors file or an exported model")
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
    verb.add_argument(
        "--backend",
        default="auto",
        metavar="B",
        help="torch, onnxruntime, openvino, a runtime of yours, or auto: torch for weights, for an exported model the"
        " first that reads it (default: %(default)s)",
    )
    verb.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: %(default)s")
    _add_threads(verb)
    add_device(verb)
    add_json(verb)

    verb = new_verb(
        verbs,
        "export",
        _export,
        "write a model as a file of another runtime, and check the file",
        examples="""
            mnv2det export runs/photos
            mnv2det export runs/photos --int8 --accuracy runs/photos -o photos-int8.onnx
            mnv2det export runs/photos --format openvino""",
    )
    verb.add_argument("source", metavar="RUN", help="a run folder or a .safetensors file")
    add_overrides(verb)
    verb.add_argument(
        "-o", "--output", metavar="FILE", help="default: RUN/model.onnx, model-int8.onnx, model-splits3.onnx"
    )
    verb.add_argument(
        "--format",
        metavar="F",
        help="onnx, openvino, torch, ncnn, litert or that of a runtime of yours (default: as FILE ends, or onnx)",
    )
    verb.add_argument(
        "--form",
        choices=("complete", "raw"),
        help="complete: a picture in, results out; raw: the network's input in, its tensors out (default: complete"
        " where the format has it)",
    )
    verb.add_argument("--int8", action="store_true", help="quantise after training")
    verb.add_argument("--fp16", action="store_true", help="store the weights in half precision (ncnn, litert)")
    verb.add_argument(
        "--calibrate",
        metavar="DIR",
        help="pictures for --int8, none of those measured on (default: the run's training set)",
    )
    verb.add_argument("--images", metavar="DIR", help="pictures to compare on (default: the run's validation set)")
    verb.add_argument("--count", type=int, default=8, metavar="N", help="how many of them (default: %(default)s)")
    verb.add_argument(
        "--tolerance", type=float, default=1e-3, metavar="T", help="largest difference to torch (default: %(default)s)"
    )
    verb.add_argument(
        "--splits",
        type=int,
        metavar="T",
        help="compute the bottlenecks in T parts of their expanded channels, for less memory (paper, section 5.1)",
    )
    _add_accuracy(verb)
    _add_thresholds(verb)
    add_json(verb)

    verb = new_verb(
        verbs,
        "bench",
        _bench,
        "time every backend and precision on this machine",
        examples="""
            mnv2det bench runs/photos
            mnv2det bench runs/photos --backends torch,onnxruntime --threads 1 --json times.json""",
    )
    verb.add_argument("source", metavar="RUN", help="a run folder, a .safetensors file or an exported model")
    add_overrides(verb)
    verb.add_argument("--backends", metavar="LIST", help="as in torch,openvino (default: all that are installed)")
    verb.add_argument("--precisions", metavar="LIST", help="of fp32,bf16,int8 (default: those to be had)")
    verb.add_argument("--images", metavar="DIR", help="pictures (default: of the run's validation set)")
    verb.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="bring the pictures to this size first")
    verb.add_argument(
        "--calibrate",
        metavar="DIR",
        help="pictures for int8 (default: of the run's training set, if int8 is asked for)",
    )
    verb.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each (default: %(default)s)")
    verb.add_argument("--repeats", type=int, default=40, metavar="N", help="predictions a turn (default: %(default)s)")
    _add_threads(verb)
    _add_accuracy(verb)
    _add_thresholds(verb)
    add_json(verb)


def _predict(given: argparse.Namespace) -> int:
    if not 0 <= given.threshold <= 1 or given.batch_size < 1 or given.every < 1:
        raise ConfigError("--threshold must be from 0 to 1, --batch-size and --every at least 1")
    from mnv2det.commands.predict.run import predict
    from mnv2det.commands.weights import provide
    from mnv2det.engine.interrupt import stop_requests

    provide(given.source)
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
            backend=given.backend,
            precision=given.precision,
            threads=given.threads,
            memory_budget=given.memory_budget,
            device=given.device,
            stop=stop,
        )
    for name, classes in summary["classes"].items():
        print(f"{name}: " + ", ".join(f"{entry['name']} {entry['score']:.3f}" for entry in classes))
    found = f", {summary['detections']} detections" if summary["detects"] else ""
    print(f"{summary['images']} images{found} -> {summary['output']}")
    if not summary["detections"] and summary["best_score"]:
        print(
            f"mnv2det: no box scores {given.threshold:g} or more, the best one {summary['best_score']:.2g}: try a lower"
            " --threshold (docs/tuning.md)",
            file=sys.stderr,
        )
    if summary["font_note"]:
        print(f"mnv2det: {summary['font_note']}", file=sys.stderr)
    left_out = summary["left_out"]
    for line in left_out[:MOST_LEFT_OUT]:
        print(f"mnv2det: left out: {line}", file=sys.stderr)
    if len(left_out) > MOST_LEFT_OUT:
        print(
            f"mnv2det: left out: {len(left_out) - MOST_LEFT_OUT} more files like these (--json FILE lists all)",
            file=sys.stderr,
        )
    for line in summary["failed"]:
        print(f"mnv2det: failed: {line}", file=sys.stderr)
    write_json_file(given, summary)
    if summary["stopped"]:
        print("mnv2det: interrupted; what was done is written", file=sys.stderr)
        return 130
    return 1 if summary["failed"] else 0


def _export(given: argparse.Namespace) -> int:
    if given.count < 1 or given.tolerance < 0:
        raise ConfigError("--count must be at least 1, --tolerance at least 0")
    from mnv2det.commands.export import export
    from mnv2det.commands.weights import provide
    from mnv2det.runtime.base import runtime_of_format, writer

    provide(given.source)
    output = given.output
    if output is None:
        kind = ("-int8" if given.int8 else "-fp16" if given.fp16 else "") + (
            f"-splits{given.splits}" if given.splits is not None else ""
        )
        runtime = runtime_of_format(given.format or "onnx")
        output = _beside(given.source, f"model{kind}{runtime.ending or runtime.suffix}")
    writer(output, given.format)
    summary = export(
        given.source,
        output,
        form=given.form,
        int8=given.int8,
        fp16=given.fp16,
        calibrate=given.calibrate,
        images=given.images,
        count=given.count,
        tolerance=given.tolerance,
        splits=given.splits,
        heads=_thresholds(given),
        labelled=_labelled(given),
    )
    _print_problems(summary)
    print(f"{output}: {summary['form']}, {summary['precision']}, {summary['bytes'] / 1e6:.1f} MB")
    found = ", ".join(f"{name} {value:.3g}" for name, value in summary["differences"].items())
    seen = f", {summary['detections']} boxes" if summary["detections"] else ""
    print(f"largest difference to torch on {summary['pictures']} pictures{seen} ({summary['compared_on']}): {found}")
    for name in summary["main"]:
        before, after = summary["before"][name], summary["after"][name]
        print(f"{name}: {before:.4f} before, {after:.4f} after ({after - before:+.4f})")
    write_json_file(given, summary)
    return 0


def _bench(given: argparse.Namespace) -> int:
    if given.rounds < 1 or given.repeats < 1 or (given.size and min(given.size) < 1):
        raise ConfigError("--rounds, --repeats and --size must be at least 1")
    from mnv2det.commands.bench import bench
    from mnv2det.commands.weights import provide

    provide(given.source)
    summary = bench(
        given.source,
        backends=_names(given.backends),
        precisions=_names(given.precisions),
        images=given.images,
        size=tuple(given.size) if given.size else None,
        calibrate=given.calibrate,
        threads=given.threads,
        rounds=given.rounds,
        repeats=given.repeats,
        labelled=_labelled(given),
        heads=_thresholds(given),
        memory_budget=given.memory_budget,
    )
    _print_problems(summary)
    columns = ("median", "p90", "decode", "preprocess", "network", "postprocess")
    mains = list(dict.fromkeys(name for row in summary["rows"] for name in row["main"]))
    titles = ["backend", "precision", *columns, "memory MB", "file MB", *mains]
    lines = [
        [
            row["backend"],
            row["precision"],
            *(f"{row[f'{part}_ms']:.2f}" for part in columns),
            "-" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:.0f}",
            f"{row['file_bytes'] / 1e6:.1f}",
            *(f"{row['metrics'][name]:.4f}" for name in mains),
        ]
        for row in summary["rows"]
    ]
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
    for line in (titles, *lines):
        print(
            "  ".join(
                text.ljust(width) if n < 2 else text.rjust(width)
                for n, (text, width) in enumerate(zip(line, widths, strict=True))
            )
        )
    size = "x".join(map(str, summary["size"])) if summary["size"] else "their own size"
    print(
        f"milliseconds for one picture, {summary['threads']} threads;"
        f" {summary['pictures']} pictures of {size} ({summary['pictures_from']})"
    )
    write_json_file(given, summary)
    return 0


def _print_problems(summary: dict[str, Any]) -> None:
    for line in summary["problems"]:
        print(f"mnv2det: {line}", file=sys.stderr)


def _beside(source: str, name: str) -> Path:
    """A file in a run folder, or beside a weight file and named after it."""
    path = Path(source)
    return path / name if path.is_dir() else path.with_name(path.stem + name.removeprefix("model"))


def _add_threads(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--threads", type=int, metavar="N", help="threads of one prediction (default: all cores)")
    verb.add_argument(
        "--memory-budget",
        type=_bytes,
        metavar="BYTES",
        help="of torch's activations on the CPU, as in 2MB; 'cache': as little as costs no time (default: no limit)",
    )


def _bytes(text: str) -> int:
    if text == "cache":
        return 0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|KB|MB|GB)", text.upper())
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"'{text}': expected bytes, as in 2MB, or cache")
    return round(float(match[1]) * {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[match[2]])


def _add_accuracy(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--accuracy",
        nargs="?",
        const="",
        metavar="CONFIG",
        help="also measure on this config's validation set (default: the run's own); key=value overrides it",
    )


def _labelled(given: argparse.Namespace) -> tuple[str, list[str]] | None:
    if given.accuracy and "=" in given.accuracy:  # argparse took an override for the config
        given.overrides, given.accuracy = [given.accuracy, *given.overrides], ""
    if given.accuracy is None:
        if given.overrides:
            raise ConfigError(f"{given.overrides[0]}: overrides are for the config of --accuracy")
        return None
    return given.accuracy or given.source, given.overrides


def _add_thresholds(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--score-threshold", type=float, metavar="T", help="of the detector (default: the model's)")
    verb.add_argument("--nms-iou", type=float, metavar="T", help="of the detector (default: the model's)")
    verb.add_argument("--max-detections", type=int, metavar="N", help="of the detector (default: the model's)")


def _thresholds(given: argparse.Namespace) -> dict[str, dict[str, Any]] | None:
    """The arguments of the model's detectors."""
    args = {
        key: value
        for key in ("score_threshold", "nms_iou", "max_detections")
        if (value := getattr(given, key)) is not None
    }
    if not args:
        return None
    from mnv2det.registry import HEADS
    from mnv2det.runtime.predictor import header_of

    detectors = [
        task
        for task, head in header_of(given.source).heads.items()
        if args.keys() <= HEADS.parameters(head["name"]).keys()
    ]
    if not detectors:
        raise ConfigError(f"{given.source}: has no detector, which --score-threshold and its like are for")
    return dict.fromkeys(detectors, args)


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text else None
