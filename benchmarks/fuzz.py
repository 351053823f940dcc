"""Feeds damaged files to every reader: each must give a result or an error of this project, soon and in little memory.

    python benchmarks/fuzz.py                        # all readers, 100,000 inputs each
    python benchmarks/fuzz.py coco --inputs 1000000 --seed 7
    pip install atheris && python benchmarks/fuzz.py coco --atheris      # guided by coverage

The inputs are damaged copies of small good files: bits, bytes and longer pieces are changed, repeated, removed and
swapped, words of the format are inserted, and nodes of the JSON or YAML tree are replaced by others. Inputs that end in
another exception, a hang or too much memory are counted, and those with an exception are written to --keep.
"""

import argparse
import contextlib
import copy
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SECONDS = 10  # of processor time; a reader that takes longer counts as a hang
MEMORY = 1 << 30  # bytes that the process may grow by

WORDS = {
    "coco": b'null true NaN Infinity -1 0 1e999 [] {} "" 1.5 "../../etc/passwd" "/etc/passwd" "id" "image_id" "bbox"'
    b' "category_id" "segmentation" "counts" "size" "file_name" "width" "iscrowd" "\\ud800" 99999999999999999999',
    "voc": b"<object> </object> <bndbox> <xmin>nan</xmin> <xmax>-1</xmax> <xmax>1e999</xmax> <size> <width>0</width>"
    b' <name></name> <!DOCTYPE <!ENTITY &a; &lt; <![CDATA[ ]]> encoding="utf-16" <filename>../../x</filename> \x00',
    "config": b"base: a.yaml\n- [ ] { } : \n null ~ .nan .inf 1e999 ${seed} ${oc.env:HOME} ${"
    b" !!python/object/apply:os.system & * << | model: tasks: data: train: -1 0x7fffffffffffffffffff '../' \t",
    "safetensors": b'"dtype" "shape" "data_offsets" "F32" "I64" "BOOL" [0,0] [-1] 18446744073709551615 "__metadata__"'
    b' "mnv2det" {} []',
    "tflite": b"TFL3 \x00\x00\x00\x00 \xff\xff\xff\xff \x01\x00\x00\x00 \xff\xff\xff\x7f \x00\x00\x00\x80",
    "ncnn": b"7767517 Convolution ConvolutionDepthWise PriorBox DetectionOutput Input -23300=1,2 0=99999999999 1=-1 6=0"
    b" =nan 1e999 \n",
}


class Hang(BaseException):
    """Raised when a reader takes longer than `SECONDS`."""


def coco(folder: Path) -> tuple[list[bytes], Callable[[bytes], Any]]:
    """COCO: a JSON file of boxes, polygons and run lengths, read with masks."""
    from mnv2det.config import BadData
    from mnv2det.data.formats.coco import COCO

    images = [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in range(3)]
    rows = [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0,
         "segmentation": [[1, 2, 31, 2, 31, 22]]},
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [0, 0, 64, 48], "area": 9, "iscrowd": 1,
         "segmentation": {"size": [48, 64], "counts": [0, 3072]}},
        {"id": 3, "image_id": 1, "category_id": 1, "bbox": [5.5, 5.5, 3.25, 4], "area": 13, "iscrowd": 0,
         "segmentation": {"size": [48, 64], "counts": "e74\\1000kc2"}},
    ]  # fmt: skip
    names = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]
    (folder / "images").mkdir()
    path = folder / "a.json"

    def read(data: bytes) -> Any:
        path.write_bytes(data)
        kind = BadData.skip if len(data) % 2 else BadData.stop
        masks = "voc" if len(data) % 3 else None
        found = COCO(root=folder, annotations="a.json", images="images", masks=masks).dataset(kind)
        return [found.target(index) for index in range(len(found))]

    return [json.dumps({"images": images, "annotations": rows, "categories": names}).encode()], read


