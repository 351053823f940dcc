"""The parts of the data check; tests/check/test_run.py has it as a whole."""

import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_tools import Coco, Voc, jpeg, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mnv2det.check.boxes import check_boxes, close_pairs
from mnv2det.check.files import PictureFacts, PictureFiles, inspect
from mnv2det.check.findings import Finding
from mnv2det.check.folder import recognise
from mnv2det.check.pool import Crash, parallel
from mnv2det.check.split import Split
from mnv2det.data.formats.coco import CocoJson
from mnv2det.data.formats.problems import shown
from mnv2det.data.formats.voc import VOC
from mnv2det.errors import DataError


def judged(split: Split) -> list[Finding]:
    """Findings of annotations alone, boxes judged by the sizes stated."""
    problems = [split.of_problem(problem) for problem in split.records.problems]
    return problems + check_boxes(split, split.records.sizes())[0]


# pictures and masks


def lying_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def inspect_in_pool(folder: Path, *contents: bytes) -> list[PictureFacts]:
    jobs = []
    for number, data in enumerate(contents):
        jobs.append(PictureFiles(folder / f"{number}.jpg"))
        jobs[-1].file.write_bytes(data)
    return parallel(inspect, jobs, 2, desc="", unit="")


def noisy(size: tuple[int, int] = (200, 300)) -> bytes:
    return jpeg(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))


def test_a_good_picture_has_no_problem_and_a_size(tmp_path: Path):
    fact = inspect_in_pool(tmp_path, noisy())[0]
    assert (fact.problem, fact.complaint, fact.size, fact.stored) == (None, "", (200, 300), (200, 300))


