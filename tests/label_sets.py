"""Small labelled pictures for tests of label formats, and what their readers make of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from mnv2det.data.formats.records import Records
from mnv2det.errors import DataError
from mnv2det.labels.base import LabelFormat, LabelledBox, LabelledPart, LabelledPicture, Placer, Recognised, Tree

NAMES = ["helmet", "no", "größe 2", "007"]


def picture(path: Path, width: int = 64, height: int = 48, rotated: bool = False) -> Path:
    """Writes a picture; rotated is stored lying and stands upright by its EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (width, height, 3) if rotated else (height, width, 3)
    image = Image.fromarray(np.full(shape, 90, np.uint8))
    exif = Image.Exif()
    if rotated:
        exif[0x0112] = 6
    image.save(path, exif=exif)
    return path


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def recognised(label_format: LabelFormat, folder: Path) -> Recognised:
    answer = label_format.recognise(Tree(folder))
    assert isinstance(answer, Recognised), answer
    return answer


def read(label_format: LabelFormat, folder: Path) -> dict[str, Records]:
    """The records of each split by its role."""
    return {part.role: part.format.read() for part in recognised(label_format, folder).parts}


def boxes_of(records: Records) -> dict[str, list[tuple[str, list[float], bool]]]:
    """Class, corners and flag of each box, by picture."""
    boxes = records.boxes
    listed: dict[str, list[tuple[str, list[float], bool]]] = {picture.file: [] for picture in records.pictures}
    for row in range(len(boxes)):
        entry = (boxes.names[boxes.label[row]], boxes.corners[row].tolist(), bool(boxes.ignore[row]))
        listed[records.pictures[boxes.image[row]].file].append(entry)
    return listed


def kinds(records: Records) -> list[str]:
    return [problem.kind for problem in records.all_problems()]


def messages(records: Records) -> str:
    return "\n".join(problem.message for problem in records.all_problems())


def random_parts(folder: Path, rng: random.Random, ignored: bool = False) -> list[LabelledPart]:
    """A training and a validation split with boxes of odd coordinates; one picture is empty, one EXIF-rotated."""
    parts = []
    for role, names in (("train", ["a.png", "yard 1/b.jpg", "yard 1/c.png"]), ("val", ["d.png", "e.png"])):
        pictures = []
        for name in names:
            width, height = rng.randint(20, 90), rng.randint(20, 90)
            source = picture(folder / role / name, width, height, rotated=name.endswith("jpg"))
            boxes = []
            for _ in range(0 if name == "e.png" else rng.randint(1, 4)):
                x, y = rng.uniform(0, width - 4), rng.uniform(0, height - 4)
                corners = (x, y, rng.uniform(x + 2, width), rng.uniform(y + 2, height))
                boxes.append(LabelledBox(rng.choice(NAMES), corners, ignored and rng.random() < 0.3))
            pictures.append(LabelledPicture(source, name, (height, width), boxes))
        parts.append(LabelledPart(role, pictures, NAMES))  # type: ignore[arg-type]
    return parts


def assert_comes_back(label_format: LabelFormat, parts: list[LabelledPart], target: Path, ignored: bool) -> None:
    """What is written is recognised, and read with the same classes and boxes to 0.01 pixel."""
    target.mkdir()
    label_format.write(parts, target, Placer())
    splits = read(label_format, target)
    assert list(splits) == [part.role for part in parts]
    for part in parts:
        records = splits[part.role]
        assert not records.all_problems()
        listed = boxes_of(records)
        assert len(listed) == len(part.pictures)
        for expected in part.pictures:
            (match,) = [boxes for file, boxes in listed.items() if f"/{file}".endswith(f"/{expected.name}")]
            (size,) = [p.size for p in records.pictures if p.file.endswith(f"/{expected.name}")]
            assert size == expected.size
            wanted = [(box.name, box.corners, box.ignore) for box in expected.boxes if ignored or not box.ignore]
            assert [(name, flag) for name, _, flag in match] == [(name, flag) for name, _, flag in wanted]
            for (_, corners, _), (_, corners_wanted, _) in zip(match, wanted, strict=True):
                np.testing.assert_allclose(corners, corners_wanted, rtol=0, atol=0.01)


def replaced_lines(path: Path, rng: random.Random) -> None:
    """Cuts a line of a text file, or replaces one of its words: what an editor or a broken script does."""
    lines = path.read_text("utf-8").split("\n")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    number = rng.choice(filled)
    line = lines[number]
    if rng.random() < 0.4:
        lines[number] = line[: rng.randint(1, len(line))].strip() or "x"
    else:
        separator = rng.choice(" ,:")
        words = line.split(separator)
        words[rng.randrange(len(words))] = rng.choice(
            ["nan", "inf", "-1", "1e99", "x", '"', "", "../../etc/passwd", "9" * 5000, "None", "[[", "0.0.1", "\udcff"]
        )
        # a line that is gone altogether leaves no trace
        lines[number] = separator.join(words).strip() or "x"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))


def flipped_bytes(path: Path, rng: random.Random) -> None:
    """Changes some bytes, or cuts the file."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.3 else data)


def damaged(folder: Path, suffixes: tuple[str, ...], rng: random.Random) -> Iterator[Path]:
    """The non-empty files with one of these suffixes, in random order."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in suffixes and path.stat().st_size > 1)
    rng.shuffle(files)
    yield from files


def assert_survives_damage(
    label_format: LabelFormat, folder: Path, line_files: tuple[str, ...], byte_files: tuple[str, ...]
) -> None:
    """200 damaged data sets: an error of one line, or records in which every box is read or has a problem.

    Args:
        label_format: The format.
        folder: An empty folder.
        line_files: Suffixes of the files whose lines are cut or replaced.
        byte_files: Suffixes of the files whose bytes change; there a whole file may be lost with one problem.
    """
    rng, parts, written, read_whole = random.Random(1), [], 0, 0
    for number in range(200):
        target, lines = folder / str(number), number % 2 == 0
        if number % 40 == 0:
            parts = random_parts(folder / f"source{number}", rng)
            written = sum(len(picture.boxes) for part in parts for picture in part.pictures)
        target.mkdir()
        label_format.write(parts, target, Placer(link=True))
        files = damaged(target, line_files if lines else byte_files, rng)
        for path in islice(files, rng.randint(1, 3)):
            (replaced_lines if lines else flipped_bytes)(path, rng)
        error, left_aside = "", False
        try:
            answer = label_format.recognise(Tree(target))
            records = [] if isinstance(answer, str) else [part.format.read() for part in answer.parts]
            left_aside = isinstance(answer, Recognised) and bool(answer.remarks)  # a whole file, and that is said
        except DataError as caught:
            records, error = [], str(caught)
        assert "\n" not in error
        if lines and records and not left_aside:
            read_whole += 1
            assert sum(len(part.boxes) + len(part.problems) for part in records) >= written, target
    assert read_whole > 40
