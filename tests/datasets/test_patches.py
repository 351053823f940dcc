"""Patches for classification, cut out of pictures with masks."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "datasets"))
import patches  # noqa: E402

from mnv2det.data.formats.imagefolder import ImageFolder  # noqa: E402

OVERRIDES = ["data.train.args.count=3", "data.val.args.count=2"]
CONFIG = str(ROOT / "configs/deeplabv3_shapes.yaml")


def run(out: Path, *more: str) -> int:
    return patches.main([CONFIG, *OVERRIDES, "--out", str(out), "--size", "16", "--per-class", "2", *more])


def test_a_patch_shows_its_class_in_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(tmp_path / "p") == 0
    assert capsys.readouterr().out.startswith("train: ")
    found = ImageFolder(root=tmp_path, images="p/train", names=None).dataset()
    assert "background" in found.classes["label"]
    from mnv2det.config import load_config
    from mnv2det.engine.build import build_dataset

    shapes = build_dataset(load_config(CONFIG, OVERRIDES), "train")
    checked = 0
    for path in (tmp_path / "p/train").rglob("*.png"):
        index, y, x = (int(part) for part in path.stem.split("_"))
        sample, patch = shapes.read(index), cv2.imread(str(path))
        assert patch.shape == (16, 16, 3)
        assert shapes.classes["mask"][sample.target["mask"][y, x]] == path.parent.name
        np.testing.assert_array_equal(patch[8, 8, ::-1], sample.image[y, x])
        checked += 1
    assert checked >= 6


def test_the_same_seed_cuts_the_same(tmp_path: Path):
    files = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run(tmp_path / name, "--seed", seed) == 0
        files.append({path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.png")})
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(ROOT / "configs/mobilenetv2_patches.yaml"), "data.root=.", "--out", "x"], "no such folder"),
        ([str(ROOT / "configs/missing.yaml"), "--out", "x"], "missing.yaml"),
        ([CONFIG, "--out", "there"], "is there already"),
        ([CONFIG, "--out", "x", "--size", "2"], "--size must be at least 8"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert patches.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patches.cv2, "imwrite", lambda *_: False)
    assert run(tmp_path / "p") == 2
    assert list(tmp_path.iterdir()) == []
