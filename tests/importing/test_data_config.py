"""The config that an import writes: what it chooses, and that it trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_tools import picture, save
from PIL import Image

from mnv2det.cli import main
from mnv2det.config import Config, load_config
from mnv2det.engine.build import check
from mnv2det.errors import ConfigError
from mnv2det.importing.data_config import input_size, suggest_config
from mnv2det.importing.fit_anchors import DEFAULT, coverage, fit_levels
from mnv2det.importing.import_data import import_data
from mnv2det.importing.start import Start, find_weights, given_weights
from mnv2det.io import CONFIG
from mnv2det.labels.base import LabelledBox, LabelledPart, LabelledPicture
from mnv2det.models.build import assemble
from mnv2det.models.weight_file import save_weights
from mnv2det.structures import Preprocess


def part(
    sides: dict[str, tuple[float, float]], *, count: int = 40, size: tuple[int, int] = (300, 400), role: Any = "train"
) -> LabelledPart:
    """Pictures with a box of every class, of these widths and heights and a little around them."""
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(count):
        boxes = []
        for name, (width, height) in sides.items():
            w, h = np.array([width, height]) * rng.uniform(0.9, 1.1, 2)
            x, y = rng.uniform(0, size[1] - w), rng.uniform(0, size[0] - h)
            boxes.append(LabelledBox(name, (x, y, x + w, y + h), area=w * h))
        pictures.append(LabelledPicture(Path(f"{number}.jpg"), f"{number}.jpg", size, boxes))
    return LabelledPart(role, pictures, list(sides))


def config_of(tmp_path: Path, data: LabelledPart, **options: Any) -> Config:
    (tmp_path / CONFIG).write_text(suggest_config([data], tmp_path, **options).text)
    return load_config(tmp_path / CONFIG)


def test_the_input_has_the_shape_of_the_pictures():
    assert input_size([(300, 400)] * 3, "balanced", 0.3) == (288, 384)
    assert input_size([(400, 300)] * 3, "balanced", 0.3) == (384, 288)
    assert input_size([(100, 1000)], "balanced", 0.3) == input_size([(100, 200)], "balanced", 0.3)


def test_small_objects_get_a_larger_input_but_not_without_end():
    usual, small, tiny = (input_size([(400, 400)], "balanced", share)[0] for share in (0.3, 0.035, 0.001))
    assert usual == 320
    assert 14 / 0.035 - 16 <= small <= 14 / 0.035 + 16
    assert tiny == 480


def test_fast_is_smaller_and_shorter_and_accurate_is_not(tmp_path: Path):
    data = part({"cat": (100, 80)})
    configs = {speed: config_of(tmp_path, data, speed=speed) for speed in ("fast", "balanced", "accurate")}
    areas = {speed: np.prod(config.model.input_size) for speed, config in configs.items()}
    assert areas["fast"] < areas["balanced"] < areas["accurate"]
    steps = {speed: config.train.steps for speed, config in configs.items()}
    assert steps["fast"] < steps["balanced"] < steps["accurate"]


def test_small_classes_get_a_fine_level_and_large_ones_do_not(tmp_path: Path):
    small = config_of(tmp_path, part({"bolt": (20, 20), "plate": (150, 150)}))
    large = config_of(tmp_path, part({"plate": (150, 150)}))
    assert small.tasks["det"].head.args["taps"][0] == "block7.expand/8"
    assert large.tasks["det"].head.args["taps"][0] == "block14.expand/16"


@pytest.mark.parametrize("shape", [(12, 90), (90, 12), (10, 10)])
def test_anchors_fit_boxes_that_the_published_ones_do_not(shape: tuple[float, float]):
    rng = np.random.default_rng(0)
    boxes = np.array(shape) * rng.uniform(0.85, 1.15, (200, 2))
    levels = fit_levels(boxes, ["x"] * 200, (320, 320))
    assert coverage(levels, boxes, (320, 320)) == 1.0
    assert coverage(DEFAULT, boxes, (320, 320)) < 0.6
    assert len(levels.anchors) == len(levels.taps) + len(levels.extras)
    assert all(levels.anchors)


def test_a_rare_class_has_its_own_anchor():
    rng = np.random.default_rng(0)
    boxes = np.concatenate([np.array([100, 100]) * rng.uniform(0.5, 2, (2000, 2)), np.full((20, 2), (15.0, 120.0))])
    levels = fit_levels(boxes, ["common"] * 2000 + ["pole"] * 20, (320, 320))
    assert coverage(levels, boxes[2000:], (320, 320)) == 1.0


@pytest.mark.parametrize(
    ("name", "flip"), [("cat", 0.5), ("left_hand", 0.0), ("Arrow", 0.0), ("license plate", 0.0), ("template", 0.5)]
)
def test_classes_that_a_mirror_would_change_are_not_mirrored(tmp_path: Path, name: str, flip: float):
    assert config_of(tmp_path, part({name: (50, 50)})).data.augment.args["flip"] == flip


@pytest.mark.parametrize("count", [1, 5, 40, 3000])
def test_the_config_is_valid_whatever_the_number_of_pictures(tmp_path: Path, count: int):
    config = config_of(tmp_path, part({"cat": (90, 90)}, count=count))
    check(config)
    assert config.optim.warmup_steps < config.train.steps


def test_what_the_data_has_not_cannot_be_learned(tmp_path: Path):
    with pytest.raises(ConfigError, match="--tasks seg: the data has a mask or outline on no picture; it can be det"):
        suggest_config([part({"cat": (9, 9)})], tmp_path, tasks=["seg"])


@pytest.mark.parametrize("name", ['a "b" #1', "yes", "1e3", "Ключ", "a: b"])
def test_strange_class_names_and_folders_stay_what_they_are(tmp_path: Path, name: str):
    folder = tmp_path / name.replace("/", "_")
    folder.mkdir()
    config = config_of(folder, part({name: (50, 50)}))
    assert config.data.root == str(folder)
    masks = LabelledPart("train", [LabelledPicture(Path("a"), "a.jpg", (40, 60))], [], ["background", name])
    assert config_of(folder, masks).data.train.args["mask_names"] == ["background", name]


def detections(folder: Path) -> None:
    for number in range(12):
        save(folder / f"p{number}.jpg", picture(number), quality=90)
        (folder / f"p{number}.xml").write_text(
            "<annotation><size><width>60</width><height>40</height></size><object><name>cat</name><bndbox><xmin>5</xmin>"
            "<ymin>5</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object></annotation>"
        )


def masks(folder: Path) -> None:
    for number in range(12):
        save(folder / f"images/p{number}.jpg", picture(number), quality=90)
        ids = np.zeros((40, 60), np.uint8)
        ids[10:30, 10:40] = 1
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(ids).save(folder / f"masks/p{number}.png")


def both(folder: Path) -> None:
    home = folder / "VOCdevkit/Mine"
    detections(home / "JPEGImages")
    (home / "Annotations").mkdir()
    for xml in list((home / "JPEGImages").glob("*.xml")):
        xml.rename(home / "Annotations" / xml.name)
    masks(folder / "tmp")
    (folder / "tmp/masks").rename(home / "SegmentationClass")
    for left in (folder / "tmp/images").iterdir():
        left.unlink()


def classes(folder: Path) -> None:
    for number in range(12):
        save(folder / f"{'cat' if number % 2 else 'dog'}/p{number}.jpg", picture(number), quality=90)


@pytest.mark.training
@pytest.mark.parametrize(
    ("make", "tasks", "metric"),
    [
        (detections, [], "det/AP50"),
        (masks, [], "seg/mIoU"),
        (both, ["det", "seg"], "seg/mIoU"),
        (classes, [], "cls/top1"),
    ],
    ids=["boxes", "masks", "both", "classes"],
)
def test_import_and_train_need_no_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, make: Any, tasks: list[Any], metric: str
):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "tool")
    import_data(tmp_path / "tool", "data", tasks=tasks, test=0)
    assert "weights: null" in (tmp_path / "data" / CONFIG).read_text()
    tiny = [
        *("model.input_size=[64, 64]", "model.backbone.args.width=0.35", "data.workers=0", "data.batch_size=4"),
        *("train.steps=2", "optim.warmup_steps=0", "train.amp=fp32", "train.eval_every=1"),
    ]
    if make is masks:
        tiny.append("data.augment.args.crop=[48, 48]")
    assert main(["train", "data", *tiny]) == 0
    assert metric in capsys.readouterr().out
    assert (tmp_path / "runs/data/best.safetensors").is_file()


def detector_file(path: Path, taps: list[str]) -> str:
    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35}},
        {"det": {"name": "ssdlite", "args": {"taps": taps, "extras": [16] * (6 - len(taps))}}},
        classes={"det": ["cat"]},
        preprocess=Preprocess((64, 64)),
    )
    save_weights(path, model.state_dict(), model.header())
    return str(path)


COARSE, FINE = ["block14.expand/16", "last/32"], ["block7.expand/8", "block14.expand/16", "last/32"]


def test_a_detector_to_start_from_brings_its_anchors_and_more_pixels(tmp_path: Path):
    detector = detector_file(tmp_path / "d.safetensors", COARSE)
    data = part({"cat": (120, 90)})
    own, given = (
        config_of(tmp_path, data, start=Start("w", None)),
        config_of(tmp_path, data, start=Start("w", detector)),
    )
    assert (own.model.weights, given.model.weights) == ("w", detector)
    assert "anchors" in own.tasks["det"].head.args
    assert "anchors" not in given.tasks["det"].head.args
    assert np.prod(given.model.input_size) > 1.3 * np.prod(own.model.input_size)
    assert given.train.steps < own.train.steps


@pytest.mark.parametrize(("taps", "taken"), [(COARSE, False), (FINE, True)])
def test_small_objects_take_only_a_detector_with_a_fine_level(tmp_path: Path, taps: list[str], taken: bool):
    detector = detector_file(tmp_path / "d.safetensors", taps)
    suggestion = suggest_config([part({"bolt": (20, 20), "plate": (150, 150)})], tmp_path, start=Start("w", detector))
    (tmp_path / CONFIG).write_text(suggestion.text)
    assert (load_config(tmp_path / CONFIG).model.weights == detector) == taken
    refused = f"not started from the detector {detector}: objects of"
    assert any(line.startswith(refused) for line in suggestion.lines) != taken


def test_weights_are_looked_for_where_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    assert find_weights() == Start(None, None)
    kept = tmp_path / "home/hub/checkpoints/mobilenet_v2-b0353104.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"")
    assert find_weights() == Start("imagenet", None)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/broken.safetensors").write_bytes(b"broken")
    detector = detector_file(tmp_path / "weights/d.safetensors", COARSE)
    assert find_weights() == Start("imagenet", detector)
    kept.unlink()
    assert find_weights() == Start(detector, detector)
    assert given_weights(detector) == Start(detector, detector)
    assert given_weights("imagenet") == Start("imagenet", None)


@pytest.mark.training
def test_the_config_says_how_long_its_training_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.chdir(tmp_path)
    detections(tmp_path / "tool")
    assert main(["data", "import", "tool", "-o", "data", "--fast", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"config: about \d+ minutes of training on this machine, from 3 timed steps", out)
    assert "config: starts from random weights" in out
    assert re.search(r"# \d+ passes .*; about \d+ minutes on the machine", (tmp_path / "data" / CONFIG).read_text())
    assert load_config(tmp_path / "data" / CONFIG).data.root == str(tmp_path / "data")
    assert main(["data", "import", "tool", "-o", "data", "--fast", "--workers", "1"]) == 0
    assert "about" in capsys.readouterr().out  # the second run only reads what the first found out


def test_weights_that_are_not_there_are_named_with_the_nearest_match(tmp_path: Path):
    detections(tmp_path / "tool")
    with pytest.raises(ConfigError, match="--weights imagnet: no such file; did you mean 'imagenet'"):
        import_data(tmp_path / "tool", tmp_path / "data", weights="imagnet")
