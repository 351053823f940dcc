"""Damaged files of labelling tools: an error line or a right import, and nothing is lost in silence."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from check_tools import item, picture, save, xml
from PIL import Image

from mnv2det.errors import ConfigError, DataError
from mnv2det.importing.import_data import import_data
from mnv2det.labels.base import LabelledBox, LabelledPart, LabelledPicture, Placer
from mnv2det.registry import LABELS

SIZE = (24, 32)
# what replaces a word of a text file
WORDS = ["", "nan", "-1", "1e999", "abc", "0x10", "9" * 40, "\0", "null", "../../x", '"', "<", "1.5", "🙂"]


def coco(folder: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 24, "width": 32} for n in range(1, 6)]
    annotations = [
        {"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [n, 3, 12, 14], "area": 168, "iscrowd": 0}
        for n in range(1, 6)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (folder / "annotations.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}, indent=0)
    )
    for number in range(1, 6):
        save(folder / f"{number}.jpg", picture(number, SIZE), quality=90)


def voc(folder: Path) -> None:
    for number in range(1, 6):
        save(folder / f"{number}.jpg", picture(number, SIZE), quality=90)
        text = xml(item("cat" if number % 2 else "dog", (3, 4, 20, 18)), size=SIZE)
        (folder / f"{number}.xml").write_text(text.replace(">", "> ").replace("<", " <"))


def masks(folder: Path) -> None:
    for number in range(1, 6):
        save(folder / f"images/{number}.jpg", picture(number, SIZE), quality=90)
        ids = np.zeros(SIZE, np.uint8)
        ids[4:18, 3 : 12 + number] = 1
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(ids).save(folder / f"masks/{number}.png")
    (folder / "classes.txt").write_text("background\nroad\n")


def folders(folder: Path) -> None:
    for number in range(1, 7):
        save(folder / f"{'cat' if number % 2 else 'dog'}/{number}.jpg", picture(number, SIZE), quality=90)


def exported(name: str, folder: Path) -> None:
    """Five pictures with a box each, as an export in this format leaves them."""
    pictures = []
    for number in range(1, 6):
        file = folder.parent / "original" / f"{number}.jpg"
        save(file, picture(number, SIZE), quality=90)
        box = LabelledBox("cat" if number % 2 else "dog", (number, 3.0, 12.0 + number, 17.0), area=168.0)
        pictures.append(LabelledPicture(file, file.name, SIZE, [box]))
    LABELS.get(name)().write([LabelledPart("train", pictures, ["cat", "dog"])], folder, Placer())


TOOLS: dict[str, Callable[[Path], None]] = {
    **{"coco": coco, "voc": voc, "masks": masks, "folders": folders},
    **{name: partial(exported, name) for name in ("yolo", "labelme", "csv")},
}


def spoil(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    kind = rng.randrange(6)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif kind == 2 and data:
        spoiled = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
        path.write_bytes(bytes(spoiled))
    elif kind == 3:
        path.rename(path.with_name(f"other {path.name}"))
    else:
        text = data.decode("utf-8", "surrogateescape")
        words = list(re.finditer(r"[\w.-]+", text))
        if words:
            word = rng.choice(words)
            text = text[: word.start()] + rng.choice(WORDS) + text[word.end() :]
        path.write_bytes(text.encode("utf-8", "surrogateescape"))


def check_import(name: str, seed: int, folder: Path) -> str:
    """Imports a damaged data set; the error or what was left out, empty if all came through."""
    rng = random.Random(seed)
    source = folder / "tool"
    source.mkdir()
    TOOLS[name](source)
    for _ in range(rng.randint(1, 3)):
        files = sorted(path for path in source.rglob("*") if path.is_file())
        # labels are what this is about
        labels = [path for path in files if path.suffix != ".jpg"] or files
        spoil(rng, rng.choice(labels if rng.random() < 0.7 else files))
    pictures = {path.relative_to(source).as_posix() for path in source.rglob("*.jpg")}
    try:
        result = import_data(source, folder / "data", test=0, seed=seed, workers=0)
    except (DataError, ConfigError) as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert "\n" not in message
        assert not (folder / "data").exists()
        return message
    kept = {os.path.basename(path) for path in (folder / "data").rglob("*.jpg")}
    listed = {str(entry[key]) for entry in result.left_out for key in ("file", "image")}
    for file in pictures:
        stem = os.path.splitext(os.path.basename(file))[0]
        named = any(os.path.splitext(os.path.basename(other))[0] == stem for other in listed)
        assert os.path.basename(file) in kept or named, f"{file} was lost in silence"
    boxes = sum(count["boxes"] for role, count in result.counts.items() if role != "source")
    lost = result.counts["source"]["boxes"] - boxes
    assert lost <= len(result.left_out)
    return f"{len(result.left_out)} left out" if result.left_out else ""


@pytest.mark.heavy
@pytest.mark.parametrize("name", TOOLS)
def test_nothing_is_lost_in_silence(tmp_path: Path, name: str):
    outcomes: list[str] = []
    for seed in range(100):
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcomes.append(check_import(name, seed, folder))
    assert sum(map(bool, outcomes)) > 20, "the test damages too little"
    assert sum(outcome.endswith("left out") or not outcome for outcome in outcomes) > 20, "it damages too much"


@pytest.mark.slow
@pytest.mark.parametrize("name", TOOLS)
def test_nothing_is_lost_in_silence_in_a_thousand_exports(tmp_path: Path, name: str):
    for seed in range(1000, 2000):
        folder = tmp_path / str(seed)
        folder.mkdir()
        check_import(name, seed, folder)
