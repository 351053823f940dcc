"""The verbs for trained weights."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mnv2det.cli.common import add_device, add_json, new_verb, write_json_file
from mnv2det.errors import ConfigError


def add(verbs: Any) -> None:
    """Adds them to the command line."""
    verb = new_verb(verbs, "predict", _predict, "write annotated pictures and videos, masks, json, csv and xml")
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
    add_device(verb)
    add_json(verb)

    verb = new_verb(verbs, "import-weights", _import, "turn published weights into a file of ours")
    verb.add_argument("source", metavar="SOURCE", help="a .tflite, .pth or .param (ncnn) file, or torchvision:NAME")
    verb.add_argument("-o", "--output", required=True, metavar="FILE", help="the .safetensors file to write")
    verb.add_argument("--labels", metavar="FILE", help="class names, one per line")
    verb.add_argument(
        "--images", metavar="DIR", help="real photographs to re-estimate folded batch norm on, to make it trainable"
    )
    verb.add_argument("--limit", type=int, default=64, metavar="N", help="most images used (default: %(default)s)")
    add_json(verb)


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
    write_json_file(given, summary)
    if summary["stopped"]:
        print("mnv2det: interrupted; what was done is written", file=sys.stderr)
        return 130
    return 1 if summary["failed"] else 0


def _import(given: argparse.Namespace) -> int:
    if given.limit < 1:
        raise ConfigError("--limit must be at least 1")
    from mnv2det.engine.import_weights import import_weights

    summary = import_weights(given.source, given.output, labels=given.labels, images=given.images, limit=given.limit)
    for key, value in summary.items():
        if value not in ("", None):
            print(f"{key}: {value}")
    write_json_file(given, summary)
    return 0