def voc(folder: Path) -> tuple[list[bytes], Callable[[bytes], Any]]:
    """VOC: an XML file of three objects, read as part of a VOCdevkit."""
    from mnv2det.config import BadData
    from mnv2det.data.formats.voc import VOC

    home = folder / "VOCdevkit" / "X"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (home / part).mkdir(parents=True)
    (home / "ImageSets/Main/val.txt").write_text("a\n")
    (home / "JPEGImages/a.jpg").write_bytes(b"")
    objects = "".join(
        f"<object><name>{name}</name><difficult>{n % 2}</difficult><bndbox><xmin>{n + 1}</xmin><ymin>2</ymin>"
        f"<xmax>{20 + n}</xmax><ymax>30.5</ymax></bndbox></object>"
        for n, name in enumerate(("cat", "dog", "person"))
    )
    seed = (
        "<?xml version='1.0'?><annotation><filename>a.jpg</filename><size><width>64</width><height>48</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )

    def read(data: bytes) -> Any:
        (home / "Annotations/a.xml").write_bytes(data)
        kind = BadData.skip if len(data) % 2 else BadData.stop
        return VOC(root=folder, sets=["X/val"]).dataset(kind).target(0)

    return [seed.encode()], read


def config(folder: Path) -> tuple[list[bytes], Callable[[bytes], Any]]:
    """Configs: those of this project, with their bases."""
    from mnv2det.config import load_config, to_yaml

    seeds = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
    (folder / "_base_").symlink_to(ROOT / "configs" / "_base_")
    path = folder / "a.yaml"

    def read(data: bytes) -> Any:
        path.write_bytes(data)
        return to_yaml(load_config(path))

    return seeds, read


def safetensors(folder: Path) -> tuple[list[bytes], Callable[[bytes], Any]]:
    """Weights: the file of a segmenter; every hundredth that can still be read is also built into a model."""
    from mnv2det.models.build import assemble, from_file
    from mnv2det.models.weight_file import read_weights, save_weights
    from mnv2det.structures import Preprocess

    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35}},
        {"seg": {"name": "mobile_deeplab", "args": {"channels": 8}}},
        classes={"seg": ["a", "b"]},
        preprocess=Preprocess((32, 32)),
    )
    path = folder / "w.safetensors"
    tensors = {name: value for name, value in model.state_dict().items() if value.numel() < 1500}
    save_weights(path, tensors, model.header())
    seeds, number = [path.read_bytes()], 0

    def read(data: bytes) -> Any:
        nonlocal number
        path.write_bytes(data)
        found = read_weights(path)
        number += 1
        return from_file(str(path)) if number % 100 == 0 else found

    return seeds, read


def tflite(folder: Path) -> tuple[list[bytes], Callable[[bytes], Any]]:
    """TFLite: a classifier; some of the files that are still a graph are also converted."""
    from tflite_writer import write_classifier

    from mnv2det.convert.tflite.convert import convert_tflite
    from mnv2det.convert.tflite.reader import read_tflite
    from mnv2det.models.build import assemble
    from mnv2det.structures import Preprocess

    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, "padding": "same"}},
        {"cls": {"name": "classifier", "args": {}}},
        classes={"cls": ["a", "b"]},
        preprocess=Preprocess((32, 32)),
    ).eval()
    path = folder / "m.tflite"
    seeds, number = [write_classifier(model, 32)], 0

    def read(data: bytes) -> Any:
        nonlocal number
        path.write_bytes(data)
        graph = read_tflite(path)
        number += 1
        return convert_tflite(str(path)) if number % 2000 == 0 else graph

    return seeds, read


def ncnn(folder: Path) -> tuple[list[bytes], Callable[[bytes], Any]]:
    """Ncnn: the layers of a detector beside its weights; some of those that are still a graph are also converted."""
    from ncnn_writer import random_detector, write_detector

    from mnv2det.convert.ncnn.convert import convert_ncnn
    from mnv2det.convert.ncnn.reader import read_ncnn

    path = write_detector(random_detector(), folder / "m.param")
    seeds, number = [path.read_bytes()], 0

    def read(data: bytes) -> Any:
        nonlocal number
        path.write_bytes(data)
        graph = read_ncnn(path)
        number += 1
        return convert_ncnn(str(path)) if number % 2000 == 0 else graph

    return seeds, read


READERS: dict[str, Callable[[Path], tuple[list[bytes], Callable[[bytes], Any]]]] = {
    "coco": coco,
    "voc": voc,
    "config": config,
    "safetensors": safetensors,
    "tflite": tflite,
    "ncnn": ncnn,
}
TREES = ("coco", "safetensors", "config")  # half of their inputs have nodes of their tree replaced
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x",
    "../../etc/passwd",
    "\ud800", [], {}, [[]], [1, 2, 3, 4], [1, 2], {"id": 1}, "9" * 5000, [0] * 1000,
]  # fmt: skip


