"""The verbs for weights of others: released ones by name, and files of any kind that is read."""

from __future__ import annotations

import argparse
from typing import Any

from mnv2det.cli.common import add_json, new_verb, write_json_file
from mnv2det.errors import ConfigError

EXAMPLES = """
mnv2det weights list
mnv2det weights get coco
mnv2det predict coco photo.jpg
mnv2det data import photos/ -o data/photos --weights coco"""
CODES = "exit codes: 0 done, 2 your mistake or no network (one line says where to put the file by hand)"


def add(verbs: Any) -> None:
    """Adds them to the command line."""
    verb = new_verb(verbs, "weights", None, "released weights that are known by a name", examples=EXAMPLES, codes=CODES)
    actions = verb.add_subparsers(metavar="ACTION", required=True)
    about = "list them with their licences, and say which are on this machine"
    add_json(new_verb(actions, "list", _list, about, examples="mnv2det weights list"))
    about = "download and convert weights, once"
    get = new_verb(actions, "get", _get, about, examples="mnv2det weights get coco", codes=CODES)
    get.add_argument("name", metavar="NAME", help="one of those that list shows")
    add_json(get)
    about = "print where fetched weights are kept, or the file of one"
    where = new_verb(actions, "where", _where, about, examples="mnv2det weights where coco")
    where.add_argument("name", nargs="?", metavar="NAME", help="one of those that were fetched")
    _add_import(verbs)


def _add_import(verbs: Any) -> None:
    verb = new_verb(
        verbs,
        "import-weights",
        _import,
        "turn published weights into a file of ours",
        examples="""
            mnv2det import-weights frozen_inference_graph.pb -o weights/coco.safetensors --labels coco90
            mnv2det import-weights mobilenet_v2.tflite -o weights/imagenet.safetensors --images photos/""",
    )
    verb.add_argument(
        "source",
        metavar="SOURCE",
        help="a .tflite, .pth or .param (ncnn) file, imagenet, or TensorFlow's: a .pb, checkpoint, model.json or their"
        " folder",
    )
    verb.add_argument("-o", "--output", required=True, metavar="FILE", help="the .safetensors file to write")
    verb.add_argument("--labels", metavar="FILE", help="class names: a text file, a label map (.pbtxt), coco90 or voc")
    verb.add_argument(
        "--images", metavar="DIR", help="real photographs to re-estimate folded batch norm on, to make it trainable"
    )
    verb.add_argument("--limit", type=int, default=64, metavar="N", help="most images used (default: %(default)s)")
    add_json(verb)


def _list(args: argparse.Namespace) -> int:
    from mnv2det.commands.weights import list_weights

    rows = list_weights()
    for row in rows:
        here = "here" if row["here"] else f"{row['bytes'] / 1e6:.0f} MB"
        print(f"{row['name']:<12} {here:>6}  {row['licence']:<13} {row['what']}")
    write_json_file(args, {"weights": rows})
    return 0


def _get(args: argparse.Namespace) -> int:
    from mnv2det.commands.weights import get_weights

    summary = get_weights(args.name)
    for key, value in summary.items():
        if value is not None:
            print(f"{key}: {value}")
    write_json_file(args, summary)
    return 0


def _where(args: argparse.Namespace) -> int:
    from mnv2det.commands.weights import file_of
    from mnv2det.models.releases import weights_folder

    print(weights_folder() if args.name is None else file_of(args.name))
    return 0


def _import(given: argparse.Namespace) -> int:
    if given.limit < 1:
        raise ConfigError("--limit must be at least 1")
    from mnv2det.commands.import_weights import import_weights

    summary = import_weights(given.source, given.output, labels=given.labels, images=given.images, limit=given.limit)
    for key, value in summary.items():
        if value not in ("", None):
            print(f"{key}: {value}")
    write_json_file(given, summary)
    return 0
