"""The check reports an error if and only if training refuses: damaged data sets of every format."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnv2det.check.parts import config_splits
from mnv2det.check.run import judge
from mnv2det.config import BadData, Component, Config, load_config
from mnv2det.engine.build import build_dataset, check_classes, task_classes
from mnv2det.engine.coverage import check_coverage
from mnv2det.errors import ConfigError, DataError

pytestmark = pytest.mark.heavy

COUNT = 500  # damaged data sets of each format
SIZE = (16, 20)  # (H, W)
NUMBERS: list[Any] = [
    0,
    -1,
    1,
    5,
    15.99999999,
    16,
    16.0000001,
    17,
    400,
    1e-9,
    1e12,
    10**400,
    float("nan"),
    float("inf"),
]
JUNK: list[Any] = [*NUMBERS, None, True, "1", "", "x", [], {}, [1], "../../x", "\ud800"]


@functools.cache
def png(seed: int, size: tuple[int, int] = SIZE, suffix: str = "PNG", turned: bool = False) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6 if turned else 1
    Image.fromarray(pixels).save(stream, suffix, exif=exif)
    return stream.getvalue()


def mask_png(ids: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(ids).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def spoil_file(rng: random.Random, path: Path) -> None:
    """Deletes a file, truncates it, or puts something else in its place."""
    data = path.read_bytes() if path.is_file() else b""
    jpeg = png(97, suffix="JPEG")
    contents = [
        None,
        b"",
        b"junk",
        data[: len(data) // 2],
        data[:-3],
        data + b"\0",
        jpeg[: len(jpeg) // 2] + b"\xff\xd9",
    ]
    contents += [png(99, (SIZE[0], SIZE[1] + 1)), png(98, SIZE[::-1])]
    contents += [png(96, size, "JPEG", turned=True) for size in (SIZE, SIZE[::-1])]
    content = rng.choice(contents)
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write(path, content)


@functools.cache
def template(root: Path, name: str) -> Config:
    return load_config(root / "configs" / f"{name}.yaml", [])


def config_of(root: Path, name: str, folder: Path, train: dict[str, Any], val: dict[str, Any], kind: str) -> Config:
    config = template(root, name)
    parts = {"train": Component(kind, train), "val": Component(kind, val)}
    data = dataclasses.replace(config.data, root=str(folder), bad_data=BadData.stop, **parts)
    return dataclasses.replace(config, data=data)


# a damaged data set of each format


def coco(rng: random.Random, folder: Path, root: Path) -> Config:
    parts = {}
    for offset, name in ((0, "train"), (10, "val")):
        ids = range(offset + 1, offset + 3)
        for number in ids:
            write(folder / name / f"{number}.png", png(number))
        square = [[2, 2, 10, 2, 10, 10, 2, 10]]
        parts[name] = {
            "images": [{"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in ids],
            "annotations": [
                {"id": n, "image_id": n, "category_id": c, "bbox": [2, 2, 8, 8], "iscrowd": 0, "segmentation": square}
                for n in ids
                for c in (1, 7)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
        }
    arguments: dict[str, Any] = {}
    if rng.random() < 0.4:
        arguments["masks"] = rng.choice(["coco", "voc"])
        arguments["least_pixels"] = rng.choice([0, 0, 60, 1000])
    if rng.random() < 0.15:
        arguments["names"] = rng.choice([["cat", "dog"], ["dog", "cat"], ["cat"], ["cat", "cat"], ["cat", ""], []])
    if rng.random() < 0.1:
        arguments["masks"] = "coco"
        arguments["mask_names"] = rng.choice([["background", "dog", "cat"], ["cat"], ["background", "cat"]])
    broken_text = ""
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        data = parts[rng.choice(["train", "val"])]
        entries = data.get(rng.choice(["images", "annotations", "annotations", "categories"]), [])
        choice = rng.randrange(9)
        if choice == 0:
            spoil_file(rng, folder / rng.choice(["train/1.png", "train/2.png", "val/11.png"]))
        elif choice == 1 and entries:
            entries[rng.randrange(len(entries))] = rng.choice(JUNK)
        elif choice == 2 and entries:
            entries.append(json.loads(json.dumps(rng.choice(entries))))
        elif choice == 3:
            entries.clear()
        elif choice == 4:
            data.pop(rng.choice(list(data)), None)
            data.setdefault("categories", data.get("annotations", [{}])) if rng.random() < 0.3 else None
        elif choice == 5 and rng.random() < 0.3:
            broken_text = rng.choice(["{", "", "[]", "null", "9" * 5000])
        elif entries and isinstance(entry := rng.choice(entries), dict) and entry:
            key = rng.choice(list(entry))
            if rng.random() < 0.25:
                del entry[key]
            elif key == "bbox":
                entry["bbox"] = [rng.choice(NUMBERS) for _ in range(4)]
            else:
                entry[key] = rng.choice(JUNK)
    for name, data in parts.items():
        write(folder / f"{name}.json", json.dumps(data))
    if broken_text:
        write(folder / rng.choice(["train.json", "val.json"]), broken_text)
    train, val = ({"annotations": f"{name}.json", "images": name, **arguments} for name in parts)
    return config_of(root, "ssdlite_coco", folder, train, val, "coco")


def voc(rng: random.Random, folder: Path, root: Path) -> Config:
    corner: list[Any] = [1, 2, 8, 15.9999999999, 16, 16.00001, 17, 20.9999999999, 0, -3, 400, "x", "", "nan", "1e9"]
    home = folder / "VOCdevkit" / "Mine"
    numbers = {"train": [1, 2], "val": [11, 12]}

    def item(name: Any = "cat", box: Any = (2, 2, 9, 9)) -> str:
        tags = "".join(f"<{tag}>{n}</{tag}>" for tag, n in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        return f"<object><name>{name}</name><bndbox>{tags}</bndbox></object>"

    def xml(*items: str, size: tuple[Any, Any] = SIZE) -> str:
        return (
            f"<annotation><size><height>{size[0]}</height><width>{size[1]}</width></size>{''.join(items)}</annotation>"
        )

    for name, images in numbers.items():
        for number in images:
            write(home / f"JPEGImages/{number}.png", png(number))
            write(home / f"Annotations/{number}.xml", xml(item(), item("dog", (3, 3, 16, 16))))
            write(home / f"SegmentationClass/{number}.png", mask_png(np.full(SIZE, number % 3, np.uint8)))
        write(home / f"ImageSets/Main/{name}.txt", "\n".join(map(str, images)))
    mode: dict[str, Any] = rng.choice(
        [{}, {}, {"masks": "required"}, {"masks": "optional"}, {"boxes": "optional", "masks": "required"}]
    )
    arguments: dict[str, Any] = {"suffix": ".png", "lists": "Main", **mode}
    if rng.random() < 0.15:
        arguments["names"] = rng.choice([["cat", "dog"], ["dog", "cat", "eel"], ["cat"], ["cat", "cat", "dog"], []])
    if rng.random() < 0.15:
        arguments["mask_names"] = rng.choice([["a", "b", "c"], ["a"], ["a", "a"], []])
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        number = rng.choice([1, 2, 11, 12])
        annotation, mask = home / f"Annotations/{number}.xml", home / f"SegmentationClass/{number}.png"
        choice = rng.randrange(11)
        if choice == 0:
            spoil_file(rng, home / f"JPEGImages/{number}.png")
        elif choice == 1:
            spoil_file(rng, annotation)
        elif choice == 2:
            spoil_file(rng, mask)
        elif choice in (3, 4):
            write(annotation, xml(item(), item(box=[rng.choice(corner) for _ in range(4)])))
        elif choice == 5:
            write(annotation, xml(item(), size=(rng.choice([*corner, 16, 16]), rng.choice([20, 20, *corner]))))
        elif choice == 6:
            write(annotation, xml(*rng.choice([[], [item("")], [item("eel")], [item(" ")], ["<object/>"]])))
        elif choice == 7:
            stems = rng.choice([["1", "1"], [], ["../../../x"], ["/x"], ["1", "gone"], ["11"], ["1", "11"], ["\u20ac"]])
            write(home / f"ImageSets/Main/{rng.choice(['train', 'val'])}.txt", "\n".join(stems))
        elif choice == 8:
            spoil_file(rng, home / "ImageSets/Main/val.txt")
        elif choice == 9:
            ids = np.full(rng.choice([SIZE, SIZE, SIZE[::-1], (5, 5)]), rng.choice([0, 2, 21, 200, 255]), np.uint8)
            write(mask, rng.choice([mask_png(ids), mask_png(ids.astype(np.uint16) * 300), png(5)]))
        else:
            for path in (home / rng.choice(["SegmentationClass", "Annotations"])).glob("*"):
                path.unlink()
    train, val = ({"sets": [f"Mine/{name}"], **arguments} for name in numbers)
    return config_of(root, "ssdlite_voc", folder, train, val, "voc")


def imagefolder(rng: random.Random, folder: Path, root: Path) -> Config:
    for offset, name in ((0, "train"), (10, "val")):
        for label, kind in enumerate(("cat", "dog")):
            for number in (1, 2):
                write(folder / name / kind / f"{number}.png", png(offset + 2 * label + number))
    arguments: dict[str, Any] = {}
    if rng.random() < 0.25:
        arguments["names"] = rng.choice(
            [["cat", "dog"], ["dog", "cat", "eel"], ["cat"], ["cat", "cat", "dog"], [], ["", "cat"]]
        )
    if rng.random() < 0.25:
        lines = rng.choice(
            [
                "cat a cat\ndog a dog\n",
                "cat a cat\n",
                "cat\n",
                "cat a\ncat b\n",
                "cat x\ndog x\n",
                "\xff",
                "",
                "eel e\n",
            ]
        )
        write(folder / "synsets.txt", lines.encode("latin-1"))
        arguments["synsets"] = rng.choice(["synsets.txt", "synsets.txt", "gone.txt", "../x"])
    for _ in range(rng.choice([0, 1, 1, 2])):
        name, kind = rng.choice(["train", "val"]), rng.choice(["cat", "dog", "eel"])
        choice = rng.randrange(7)
        if choice in (0, 1):
            spoil_file(rng, folder / name / "cat" / rng.choice(["1.png", "3.png"]))
        elif choice == 2:
            for path in (folder / name / kind).glob("*"):
                path.unlink()
        elif choice == 3:
            (folder / name / kind).mkdir(exist_ok=True)
        elif choice == 4:
            write(folder / name / kind / "deep" / rng.choice(["9.JPG", "notes.txt"]), png(40, suffix="JPEG"))
        elif choice == 5:
            for path in folder.glob(f"{name}/{kind}/*.png"):
                path.unlink()
            for path in folder.glob(f"{name}/{kind}"):
                path.rmdir() if not any(path.iterdir()) else None
        else:
            write(folder / name / "stray.png", png(41))
    train, val = ({"images": name, **arguments} for name in ("train", "val"))
    return config_of(root, "mobilenetv2_imagenet", folder, train, val, "imagefolder")


# what both say


def training(config: Config) -> str:
    """Why training stops; empty if it does not."""
    try:
        train = build_dataset(config, "train")
        val = build_dataset(config, "val", train.classes)
        check_classes(config, val, task_classes(config, train))
        check_coverage(train, val, train.classes)
        for dataset in (train, val):
            for index in range(len(dataset)):
                sample = dataset.read(index)
                if "boxes" in sample.target:
                    boxes, (height, width) = sample.target["boxes"], sample.image.shape[:2]
                    assert (boxes[:, :2] < boxes[:, 2:]).all()
                    assert (boxes >= 0).all()
                    assert (boxes <= [width, height, width, height]).all()
    except (ConfigError, DataError) as error:
        return str(error)
    return ""


def checking(config: Config) -> list[str]:
    """Errors of the check, and those that keep it from starting."""
    try:
        findings = judge(config_splits(config), workers=0)[1]
    except (ConfigError, DataError) as error:
        return [str(error)]
    for finding in findings:
        text = json.dumps(finding.to_json())
        assert "\n" not in text
        (finding.file + finding.value + finding.expected).encode()
    return [
        f"{f.kind} {f.split} {f.file}: {f.value}" for f in findings if f.severity == "error" and f.kind != "image_leak"
    ]


Damage = Callable[[random.Random, Path, Path], Config]


def compare(damage: Damage, folder: Path, root: Path) -> None:
    refused = 0
    for seed in range(COUNT):
        config = damage(random.Random(seed), folder / str(seed), root)
        stopped, errors = training(config), checking(config)
        assert bool(stopped) == bool(errors), f"seed {seed}: training says {stopped!r}, the check {errors}"
        assert "\n" not in stopped + "".join(errors)
        refused += bool(stopped)
        shutil.rmtree(folder / str(seed))
    # the generator makes good and bad ones
    assert 0.2 < refused / COUNT < 0.95


@pytest.mark.parametrize("damage", [coco, voc, imagefolder])
def test_the_check_reports_an_error_if_and_only_if_training_refuses(tmp_path: Path, root: Path, damage: Damage):
    compare(damage, tmp_path, root)
