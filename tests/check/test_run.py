"""The data check as a whole: configs, anchors, the verb; hostile files."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from check_tools import Coco, Voc, found, item, kinds, picture, save, two_parts, write, xml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from mnv2det.check.anchor_fit import best_iou, default_detector, to_input
from mnv2det.check.pool import parallel
from mnv2det.check.run import Report, check_data
from mnv2det.cli import main
from mnv2det.errors import ConfigError, DataError
from mnv2det.ops.matcher import match
from mnv2det.structures import Preprocess

# configs


CONFIG = ["configs/ssdlite_bccd.yaml", "model.weights=null", "model.freeze=null", "data.train.args.sets=[Mine/train]"]


def of_config(root: Path, checkout: Path, *overrides: str, **options: Any) -> Report:
    source, *rest = CONFIG
    given = [*rest, f"data.root={root}", "data.val.args.sets=[Mine/val]", *overrides]
    return check_data(checkout / source, given, workers=1, **options)


def test_a_config_is_checked_with_its_own_anchors(tmp_path: Path, root: Path):
    voc = Voc(tmp_path)
    voc.annotate("p3", xml(item("bird"), item("dog", (50, 9, 70, 20))))
    report = of_config(voc.write(), root)
    assert report.anchors is not None
    assert (report.anchors.input_size, report.anchors.fit) == ((288, 384), "stretch")
    assert report.anchors.anchors == 36 * 48 * 2 + (18 * 24 + 9 * 12 + 5 * 6 + 3 * 3) * 4
    assert kinds(report.findings) == ["box_beyond"]
    held = of_config(voc.root, root, "data.train.args.names=[cat,dog]")
    assert kinds(held.findings) == ["box_beyond", "class_unknown"]
    assert of_config(voc.root, root, size=(96, 128)).anchors.input_size == (96, 128)  # type: ignore[union-attr]


def test_weights_that_are_not_there_are_named(tmp_path: Path, root: Path):
    report = of_config(Voc(tmp_path).write(), root, "model.weights=gone.safetensors")
    assert report.remarks == ["gone.safetensors: not there; anchors are those of the config alone"]


def test_generated_data_is_checked_through_its_own_loader(root: Path):
    overrides = ["data.train.args.count=12", "data.val.args.count=4", "data.val.args.split=train"]
    report = check_data(root / "configs/joint_shapes.yaml", overrides, workers=1)
    assert kinds(report.findings) == ["image_leak"] * 4
    metrics = report.to_json()["splits"]["train"]
    assert metrics["boxes"] > 0
    assert sum(metrics["mask_pixels"].values()) == 12 * 128 * 128
    with pytest.raises(ConfigError, match="no files to copy"):
        check_data(root / "configs/joint_shapes.yaml", overrides, workers=1, fix="x")


def test_segmentations_matter_where_masks_are_wanted(tmp_path: Path, root: Path):
    train, val = two_parts(tmp_path)
    for part in (train, val):
        for entry in part.annotations:
            entry["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    train.annotations[0]["segmentation"] = [[1, 1]]
    del train.annotations[1]["segmentation"]
    folder = write(train, val)
    overrides = [f"data.root={folder}", "model.weights=null"]
    for part in (train, val):
        overrides += [
            f"data.{part.name}.args.annotations=annotations/instances_{part.name}.json",
            f"data.{part.name}.args.images={part.name}",
        ]
    assert found(folder) == []
    report = check_data(
        root / "configs/joint_coco.yaml",
        [*overrides, "data.train.args.masks=coco", "data.val.args.masks=coco"],
        workers=1,
    )
    assert kinds(report.findings) == ["segmentation_broken"] * 2


def test_one_file_for_two_parts_cannot_be_fixed(tmp_path: Path, root: Path):
    voc = Voc(tmp_path / "data")
    voc.write()
    with pytest.raises(ConfigError, match="two parts are read from"):
        of_config(voc.root, root, "data.val.args.sets=[Mine/train]", fix=tmp_path / "clean")


# anchors


def test_the_share_without_an_anchor_is_that_of_the_matcher():
    detector = default_detector((320, 320))
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 280, (60, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + rng.uniform(4, 200, (60, 2))], axis=1)).float()
    best = best_iou(detector.anchors, boxes)
    torch.testing.assert_close(best, box_iou(boxes, detector.anchors).amax(dim=1))
    flags = torch.ones(60, 1, dtype=torch.bool)
    matched = match(detector.anchors, boxes[:, None], flags, ~flags)
    # a box that no anchor reaches has the one it forces
    assert (((matched == 0).sum(dim=1) > 1) <= (best >= detector.threshold)).all()
    assert 10 < int((best < detector.threshold).sum()) < 50


@pytest.mark.parametrize(
    ("fit", "expected"),
    [("stretch", [40, 10, 80, 20]), ("letterbox", [40, 20, 80, 40]), ("pad", [20, 10, 40, 20])],
)
def test_boxes_come_to_the_input_as_pictures_do(fit: Any, expected: list[float]):
    preprocess = Preprocess((80, 320), fit=fit)
    # two of a picture of 80x160; letterbox may double neither side
    sizes = np.array([[80, 160]])
    corners = np.array([[20.0, 10, 40, 20]])
    if fit == "letterbox":
        preprocess, sizes = Preprocess((160, 400), fit=fit), np.array([[80, 160]])
    np.testing.assert_allclose(to_input(corners, sizes, preprocess), [expected])


def test_boxes_that_no_anchor_fits_are_told(tmp_path: Path):
    train, val = two_parts(tmp_path)
    for number in range(1, 9):
        for offset in range(4):
            train.box(number, [3 + 12 * offset, 30, 2, 2])
    report = check_data(write(train, val), workers=1)
    gaps = [finding.value for finding in report.findings if finding.kind == "anchor_gap"]
    assert gaps == [
        "67% of 48 boxes have no anchor of IoU 0.5 or more",
        "'cat': 80% of 40 boxes",
    ]
    assert report.anchors is not None
    side = 2 * (320 / 60 * 320 / 40) ** 0.5
    assert report.anchors.side_without == pytest.approx([side] * 5, abs=0.1)
    # anchors are relative to the input: a larger one does not help
    large = check_data(tmp_path, workers=1, size=(640, 640)).anchors
    assert large is not None
    assert large.without == report.anchors.without
    assert large.side_without == pytest.approx([2 * side] * 5, abs=0.1)


# the verb


def test_exit_codes_report_and_json(tmp_path: Path, capsys):
    train, val = two_parts(tmp_path / "data")
    root = write(train, val)
    assert main(["data", "check", str(root), "--workers", "1"]) == 0
    assert main(["data", "check", str(root), "--workers", "1", "--strict"]) == 1  # rare classes
    for number in range(9):
        train.box(1, [3 + number, 3, 0, 9])
    write(train, val)
    capsys.readouterr()
    path = tmp_path / "findings.json"
    arguments = ["data", "check", str(root), "--workers", "1", "--limit-per-kind", "2"]
    assert main([*arguments, "--json", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "error: boxes without area (box_no_area: 9)" in printed
    assert printed.count("'cat' [") == 2
    assert f"and 7 more (see {path})" in printed
    assert "train: COCO json annotations/instances_train.json, images in train" in printed
    data = json.loads(path.read_text())
    assert data["format"] == 1
    assert data["counts"]["error"] == data["kinds"]["box_no_area"]["count"] == 9
    assert sum(row["kind"] == "box_no_area" for row in data["findings"]) == 9
    assert data["splits"]["train"]["images"] == 8
    assert data["anchors"]["boxes"] == 16
    assert data["fixed"] is None
    assert main([*arguments, "--allow", "box_no_area"]) == 0
    assert main([*arguments, "--allow", "box_no_aera"]) == 2
    assert "did you mean 'box_no_area'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gone"], "gone: no such config or folder"),
        ([".", "a=1"], "is a folder; overrides such as 'a=1' are for a config"),
        (["a.json"], "a.json: expected a config (.yaml) or a folder of data"),
        (["empty"], "no labels recognised in 0 pictures among 0 files; expected one of these formats: "),
        (["empty", "--workers", "0"], "--workers 0: expected at least 1"),
        (["empty", "--size", "8", "8"], "--size 32"),
        (["empty", "--mask-classes", "0"], "--mask-classes must be from 1 to 255"),
    ],
)
def test_users_mistakes_are_one_line(tmp_path: Path, monkeypatch, capsys, arguments: list[str], expected: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.json").write_text("{}")
    assert main(["data", "check", *arguments]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1


def test_fix_is_told(tmp_path: Path, capsys):
    train, val = two_parts(tmp_path / "data")
    train.box(1, [3, 3, 0, 9])
    train.categories.append({"id": 3, "name": "Cats"})
    target = tmp_path / "clean"
    assert main(["data", "check", str(write(train, val)), "--workers", "1", "--fix", str(target)]) == 1
    printed = capsys.readouterr().out
    assert f"cleaned copy: {target}" in printed
    assert "1 x boxes without area: annotation left out" in printed
    assert "left for you, unchanged in the copy:" in printed
    assert "class names that may be one (1)" in printed


@pytest.mark.process
def test_interrupt_ends_all_processes(root: Path):
    command = [sys.executable, "tools/data.py", "check", "configs/ssdlite_shapes.yaml", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "data.train.args.count=1000000"], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and len(children.read_text().split()) < 2:
        time.sleep(0.05)
    workers = [int(child) for child in children.read_text().split()]
    time.sleep(0.5)
    try:
        # Python loses a signal that arrives while an object is being destroyed; who waits presses again
        for _ in range(6):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, printed = process.communicate(timeout=15)
                break
    finally:
        process.kill()
    assert process.returncode == 130
    assert printed == "mnv2det: interrupted\n"
    assert not any(os.path.exists(f"/proc/{child}") for child in workers)


def _interrupt_parent(job: int) -> int:
    if job == 40:
        os.kill(os.getppid(), signal.SIGINT)
    return job


@pytest.mark.process
def test_an_interrupt_of_the_pool_leaves_no_process_and_the_handler_as_it_was():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        parallel(_interrupt_parent, range(10**6), 2, desc="jobs", unit="job")
    assert signal.getsignal(signal.SIGINT) is before
    assert multiprocessing.active_children() == []


# whatever is in the files, it ends in findings or in one line

JSON_VALUE: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PLACES = ("images", "annotations", "categories")


@pytest.mark.heavy
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), st.integers(0, 7), st.data())
def test_no_json_breaks_the_check(tmp_path: Path, place: str, number: int, data: st.DataObject):
    if not (tmp_path / "train").exists():
        two_parts(tmp_path)
    part = Coco.__new__(Coco)
    part.root, part.json = tmp_path, tmp_path / "annotations" / "instances_train.json"
    part.images = [{"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 60} for n in range(1, 9)]
    part.annotations = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[1, 1, 2, 1, 2, 2]]}
        for n in range(1, 9)
    ]
    part.categories = [{"id": n, "name": str(n)} for n in range(1, 9)]
    entry = getattr(part, place)[number]
    if data.draw(st.booleans()):
        getattr(part, place)[number] = data.draw(JSON_VALUE)
    else:
        entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(JSON_VALUE)
    part.write()
    try:
        report = check_data(tmp_path, workers=1)
    except DataError as error:
        if "\n" in str(error):
            raise
        return
    text = json.dumps(report.to_json())
    assert json.loads(text)["splits"]["train"]["images"] >= 7
    for finding in report.findings:
        (finding.file + finding.value + finding.expected).encode()
    shutil.rmtree(tmp_path / "clean", ignore_errors=True)
    # the copy of what can be copied is no worse
    if len(report.parts[0].split.records.pictures) > 0:
        check_data(tmp_path, workers=1, fix=tmp_path.parent / f"{tmp_path.name}_clean")
        shutil.rmtree(tmp_path.parent / f"{tmp_path.name}_clean")


# folders of classes


def of_classes(root: Path, checkout: Path, *overrides: str, **options: Any) -> Report:
    given = [f"data.root={root}", "data.train.args={images: train, synsets: null}"]
    given += ["data.val.args={images: val, synsets: null}", *overrides]
    return check_data(checkout / "configs/mobilenetv2_imagenet.yaml", [*given, "model.weights=null"], **options)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for part, first in (("train", 1), ("val", 11)):
        for number in range(first, first + 4):
            save(tmp_path / "data" / part / ("cat" if number % 2 else "dog") / f"{number}.jpg", picture(number))
    return tmp_path / "data"


def test_good_folders_of_classes_have_no_finding(classes: Path, root: Path):
    report = of_classes(classes, root)
    assert report.findings == []
    assert report.to_json()["splits"]["val"]["images"] == 4


def test_folders_of_classes_are_checked_by_file(classes: Path, root: Path, tmp_path: Path):
    (classes / "train/cat/1.jpg").write_bytes(b"no picture")
    (classes / "train/eel").mkdir()
    save(classes / "val/cta/9.jpg", picture(9))
    report = of_classes(classes, root, fix=tmp_path / "clean")
    said = [(finding.kind, finding.severity, finding.split, finding.file) for finding in report.findings]
    assert said == [
        ("class_unknown", "error", "val", "val/cta"),
        ("image_broken", "error", "train", "train/cat/1.jpg"),
        ("folder_empty", "warning", "train", "train/eel"),
    ]
    assert report.findings[0].expected == "'cat'"
    val = ("cat/11", "cat/13", "dog/12", "dog/14")
    copied = sorted(path.relative_to(tmp_path / "clean").as_posix() for path in (tmp_path / "clean").rglob("*.jpg"))
    assert copied == ["train/cat/3.jpg", "train/dog/2.jpg", "train/dog/4.jpg", *(f"val/{name}.jpg" for name in val)]


@pytest.mark.parametrize(
    ("name", "expected"), [("dgo", "'dgo'; expected 'dog'"), ("x", "'x'; expected one of cat, dog")]
)
def test_a_class_that_is_not_expected_is_said_in_a_sentence(tmp_path: Path, capsys, name: str, expected: str):
    voc = Voc(tmp_path)
    voc.annotate("p4", xml(item(name), item("dog")))
    assert main(["data", "check", str(voc.write())]) == 1
    assert f": {expected}\n" in capsys.readouterr().out


# what the check passed although training refuses it


def test_ids_that_are_no_whole_numbers_or_strings_are_errors(tmp_path: Path):
    train, val = two_parts(tmp_path)
    train.images[0]["id"] = 1.5
    assert "annotation_broken" in found(write(train, val), "error")


def test_a_least_number_of_pixels_that_no_image_has_is_an_error(tmp_path: Path, root: Path):
    train, val = two_parts(tmp_path)
    for part in (train, val):
        for entry in part.annotations:
            entry["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    folder = write(train, val)
    given = [f"data.root={folder}", "model.weights=null"]
    for name in ("train", "val"):
        arguments = f"annotations: annotations/instances_{name}.json, images: {name}, masks: coco, least_pixels: 9000"
        given.append(f"data.{name}.args={{{arguments}}}")
    report = check_data(root / "configs/joint_coco.yaml", given, workers=1)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert [finding.kind for finding in errors] == ["images_none"] * 2
    assert errors[0].value.startswith("no image has 9000 pixels of a mask's class, at most ")


def test_boxes_drawn_twice_are_a_warning(tmp_path: Path):
    train, val = two_parts(tmp_path)
    train.box(1, train.annotations[0]["bbox"])
    assert found(write(train, val), "error") == []
    assert found(tmp_path, "warning") == ["box_duplicate"]
