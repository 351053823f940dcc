"""A label format registered from outside is recognised, imported and exported like the package's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest
from check_tools import picture, save
from label_tools import boxes

from mnv2det.errors import DataError
from mnv2det.importing.export_data import export_data
from mnv2det.importing.import_data import import_data
from mnv2det.labels.base import LabelFormat, LabelledPart, Part, Placer, Recognised, Tree, role_of
from mnv2det.registry import DATASETS, LABELS


class ToyLabels(LabelFormat):
    """A file ``lines.txt``, or one for each split, with a line for each box."""

    expected = "a file train.lines or the like"

    def recognise(self, tree: Tree) -> Recognised | str:
        files = tree.with_suffix(".lines")
        if not files:
            return "no .lines"
        parts = [Part(file, role_of(file), DATASETS.get("toy_lines")(root=tree.root, lines=file)) for file in files]
        return Recognised("toy_labels", f"lines in {', '.join(files)}", parts)

    def write(self, parts: Sequence[LabelledPart], target: Path, place: Placer) -> list[str]:
        for part in parts:
            lines = []
            for entry in part.pictures:
                place(entry.source, target / entry.name)
                lines += [f"{entry.name} {box.name} {' '.join(map(str, box.corners))}" for box in entry.boxes]
            (target / f"{part.role}.lines").write_text("\n".join(lines))
        return []


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both formats are registered for one test alone."""
    for registry in (DATASETS, LABELS):
        monkeypatch.setattr(registry, "_components", dict(registry._components))
    spec = importlib.util.spec_from_file_location("toy_format", Path(__file__).with_name("toy_format.py"))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    LABELS.register("toy_labels")(ToyLabels)


def tool(folder: Path) -> Path:
    for number in range(6):
        save(folder / f"p{number}.jpg", picture(number), quality=90)
    for role, numbers in (("train", range(4)), ("val", range(4, 6))):
        (folder / f"{role}.lines").write_text("".join(f"p{n}.jpg cat 5 6 30 25.5\n" for n in numbers))
    return folder


@pytest.mark.usefixtures("registered")
def test_import_and_export_know_a_format_of_somebody_else(tmp_path: Path):
    source = tool(tmp_path / "tool")
    result = import_data(source, tmp_path / "data")
    assert (result.counts["train"], result.counts["val"]) == ({"pictures": 4, "boxes": 4}, {"pictures": 2, "boxes": 2})
    assert boxes(tmp_path / "data")["p0"] == [("cat", [5.0, 6.0, 30.0, 25.5], False)]
    assert export_data(tmp_path / "data", tmp_path / "out", name="toy_labels") == []
    assert boxes(tmp_path / "out") == boxes(tmp_path / "data")


def test_without_it_the_folder_has_no_labels(tmp_path: Path):
    with pytest.raises(DataError, match="no labels recognised in 6 pictures among 8 files"):
        import_data(tool(tmp_path / "tool"), tmp_path / "data")
