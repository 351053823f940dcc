"""A format that no file of the package knows is trained on, checked and cleaned."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from check_tools import picture, save
from tiny import TINY

from mnv2det.cli import main
from mnv2det.registry import DATASETS

pytestmark = pytest.mark.training

LINES = {
    "train": ["1.jpg cat 5 6 25 30", "1.jpg dog 30 6 50 30", "2.jpg cat 5 6 25 30", "3.jpg dog 8 8 40 30", "4.jpg"],
    "val": ["5.jpg cat 5 6 25 30", "6.jpg dog 30 6 50 30"],
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good data set in the toy format, which is registered for this test alone."""
    monkeypatch.setattr(DATASETS, "_components", dict(DATASETS._components))
    spec = importlib.util.spec_from_file_location("toy_format", Path(__file__).with_name("toy_format.py"))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    folder = tmp_path / "data"
    for name, lines in LINES.items():
        for line in lines:
            file = line.split()[0]
            save(folder / name / file, picture(int(file[0])), quality=90)
        (folder / name / "boxes.txt").write_text("\n".join(lines))
    return folder


def spoil(data: Path, *lines: str) -> None:
    with (data / "train/boxes.txt").open("a") as file:
        file.write("".join(f"\n{line}" for line in lines))


def arguments(root: Path, data: Path) -> list[str]:
    """A config of generated shapes, of which the data sets are replaced."""
    overrides = [word for word in TINY if not word.startswith("data.train.args") and "data.val.args" not in word]
    overrides += [f"data.{name}={{name: toy_lines, args: {{lines: {name}/boxes.txt}}}}" for name in LINES]
    return [str(root / "configs/ssdlite_shapes.yaml"), f"data.root={data}", *overrides]


def train(root: Path, data: Path, run: Path, *overrides: str) -> int:
    return main(
        [
            "train",
            *arguments(root, data),
            "train.steps=2",
            "optim.warmup_steps=0",
            "data.workers=0",
            *overrides,
            "--out",
            str(run),
        ]
    )


def check(root: Path, data: Path, *options: str) -> tuple[int, list[dict[str, Any]]]:
    path = data.parent / "findings.json"
    code = main(["data", "check", *arguments(root, data), "--workers", "1", "--json", str(path), *options])
    return code, json.loads(path.read_text())["findings"]


def test_it_trains(root: Path, data: Path, tmp_path: Path):
    assert train(root, data, tmp_path / "run") == 0
    assert (tmp_path / "run/last.pt").is_file()


FAULTS = [
    ("2.jpg cat 70 3 90 9", "box_outside", "2.jpg: box [70.0, 3.0, 90.0, 9.0] has no area in the 60x40 image"),
    ("2.jpg cat 9 3 9 9", "box_no_area", "annotation 6: box 9 3 9 9 has no area"),
    ("2.jpg cat 1 2 x", "box_malformed", "line 6: expected PICTURE CLASS X1 Y1 X2 Y2, got '2.jpg cat 1 2 x'"),
    ("7.jpg cat 1 2 9 9", "image_missing", "7.jpg: cannot read the image"),
]


@pytest.mark.parametrize(("line", "kind", "message"), FAULTS, ids=[kind for _, kind, _ in FAULTS])
def test_training_refuses_what_the_check_reports_and_the_copy_is_good(
    root: Path, data: Path, tmp_path: Path, capsys, line: str, kind: str, message: str
):
    spoil(data, line)
    assert train(root, data, tmp_path / "run", "train.steps=6") == 2
    assert message in capsys.readouterr().err
    code, findings = check(root, data, "--fix", str(tmp_path / "clean"))
    assert code == 1
    assert [finding["kind"] for finding in findings if finding["severity"] == "error"] == [kind]
    assert check(root, tmp_path / "clean")[0] == 0
    assert (tmp_path / "clean/train/boxes.txt").read_text().splitlines() == LINES["train"]


def test_skip_leaves_out_the_box_and_names_it(root: Path, data: Path, tmp_path: Path, capsys):
    spoil(data, "2.jpg cat 9 3 9 9")
    assert train(root, data, tmp_path / "run", "data.bad_data=skip") == 0
    assert "left out: " in (text := capsys.readouterr().err)
    assert "annotation 6: box 9 3 9 9 has no area" in text


def test_a_box_beyond_the_border_is_clipped_in_the_copy(root: Path, data: Path, tmp_path: Path):
    spoil(data, "2.jpg cat 40 3 80 9")
    assert check(root, data, "--fix", str(tmp_path / "clean"))[0] == 0
    assert (tmp_path / "clean/train/boxes.txt").read_text().splitlines() == [*LINES["train"], "2.jpg cat 40 3 60 9"]
