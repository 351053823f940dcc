"""Data sets as labelling tools, shells and file systems leave them: read, checked and copied alike."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from check_tools import Voc, item, kinds, picture, two_parts, write, xml
from PIL import Image

from mnv2det.check.run import Report, check_data
from mnv2det.cli import main
from mnv2det.commands.evaluate_files import read_truth
from mnv2det.config import load_config
from mnv2det.data.formats.coco import CocoJson
from mnv2det.data.formats.voc import VOC
from mnv2det.engine.build import build_dataset
from mnv2det.engine.coverage import check_coverage
from mnv2det.errors import DataError
from mnv2det.evaluation.coco import CocoAP
from mnv2det.structures import Detections


def errors(report: Report) -> list[str]:
    return kinds(report.findings, "error")


def names_below(folder: Path, pattern: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if path.is_file())


# VOC's layout


def unusual_names(root: Path) -> Voc:
    """Names in folders, with spaces and numbers, and pictures of several suffixes."""
    voc = Voc(root)
    for number, stem in enumerate(("north/000", "south/000", "yard 0", "yard 1", "a.b")):
        voc.add("train", stem, picture(200 + number))
    for stem, suffix in (("p0", ".JPG"), ("p1", ".jpeg"), ("p2", ".png")):
        path = voc.home / f"JPEGImages/{stem}.jpg"
        Image.open(path).save(path.with_suffix(suffix))
        path.unlink()
    voc.write()
    return voc


def test_the_copy_keeps_pictures_of_unusual_names(tmp_path: Path):
    voc = unusual_names(tmp_path / "data")
    assert errors(check_data(voc.root, workers=0, fix=tmp_path / "clean")) == []
    assert names_below(tmp_path / "clean", "*") == names_below(voc.root, "*")
    before, after = (VOC(root=root, sets=("Mine/train",)).dataset() for root in (voc.root, tmp_path / "clean"))
    ids = [before.image_id(index) for index in range(len(before))]
    assert ids == ["p0", "p1", "p2", "p3", "north/000", "south/000", "yard 0", "yard 1", "a.b"]
    assert [after.image_id(index) for index in range(len(after))] == ids


def test_a_second_picture_of_a_name_is_one_warning(tmp_path: Path):
    voc = Voc(tmp_path / "data")
    Image.fromarray(picture(77)).save(voc.home / "JPEGImages/p0.png")
    report = check_data(voc.write(), workers=0, fix=tmp_path / "clean")
    problems = [finding for finding in report.findings if finding.kind == "image_ambiguous"]
    assert [(f.severity, f.file, f.value) for f in problems] == [
        ("warning", "VOCdevkit/Mine/JPEGImages/p0.png", "p0.jpg is read instead")
    ]
    assert "p0.jpg" in [Path(name).name for name in names_below(tmp_path / "clean", "*.*")]


def test_a_folder_of_two_homes_may_have_a_name_twice(tmp_path: Path):
    voc = Voc(tmp_path / "data")
    voc.write()
    shutil.copytree(voc.home, voc.home.with_name("Other"))
    report = check_data(voc.root, workers=0, fix=tmp_path / "clean")
    assert errors(report) == []
    pictures = report.parts[0].split.records.pictures
    assert [p.id for p in pictures] == [f"VOCdevkit/{home}/p{n}" for home in ("Mine", "Other") for n in range(4)]
    assert names_below(tmp_path / "clean", "*") == names_below(voc.root, "*")
    lists = [path.read_text() for path in (tmp_path / "clean").rglob("train.txt")]
    assert lists == ["p0\np1\np2\np3\n"] * 2


def coco_metrics_of(data: Any) -> dict[str, float]:
    """Metrics of detections that are a few pixels off, more in each further image."""
    evaluator = CocoAP(classes=data.classes["labels"])
    for index in range(len(data)):
        target = data.target(index)
        boxes = torch.from_numpy(target["boxes"]) + 2 * index
        scores = torch.linspace(0.9, 0.5, len(boxes))
        evaluator.update(data.image_id(index), Detections(boxes, scores, torch.from_numpy(target["labels"])), target)
    return evaluator.compute()


def test_metrics_do_not_depend_on_the_folders_that_pictures_lie_in(tmp_path: Path):
    voc = Voc(tmp_path)
    for split, stems in (("train", ("n/0", "n/1", "s/0", "s/1")), ("val", ("q0", "q1", "q2", "q3"))):
        voc.lists[split] = []
        for number, stem in enumerate(stems):
            voc.add(split, stem, picture(number), xml(item("cat", (5 + number, 5, 40, 30)), item("dog")))
    voc.write()
    nested, flat = (coco_metrics_of(VOC(root=tmp_path, sets=(f"Mine/{name}",)).dataset()) for name in ("train", "val"))
    assert nested == flat
    assert 0 < flat["AP"] < 1


# COCO's json


def test_ids_that_are_strings_are_printed_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, val = two_parts(tmp_path / "data")
    for entry in train.images:
        entry["id"] = f"im\n\0{entry['id']}"
    for entry in train.annotations:
        entry["image_id"], entry["id"] = f"im\n\0{entry['image_id']}", f"a\x1b[2J{entry['id']}"
    train.annotations[0]["bbox"] = [0, 0, 0, 0]
    root = write(train, val)
    assert errors(check_data(root, workers=0, fix=tmp_path / "clean")) == ["box_no_area"]
    assert errors(check_data(tmp_path / "clean", workers=0)) == []
    assert main(["data", "check", str(root)]) == 1
    printed = capsys.readouterr().out
    assert r"annotation a\x1b[2J1: 'cat' [0, 0, 0, 0]" in printed
    assert all(line.isprintable() for line in printed.splitlines())
    with pytest.raises(DataError) as error:
        CocoJson(train.json, train.folder).dataset()
    assert str(error.value).isprintable()


# the cases of ../shared/data/cases


def check_case(folder: Path, config: str, *overrides: str, **options: Any) -> Report:
    return check_data(folder / config, [f"data.root={folder}", *overrides], workers=0, **options)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("case", "images"), [("c01", (8, 6)), ("c02", (4, 2)), ("c03", (4, 2)), ("c04", (4, 2)), ("c13", (6, 2))]
)
def test_cases_in_the_layout_of_voc_are_read_and_copied(shared: Path, tmp_path: Path, case: str, images: tuple[int]):
    report = check_case(shared / "cases" / case, "det.yaml", fix=tmp_path / "clean")
    assert errors(report) == []
    assert tuple(len(part.split.records.pictures) for part in report.parts) == images
    again = check_case(shared / "cases" / case, "det.yaml", f"data.root={tmp_path}/clean")
    boxes = [[len(part.split.records.boxes) for part in of.parts] for of in (report, again)]
    assert boxes[0] == boxes[1]
    assert min(boxes[0]) > 0


@pytest.mark.shared
def test_case_of_one_name_in_two_folders(shared: Path):
    root = shared / "cases/c01"
    nested, flat = (VOC(root=root, sets=(f"Yard/{name}",)).dataset() for name in ("nested", "val"))
    assert nested.image_id(3) == "south/000"
    assert coco_metrics_of(nested) == coco_metrics_of(flat)


@pytest.mark.shared
def test_case_of_a_hidden_folder_of_classes(shared: Path):
    folder = shared / "cases/c07"
    report = check_case(folder, "cls.yaml")
    assert kinds(report.findings, "error", "note") == ["folder_hidden"]
    data = build_dataset(load_config(folder / "cls.yaml", [f"data.root={folder}"]), "train")
    assert data.classes == {"label": ["dry", "wet"]}
    assert np.unique([data.target(index)["label"] for index in range(len(data))]).tolist() == [0, 1]


# in case folder c11: errors of training and of the check; the other jsons have none
REFUSED = {
    "catnames_int": {"class_broken", "class_unknown"},
    "dupcat": {"class_broken"},
    "emptybbox": {"box_malformed"},
    "minus1size": {"image_size"},
    "nosize": {"image_size"},
    "segempty_nobbox": {"box_malformed"},
    "strbbox": {"box_malformed"},
}


@pytest.mark.shared
def test_cases_of_jsons_mean_the_same_to_check_training_copy_and_evaluation(shared: Path, tmp_path: Path):
    folder = shared / "cases/c11"
    for path in sorted(folder.glob("*.json")):
        if path.stem == "val":
            continue
        pictures = "pics" if path.stem == "backslash2" else "pics/train"
        given = [f"data.root={folder}", "data.val.args={annotations: val.json, images: pics/val}"]
        given.append(f"data.train.args={{annotations: {path.name}, images: {pictures}}}")
        clean = tmp_path / path.stem
        report = check_data(folder / "det.yaml", given, workers=0, fix=clean)
        split = next(part.split for part in report.parts if part.split.name == "train")
        found = set(errors(report))
        assert found == REFUSED.get(path.stem, set()), path.stem
        if found:
            with pytest.raises(DataError):
                build_dataset(load_config(folder / "det.yaml", given), "train")
        else:
            data = build_dataset(load_config(folder / "det.yaml", given), "train")
            truth = read_truth(path)
            assert len(data) == len(truth.images)
            assert set(truth.images) == {data.image_id(index) for index in range(len(data))}
            assert len(truth.boxes.image) == sum(len(data.target(index)["boxes"]) for index in range(len(data)))
        copied = json.loads((clean / path.name).read_bytes())
        assert len(copied["images"]) >= 6
        assert len(split.records.pictures) == len(copied["images"])
        assert len(names_below(clean, "pics/train/*")) == 6


@pytest.mark.shared
@pytest.mark.parametrize("config", ["det.yaml", "seg.yaml"])
def test_case_of_nothing_but_crowds(shared: Path, config: str):
    folder = shared / "cases/c12"
    assert errors(check_case(folder, config)) == ["crowds_only"] * 2
    with pytest.raises(
        DataError, match=r"boxes are crowds \(iscrowd 1\): ignored; crowds=objects takes them as objects$"
    ):
        build_dataset(load_config(folder / config, [f"data.root={folder}"]), "train")
    taken = ["data.train.args.crowds=objects", "data.val.args.crowds=objects"]
    assert errors(check_case(folder, config, *taken)) == []


@pytest.mark.shared
def test_case_of_a_category_called_background(shared: Path):
    folder = shared / "cases/c61"
    assert errors(check_case(folder, "seg.yaml")) == []
    data = build_dataset(load_config(folder / "seg.yaml", [f"data.root={folder}"]), "train")
    assert data.classes["mask"] == ["background", "brick", "leaf"]


@pytest.mark.shared
def test_case_of_masks_of_0_and_255(shared: Path):
    folder = shared / "cases/c06"
    report = check_case(folder, "seg.yaml")
    assert [(f.kind, f.split) for f in report.findings] == [("mask_binary", "train")]
    config = load_config(folder / "seg.yaml", [f"data.root={folder}"])
    with pytest.raises(DataError, match=r"^data\.train: no pixel has id 1 \('block'\), but 22% have 255 = ignore"):
        check_coverage(build_dataset(config, "train"), build_dataset(config, "val"), ["mask"])


@pytest.mark.shared
def test_case_of_validation_pictures_without_a_box(shared: Path):
    folder = shared / "cases/c10"
    report = check_case(folder, "det.yaml")
    assert [(f.split, f.value) for f in report.findings if f.kind == "part_unannotated"] == [
        ("val", "no boxes to measure")
    ]
    config = load_config(folder / "det.yaml", [f"data.root={folder}"])
    notes = check_coverage(build_dataset(config, "train"), build_dataset(config, "val"), ["labels"])
    assert notes == ["data.val: no boxes to measure"]