def test_truncated_pictures_are_broken(tmp_path: Path):
    data = noisy()
    cut_inside = data[: len(data) // 2] + b"\xff\xd9"  # ends properly, but rows are missing: decoders make them up
    zeros = data[: len(data) // 2] + bytes(len(data) // 2)
    facts = inspect_in_pool(tmp_path, data[: len(data) // 2], cut_inside, zeros, data[:-2], b"", b"junk", data)
    # training fills the missing rows as the decoder does: a warning, unlike what it refuses
    kinds = [fact.problem[0] if fact.problem else fact.complaint for fact in facts]
    assert kinds[:1] + kinds[2:] == ["image_broken"] * 5 + [""]
    assert "premature end" in kinds[1]
    assert "truncated" in facts[0].problem[1]


def test_what_a_decoder_prints_is_its_own_files(tmp_path: Path):
    data = noisy()
    bad = data[: len(data) // 2] + b"\xff\xd9"
    facts = inspect_in_pool(tmp_path, *[bad if number % 3 == 0 else data for number in range(40)])
    assert [fact.complaint != "" for fact in facts] == [number % 3 == 0 for number in range(40)]


@pytest.mark.parametrize("size", [(50000, 50000), (65000, 65000), (13500, 13500)])
def test_a_huge_claim_is_not_decoded(tmp_path: Path, size: tuple[int, int]):
    (tmp_path / "a.png").write_bytes(lying_png(*size))
    start = time.process_time()
    fact = inspect(PictureFiles(tmp_path / "a.png"))
    assert fact.problem[0] == "image_broken"
    assert "not decoded" in fact.problem[1]
    assert time.process_time() - start < 5  # decoding would take gigabytes, too


def test_missing_special_and_misnamed_files(tmp_path: Path):
    (tmp_path / "there.JPG").write_bytes(noisy())
    os.mkfifo(tmp_path / "pipe.jpg")
    names = ["gfact.jpg", "there.jpg", "pipe.jpg", "x" * 300 + ".jpg", "\ud800.jpg"]
    problems = [inspect(PictureFiles(tmp_path / name)).problem for name in names]
    assert {kind for kind, _ in problems} == {"image_missing"}
    assert problems[1][1] == "no such file; there is there.JPG"


def test_a_rotated_picture_has_two_sizes(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(1)).save(tmp_path / "a.jpg", exif=exif)
    fact = inspect(PictureFiles(tmp_path / "a.jpg"))
    assert (fact.size, fact.stored) == ((60, 40), (40, 60))


def test_masks_are_counted(tmp_path: Path):
    ids = np.zeros((4, 5), np.uint8)
    ids[0], ids[1, 0] = 255, 3
    Image.fromarray(ids).save(tmp_path / "m.png")
    Image.fromarray(ids.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    Image.new("RGB", (5, 4)).save(tmp_path / "rgb.png")
    (tmp_path / "junk.png").write_bytes(b"junk")
    masks = {
        name: inspect(PictureFiles(None, tmp_path / f"{name}.png")).mask
        for name in ("m", "deep", "rgb", "junk", "gone")
    }
    assert masks["m"].counts == {0: 14, 3: 1, 255: 5}
    assert masks["m"].size == (4, 5)
    assert masks["deep"].counts == {0: 14, 900: 1, 76500 % 65536: 5}
    assert all(masks[name].problem for name in ("rgb", "junk", "gone"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(0, 2000), st.booleans())
def test_no_file_breaks_the_look(tmp_path: Path, junk: bytes, place: int, keep: bool):
    good = jpeg(picture(3))
    place %= len(good)
    (tmp_path / "a.jpg").write_bytes(good[:place] + junk + (good[place:] if keep else b""))
    (tmp_path / "a.png").write_bytes(lying_png(60, 40)[: place // 8] + junk)
    fact = inspect(PictureFiles(tmp_path / "a.jpg", tmp_path / "a.png"))
    assert (fact.problem is None) == (fact.fingerprint is not None)
    assert fact.mask is not None


# processes


def _square(number: int) -> int:
    if number == 37:
        os._exit(9)
    return number * number


def test_a_job_that_kills_its_process_costs_only_itself():
    results = parallel(_square, range(100), 2, desc="", unit="")
    assert isinstance(results[37], Crash)
    assert [result for number, result in enumerate(results) if number != 37] == [n * n for n in range(100) if n != 37]


def _die(number: int) -> int:
    os._exit(9)


def test_processes_that_all_die_are_an_error():
    with pytest.raises(DataError, match="processes died"):
        parallel(_die, range(100), 2, desc="x", unit="")


@pytest.mark.parametrize("workers", [0, 2])
def test_work_is_done_where_processes_have_no_groups(monkeypatch, workers: int):
    monkeypatch.delattr(os, "setpgrp")  # as on Windows
    assert parallel(abs, range(-40, 0), workers, desc="", unit="") == list(range(40, 0, -1))


def test_nothing_to_do():
    assert parallel(_die, [], 2, desc="", unit="") == []


# boxes


def read_split(data: Coco) -> Split:
    return Split("train", "train", data.root, CocoJson(data.json, data.folder).read())


def split_of(boxes: list[Any], tmp_path: Path, **other: Any) -> Split:
    data = Coco(tmp_path)
    data.annotations.clear()
    for box in boxes:
        data.box(1, box[:4], category_id=box[4] if len(box) > 4 else 1, **other)
    data.write()
    return read_split(data)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([5, 5, 10, 10], []),
        ([0, 0, 60, 40], []),
        ([-1, -0.5, 62, 41.4], []),  # rounding, or a tool that counts from 0
        ([5, 5, 0, 10], ["box_no_area"]),
        ([5, 5, 10, -3], ["box_no_area"]),
        ([10, 5, 1e-9, 5], ["box_no_area"]),
        ([60, 5, 10, 10], ["box_outside"]),
        ([-20, 5, 20, 10], ["box_outside"]),
        ([50, 5, 11.5, 10], ["box_beyond"]),
        ([5, -3, 10, 10], ["box_beyond"]),
    ],
)
def test_boxes_by_the_border(tmp_path: Path, box: list[float], expected: list[str]):
    assert [finding.kind for finding in judged(split_of([box], tmp_path))] == expected


def test_boxes_drawn_twice(tmp_path: Path):
    first = [5, 5, 20, 20]
    findings = judged(split_of([first, [6, 5, 20, 20], first, [*first, 7], [5, 5.5, 20, 20.5], first], tmp_path))
    again = [(f.annotation, f.value) for f in findings if f.kind == "box_duplicate"]
    assert again == [(3, "'cat' [5, 5, 20, 20], as annotation 1"), (6, "'cat' [5, 5, 20, 20], as annotation 1")]
    similar = {f.annotation: f.value for f in findings if f.kind == "box_similar"}
    assert set(similar) == {2, 5}
    assert "of annotation 1: IoU 0.93" in similar[5]
    assert [f.annotation for f in findings if f.kind == "box_two_classes"] == [4]


def test_crowds_may_lie_on_anything(tmp_path: Path):
    split = split_of([[5, 5, 20, 20]], tmp_path)
    data = Coco(tmp_path)
    data.annotations.clear()
    data.box(1, [5, 5, 20, 20])
    data.box(1, [5, 5, 20, 20], iscrowd=1)
    data.write()
    split = read_split(data)
    assert [finding.kind for finding in judged(split)] == ["crowd"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_close_pairs_are_those_of_all_with_all(seed: int, count: int):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 3, count)
    low = rng.integers(0, 6, (count, 2)).astype(float)
    corners = np.concatenate([low, low + rng.integers(8, 14, (count, 2))], axis=1)
    low, high = (
        np.maximum(corners[:, None, :2], corners[None, :, :2]),
        np.minimum(corners[:, None, 2:], corners[None, :, 2:]),
    )
    shared = np.clip(high - low, 0, None).prod(-1)
    area = (corners[:, 2:] - corners[:, :2]).prod(-1)
    iou = shared / (area[:, None] + area[None] - shared)
    wanted = {(i, j) for i in range(count) for j in range(i) if image[i] == image[j] and iou[i, j] >= 0.7}
    pairs = close_pairs(image, corners, 0.7)
    assert {(max(i, j), min(i, j)) for i, j, _ in pairs} == wanted
    assert all(abs(value - iou[i, j]) < 1e-9 for i, j, value in pairs)


# what a folder is


def test_voc_folders_are_recognised_at_any_level(tmp_path: Path):
    voc = Voc(tmp_path / "root")
    voc.write()
    for folder in (voc.root, voc.root / "VOCdevkit", voc.home):
        parts, aside = recognise(folder)
        assert [(name, role) for name, role, _ in parts] == [("train", "train"), ("val", "val")]
        assert aside == []


def test_a_voc_folder_without_lists_is_one_part(tmp_path: Path):
    voc = Voc(tmp_path)
    parts, aside = recognise(voc.root)
    assert [name for name, _, _ in parts] == ["all"]
    assert [finding.kind for finding in aside] == ["lists_missing"]
    assert len(parts[0].format.read().pictures) == 6


def test_the_suffixes_of_the_pictures_are_found(tmp_path: Path):
    voc = Voc(tmp_path)
    voc.write()
    for number, suffix in enumerate((".JPEG", ".png", ".JPG", ".jpg")):
        path = voc.home / f"JPEGImages/p{number}.jpg"
        path.rename(path.with_suffix(suffix))
    pictures = recognise(voc.root)[0][0].format.read().pictures
    assert [Path(picture.file).name for picture in pictures] == ["p0.JPEG", "p1.png", "p2.JPG", "p3.jpg"]


def test_coco_jsons_find_their_pictures(tmp_path: Path):
    for name, first in (("val", 11), ("train", 1)):
        Coco(tmp_path, name, first).write()
    (tmp_path / "annotations" / "captions_val.json").write_text("{}")
    (tmp_path / "package.json").write_bytes(b"\xff\0junk")
    parts, aside = recognise(tmp_path)
    found = [(name, role, form.images.name) for name, role, form in parts]
    assert found == [("train", "train", "train"), ("val", "val", "val")]
    assert [finding.kind for finding in aside] == ["json_skipped"] * 2


def test_pictures_beside_their_json(tmp_path: Path):
    for name, first in (("train", 1), ("valid", 11)):
        data = Coco(tmp_path, name, first)
        data.json = data.folder / "_annotations.coco.json"
        data.write()
    found = [(name, form.images) for name, _, form in recognise(tmp_path)[0]]
    assert found == [("train", tmp_path / "train"), ("val", tmp_path / "valid")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "no list 'images' at the top"),
        ("", "not a json file"),
        ('{"images": [], "annotations": [], "categories": []}', "none of its images is in a folder"),
        ('{"images": [{"file_name": "x.jpg"}], "annotations": [], "categories": []}', "such as 'x.jpg'"),
        ('{"images": [' * 1000, "no"),
        ("9" * 5000, "not a json file"),
    ],
)
def test_one_line_says_what_was_expected(tmp_path: Path, text: str, reason: str):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError) as error:
        recognise(tmp_path)
    assert "no labels recognised" in str(error.value)
    assert reason in str(error.value)
    assert "expected" in str(error.value)
    assert "\n" not in str(error.value)


# hostile texts


def test_an_entity_bomb_is_one_fault(tmp_path: Path):
    bomb = "<!DOCTYPE a [" + "".join(f'<!ENTITY x{n} "{f"&x{n - 1};" * 10}">' for n in range(1, 9)) + "]>"
    voc = Voc(tmp_path)
    voc.annotate("p0", f"{bomb}<annotation>&x8;</annotation>")
    voc.write()
    records = VOC(root=tmp_path, sets=("Mine/train",)).read()
    assert [(problem.kind, problem.index) for problem in records.problems] == [("annotation_broken", 0)]


def test_values_are_shown_printable_and_short():
    assert shown("a\x1b[31m\n\ud800") == r"a\x1b[31m\n\ud800"
    assert len(shown("x" * 999)) == 63
    assert shown({"a": 1}) == "{'a': 1}"
