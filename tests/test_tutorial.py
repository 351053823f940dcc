"""The commands of docs/tutorial.md run as they are printed, here on a few of its pictures."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mnv2det.commands.import_weights import import_weights


def few(source: Path, target: Path, lists: str, picks: dict[str, list[str]]) -> None:
    """A devkit of a few pictures, with their labels and lists."""
    for split, names in picks.items():
        (target / lists).mkdir(parents=True, exist_ok=True)
        (target / lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
            for name in names:
                for file in (source / folder).glob(f"{name}.*"):
                    (target / folder).mkdir(exist_ok=True)
                    shutil.copyfile(file, target / folder / file.name)


@pytest.mark.shared
@pytest.mark.heavy
def test_every_command_of_the_tutorial_runs_as_printed(shared: Path, root: Path, tmp_path: Path):
    cells = {"train": [0, 2, 3, 4], "val": [1, 6], "test": [8]}
    few(
        shared / "bccd/VOCdevkit/BCCD",
        tmp_path / "cells/VOCdevkit/BCCD",
        "ImageSets/Main",
        {split: [f"BloodImage_{number:05d}" for number in numbers] for split, numbers in cells.items()},
    )
    street = shared / "camvid/VOCdevkit/CamVid"
    lists = "ImageSets/Segmentation"
    some = {
        split: (street / lists / f"{split}.txt").read_text().split()[::60][:4] for split in ("train", "val", "test")
    }
    few(street, tmp_path / "street/VOCdevkit/CamVid", lists, some)
    import_weights(
        shared / "weights/tf2_mobilenet_v2_1.0_224_ptq.tflite",
        tmp_path / "weights/mobilenet_v2.safetensors",
        images=shared / "coco100/val2017",
        limit=8,
        progress=False,
    )
    done = subprocess.run(
        [sys.executable, str(root / "docs/run_tutorial.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for file in ("runs/cells/model-int8.onnx", "runs/street/model-int8.onnx", "out/predictions.csv"):
        assert (tmp_path / file).is_file()
    assert "config: starts from weights/mobilenet_v2.safetensors" in done.stdout


def test_the_tutorial_shows_what_each_command_printed(root: Path):
    page = (root / "docs/tutorial.md").read_text()
    outputs = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert len(outputs) >= 10
    assert all(output.strip() for output in outputs), "make tutorial has not run since this command was added"
    for figure in re.findall(r"\]\((figures/[\w.-]+)\)", page):
        assert (root / "docs" / figure).is_file()


def test_brackets_in_commands_are_quoted_for_every_shell(root: Path):
    """zsh, the shell of macOS, takes a bare [ for a pattern of file names."""
    pages = [
        root / "README.md",
        root / "CONTRIBUTING.md",
        root / "datasets/README.md",
        *sorted((root / "docs").glob("*.md")),
    ]
    commands = 0
    for page in pages:
        for block in re.findall(r"```(?:sh|bash)?\n(.*?)```", page.read_text(), re.DOTALL):
            if "<<'END'" in block:
                continue
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"\$? *(mnv2det|tools/|pip|torchrun|make|python|pytest|source)\b", line):
                    bare = re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", line)
                    assert not re.search(r"[\[\]?]", bare), f"{page.name}: {line}"
                    commands += 1
    assert commands > 60