def damage(rng: random.Random, seeds: list[bytes], words: list[bytes]) -> bytes:
    """Makes a damaged copy of one of the seeds."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        # the most important parts of a file tend to be at its beginning and its end
        size = len(data)
        at = rng.choice(
            (rng.randrange(size + 1), rng.randrange(min(size, 400) + 1), size - rng.randrange(min(size, 4000) + 1))
        )
        end = min(size, at + rng.choice((1, 1, 2, 4, 8, 40, 400)))
        kind = rng.randrange(9)
        if kind == 0 and at < size:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at:end] = rng.randbytes(end - at)
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = data[at:end] * rng.choice((1, 2, 50))
        elif kind == 4:
            del data[at:]
        elif kind in (5, 6) and words:
            word = rng.choice(words)
            data[at : at + rng.choice((0, len(word)))] = word
        elif kind == 7:
            number = rng.choice((0, 1, 127, 128, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, size, size + 1))
            data[at : at + 4] = number.to_bytes(4, "little")
        elif kind == 8:
            other = rng.choice(seeds)
            cut = rng.randrange(len(other) + 1)
            data[at:end] = other[cut : cut + rng.choice((4, 40, 400))]
    return bytes(data)


def rewrite(rng: random.Random, seed: bytes, name: str) -> bytes:
    """Replaces some nodes in the tree of a JSON, YAML or safetensors file."""
    if name == "config":
        tree = yaml.load(seed, yaml.CSafeLoader)
        for _ in range(rng.choice((1, 1, 2, 4))):
            _replace(rng, tree)
        # JSON is YAML, except for these
        return json.dumps(tree).replace("NaN", ".nan").replace("Infinity", ".inf").encode()
    start, rest = 0, b""
    if seed[:1] not in b"{[":
        start = 8
        length = int.from_bytes(seed[:8], "little")
        seed, rest = seed[8 : 8 + length], seed[8 + length :]
    tree = json.loads(seed)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _replace(rng, tree)
    text = json.dumps(tree).encode()
    return (len(text).to_bytes(8, "little") if start else b"") + text + rest


def _replace(rng: random.Random, tree: Any) -> None:
    """Replaces, removes or repeats one node somewhere in the tree."""
    while True:
        keys: list[Any] = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = tree[key]
        if isinstance(inner, str) and inner.startswith("{") and rng.random() < 0.7:  # our header: JSON inside JSON
            part = json.loads(inner)
            _replace(rng, part)
            tree[key] = json.dumps(part)
            return
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            tree = inner
            continue
        kind = rng.randrange(4)
        if kind == 0:
            del tree[key]
        elif kind == 1 and isinstance(tree, list):
            tree.append(copy.deepcopy(inner))
        else:
            tree[key] = copy.deepcopy(rng.choice(VALUES))
        return


def fuzz(name: str, count: int, seed: int, keep: Path | None) -> dict[str, Any]:
    """Feeds damaged inputs to a reader and counts the outcomes."""
    from mnv2det.errors import Mnv2detError

    rng, outcomes, strange = random.Random(f"{name} {seed}"), Counter[str](), Counter[str]()
    words = [word for word in WORDS[name].split(b" ") if word]

    def ring(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, ring)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        seeds, read = READERS[name](Path(folder))
        read(seeds[0]) if name != "safetensors" else None
        before, slowest, started = _peak(), 0.0, time.perf_counter()
        for number in range(count):
            tree = name in TREES and rng.random() < 0.5
            data = rewrite(rng, rng.choice(seeds), name) if tree else damage(rng, seeds, words)
            begun = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                read(data)
                outcomes["result"] += 1
            except Mnv2detError as error:
                outcomes[type(error).__name__] += 1
                if "\n" in str(error):
                    strange["an error of several lines"] += 1
            except (Exception, Hang) as error:
                where = error.__traceback__
                while where is not None and where.tb_next is not None:
                    where = where.tb_next
                place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else ""
                kind = f"{type(error).__name__} at {place}"
                if kind not in strange and keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}-{number}").write_bytes(data)
                strange[kind] += 1
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            slowest = max(slowest, time.process_time() - begun)
        spent = time.perf_counter() - started
        grown = _peak() - before
    if grown > MEMORY:
        strange["more memory than allowed"] += 1
    return {
        "reader": name,
        "inputs": count,
        "seed": seed,
        "outcomes": dict(outcomes),
        "other": dict(strange),
        "slowest_s": round(slowest, 3),
        "grown_mb": round(grown / 1e6),
        "minutes": round(spent / 60, 1),
    }


def guided(name: str, count: int, seed: int) -> None:
    """Does the same with atheris, which searches for inputs that reach new lines and stops at the first exception."""
    import atheris

    from mnv2det.errors import Mnv2detError

    folder = tempfile.mkdtemp()
    corpus = Path(folder) / "corpus"
    corpus.mkdir()
    with atheris.instrument_imports(include=["mnv2det"]):
        seeds, read = READERS[name](Path(folder))
    for number, data in enumerate(seeds):
        (corpus / str(number)).write_bytes(data)

    def once(data: bytes) -> None:
        with contextlib.suppress(Mnv2detError):
            read(data)

    words = ("".join(f"\\x{byte:02x}" for byte in word) for word in WORDS[name].split(b" ") if word)
    (Path(folder) / "words").write_text("".join(f'"{word}"\n' for word in words))
    # for atheris, seed 0 means a random seed
    options = [f"-runs={count}", f"-seed={seed + 1}", f"-dict={folder}/words", f"-timeout={SECONDS}"]
    options += ["-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], str(corpus), *options], once)
    atheris.Fuzz()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Prints a line of JSON for each reader."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"from {', '.join(READERS)} (default: all)")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each reader (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that end in another exception")
    parser.add_argument("--json", type=Path, help="also write the outcomes to this file")
    parser.add_argument("--atheris", action="store_true", help="let coverage guide the search; for one reader")
    given = parser.parse_args()
    for name in given.readers:
        if name not in READERS:
            parser.error(f"no reader '{name}'; there are {', '.join(READERS)}")
    if given.atheris:
        guided(given.readers[0] if given.readers else "coco", given.inputs, given.seed)
        return
    done = []
    for name in given.readers or READERS:
        done.append(fuzz(name, given.inputs, given.seed, given.keep))
        print(json.dumps(done[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(done, indent=2))
    sys.exit(any(part["other"] for part in done))


if __name__ == "__main__":
    main()
