import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mnv2det.cli import main
from mnv2det.errors import ConfigError
from mnv2det.models.counting import multiply_adds
from mnv2det.paper import values as paper_values
from mnv2det.paper.document import draw_figures, trade_off, update_regions
from mnv2det.paper.format import Column, Table, Value, as_data, as_markdown, as_text
from mnv2det.paper.memory import blocks, convolutions, image, largest, peak
from mnv2det.paper.tables import TABLES, V1, V2, bare, build, build_backbone, choose, compute
from mnv2det.report.plots import draw_ablations, spiral, through_relu

pytestmark = pytest.mark.heavy

Tables = dict[str, list[Table]]


@pytest.fixture(scope="module")
def found() -> Tables:
    return {key: compute(key) for key in choose([])}


def here(found: Tables, key: str, row: str, column: str) -> float:
    """A computed value, in its column's unit."""
    (number,) = [
        value.here / head.unit
        for group in found.values()
        for table in group
        if table.key == key
        for name, head, value in table.cells()
        if (name, head.name) == (row, column)
    ]
    return number


def test_every_value_is_the_papers_or_explained_and_no_other_is_explained(found: Tables):
    explained = set(paper_values.NOTES)
    differing = {(table.key, *cell) for group in found.values() for table in group for cell in table.disagreements()}
    assert differing == explained
    computed = [value for group in found.values() for t in group for _, _, value in t.cells() if None not in value]
    assert len(computed) > 120


@pytest.mark.parametrize(
    ("key", "row", "column", "value", "within"),
    [
        ("2", "all", "params K", 3504.872, 1e-3),
        ("2", "all", "MAdds M", 300.774, 1e-3),
        ("2", "1 x 1280 / classifier", "params K", 1281.0, 1e-3),
        ("3", "112", "V1 KB", 1605.632, 1e-3),
        ("3", "112", "V2 KB", 401.408, 1e-3),
        ("3", "max", "V1 KB", 1605.632, 1e-3),
        ("3", "max", "V2 KB", 401.408, 1e-3),
        ("4", "MobileNetV1", "params M", 4.231976, 1e-6),
        ("4", "MobileNetV1", "MAdds M", 568.74, 0.01),
        ("4", "MobileNetV2 (1.4)", "MAdds M", 582.2, 0.05),
        ("4.1", "0.35 / 96", "MAdds M", 11.93, 0.01),
        ("5", "SSD", "params M", 14.777, 5e-4),
        ("5", "SSD", "MAdds B", 1.259, 5e-4),
        ("5", "SSDLite", "params M", 2.113, 5e-4),
        ("5", "SSDLite", "MAdds B", 0.178, 5e-4),
        ("6", "MNet V1 + SSDLite", "params M", 5.101, 5e-4),
        ("6", "MNet V1 + SSDLite", "MAdds B", 1.309, 5e-4),
        ("6", "MNet V2 + SSDLite", "params M", 4.337, 5e-4),
        ("6", "MNet V2 + SSDLite", "MAdds B", 0.789, 5e-4),
        ("7", "MNet V2 / 16", "params M", 2.114, 5e-4),
        ("7", "MNet V2 / 16", "MAdds B", 2.741, 5e-4),
        ("7", "MNet V2 / 8 / MF", "MAdds B", 152.33, 0.01),
        ("7", "MNet V2 / 16 / ASPP", "params M", 4.524, 5e-4),
        ("7", "MNet V2 / 16 / ASPP", "MAdds B", 5.364, 5e-4),
        ("7", "MNet V2 / 16 / ASPP", "MAdds B as TensorFlow", 5.82, 0.01),
        ("7", "MNet V2 / 8 / ASPP MF", "MAdds B as TensorFlow", 387.5, 0.05),
        ("7", "MNet V1 / 16 / ASPP", "MAdds B as TensorFlow", 14.23, 0.01),
        ("7", "MNet V1 / 8 / ASPP MF", "MAdds B as TensorFlow", 990.8, 0.05),
    ],
)
def test_computed_numbers_are_the_papers(found: Tables, key: str, row: str, column: str, value: float, within: float):
    assert here(found, key, row, column) == pytest.approx(value, abs=within)


def test_the_architecture_is_table_2(found: Tables):
    table, widths = found["2"]
    assert [tuple(labels) for labels, _ in table.rows[:9]] == [row[:2] for row in paper_values.TABLE_2]
    # 17 bottlenecks; with the first and the last convolution they are the text's 19
    assert sum(int(row[4]) for row in paper_values.TABLE_2 if row[1] == "bottleneck") == 17
    assert [labels[0] for labels, _ in widths.rows] == ["1.4", "1.3", "1.0", "0.75", "0.5", "0.35"]
    # "we apply width multiplier to all layers except the very last convolutional layer"
    assert [values[-1].here for _, values in widths.rows] == [1792, 1664, 1280, 1280, 1280, 1280]


def test_table_3s_other_channels_are_those_of_a_network_that_halves_elsewhere():
    side, most = 112, {}
    for channels in (16, 24, 32, 64, 96, 160, 320):
        side //= 2 if channels in (24, 64, 96, 320) else 1
        most[side] = channels
    assert {side: str(c) for side, c in most.items()} == {
        side: row[1][0] for side, row in paper_values.TABLE_3.items() if side > 1
    }


def test_tables_7s_ratio_in_the_text_asks_for_tensorflows_count(found: Tables):
    resnet = float(paper_values.TABLE_7["ResNet-101", 8, True, True][2])
    assert round(resnet / here(found, "7", "MNet V1 / 8 / ASPP MF", "MAdds B as TensorFlow"), 1) == 4.9
    assert round(resnet / float(paper_values.TABLE_7["MNet V1", 8, True, True][2]), 1) != 4.9


def test_agreement_is_less_than_one_of_the_last_digit_or_a_hundredth():
    column = Column("M", 1e6)
    assert column.agrees(Value("3.4", 3.49e6))
    assert not column.agrees(Value("3.4", 3.51e6))
    assert column.agrees(Value("300", 302.9e6))
    assert not column.agrees(Value("300", 303.1e6))
    assert column.agrees(Value(None, 5.0))
    assert column.agrees(Value("5", None))
    exact = Column("channels", exact=True)
    assert exact.agrees(Value("1280", 1280))
    assert not exact.agrees(Value("1280", 1281))


def test_counting_without_norms_counts_the_same():
    for head, size in (("classifier", 96), ("ssdlite", 128), ("mobile_deeplab", 65)):
        model = build(V2, head, size)
        whole = multiply_adds(model, image(size))
        assert multiply_adds(bare(model), image(size)) == whole > 0


def test_memory_of_the_plain_graph():
    graph = convolutions(build_backbone(V2), 224)
    most = peak(graph)
    # block2's depthwise layer reads 96 channels at 112 and writes them at 56
    assert most.memory == 2 * 96 * (112**2 + 56**2)
    assert most.name == "block2"
    joins = [step.name for step in graph if "shortcut" in step.name]
    assert joins == [f"block{n} shortcut" for n in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]
    assert next(step for step in graph if step.name == "block3 shortcut").memory == 2 * 3 * 24 * 56**2
    assert peak(convolutions(build_backbone(V1), 224)).memory == 2 * (32 + 64) * 112**2


def test_memory_of_whole_bottlenecks():
    backbone = build_backbone(V2)
    assert peak(blocks(backbone, 224)).memory == 2 * (3 * 224**2 + 16 * 112**2)
    five = peak(blocks(backbone, 224, split=5))
    assert five.name == "block2"
    assert five.memory == 2 * (16 * 112**2 + 24 * 56**2 + 20 * (112**2 + 56**2))
    # the last convolution is pooled as it is computed
    last = blocks(backbone, 224, split=4)[-1]
    assert (last.name, last.channels, last.side) == ("last", 1280, 1)
    assert last.memory == 2 * (320 * 49 + 1280 + 320 * 49)
    sizes = [peak(blocks(backbone, 224, split=split)).memory for split in (1, 2, 3, 5, 1000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] > peak(blocks(backbone, 224)).memory


def test_largest_tensors_by_resolution():
    assert largest(blocks(build_backbone(V2), 224))[56] == (24, 2 * 24 * 56**2)
    assert largest(convolutions(build_backbone(V2), 224))[112] == (96, 2 * 96 * 112**2)
    assert sorted(largest(blocks(build_backbone(V1, width=0.5), 96))) == [1, 3, 6, 12, 24, 48]


def test_the_document_is_up_to_date(found: Tables, root: Path):
    document = (root / "docs/paper.md").read_text()
    assert update_regions(document, found, where="docs/paper.md") == document, (
        "run: mnv2det paper --markdown docs/paper.md"
    )
    shown = " ".join(match for match in re.findall(r"<!-- tables ([\d. ]+) -->", document)).split()
    assert sorted(shown) == sorted(TABLES)


def test_only_marked_regions_are_written():
    table = Table("5", "Title", ("head",), [Column("MAdds", 1e9, 3)])
    table.rows.append((("SSDLite",), [Value("0.35", 0.178e9)]))
    table.notes = {("SSDLite", "MAdds"): "Because."}
    rows = "| head | MAdds, paper | MAdds, here |\n| --- | ---: | ---: |\n| SSDLite | 0.35 | 0.178 [1] |\n"
    assert as_markdown(table) == f"**Title**\n\n{rows}\n- [1] Because.\n"
    assert "SSDLite   0.35  0.178 [1]\n[1] Because." in as_text(table)
    document = "before\n<!-- tables 5 -->\nold\n<!-- /tables -->\nafter\n<!-- tables 4 5 -->\nkept\n<!-- /tables -->\n"
    new = update_regions(document, {"5": [table]}, where="a.md")
    assert new.startswith("before\n<!-- tables 5 -->\n\n**Title**")
    assert new.endswith("<!-- /tables -->\nafter\n<!-- tables 4 5 -->\nkept\n<!-- /tables -->\n")
    assert "old" not in new
    assert update_regions(new, {"5": [table]}, where="a.md") == new
    made = update_regions("", {"5": [table]}, where="a.md")
    assert "# " in made
    assert update_regions(made, {"5": [table]}, where="a.md") == made
    with pytest.raises(ConfigError, match=r"a\.md: nowhere to write to"):
        update_regions("text", {"5": [table]}, where="a.md")
    with pytest.raises(ConfigError, match=r"a\.md: <!-- tables 9 -->: no such table"):
        update_regions("<!-- tables 9 -->\n<!-- /tables -->", {"5": [table]}, where="a.md")


def test_text_and_json_say_the_same(found: Tables):
    assert [table.key for group in found.values() for table in group] == [
        "2", "2.1", "3", "4", "4.1", "5", "5.1", "6", "7",
    ]  # fmt: skip
    (table,) = found["5"]
    cell = as_data(table)["rows"]["SSDLite"]["MAdds B"]
    assert (cell["paper"], cell["agrees"], round(cell["here"], 3)) == ("0.35", False, 0.178)
    assert cell["note"] in as_text(table)


@pytest.mark.process
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], root: Path):
    assert main(["paper", "5", "--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]) == 0
    printed = capsys.readouterr().out
    assert "Table 5: " in printed
    assert "Table 6: " not in printed
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["5"]
    assert "| SSDLite |" in (tmp_path / "a.md").read_text()
    assert main(["paper", "5", "1"]) == 2
    assert capsys.readouterr().err.startswith("mnv2det: table '1'; expected one of 2, 3")
    done = subprocess.run(
        [sys.executable, root / "tools/paper.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "mnv2det paper" in done.stdout


@pytest.mark.parametrize("dimension", [2, 3, 5, 15])
def test_relu_keeps_the_share_of_points_that_theorem_1_says(dimension: int):
    points, kept = spiral(200), []
    for seed in range(400):
        back, apart = through_relu(points, dimension, np.random.default_rng(seed))
        assert back.shape == points.shape
        kept.append(apart.mean())
    # all sign patterns are equally likely, and two positive channels are enough
    assert np.mean(kept) == pytest.approx(1 - (1 + dimension) / 2**dimension, abs=0.04)


def test_without_relu_the_spiral_comes_back():
    points = spiral(50)
    matrix = np.random.default_rng(3).standard_normal((15, 2))
    np.testing.assert_allclose(points @ matrix.T @ np.linalg.pinv(matrix).T, points, atol=1e-12)
    # where every channel is positive ReLU does nothing either
    seen = np.abs(matrix)
    back, kept = through_relu(np.abs(points), 15, _Fixed(seen))
    np.testing.assert_allclose(back, np.abs(points), atol=1e-12)
    assert kept.all()


class _Fixed:
    """A generator that draws what it is given."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = matrix

    def standard_normal(self, shape: tuple[int, int]) -> np.ndarray:
        assert self.matrix.shape == shape
        return self.matrix


def test_trade_off_is_that_of_figure_5():
    series = trade_off()
    assert [len(points) for name, points in series.items() if name.startswith("V2")] == [6, 4, 4, 4, 4]
    assert (300.8, 71.8) in [(round(work, 1), top) for work, top in series["V2 224x224"]]
    assert series["NasNet (Table 4)"] == [(564.0, 74.0)]
    # the claim of the figure: for the same work V2 is the more accurate one
    both = []
    for name in ("V2", "V1"):
        points = sorted(point for key, part in series.items() if key.startswith(name) for point in part)
        work, top = np.array(points).T
        both.append(np.interp([50, 100, 200, 500], work, np.maximum.accumulate(top)))
    assert (both[0] > both[1] + 1).all()


def test_plots_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib")
    for file in draw_figures(tmp_path / "new"):
        assert file.read_bytes().startswith(b"\x89PNG")
        assert file.stat().st_size > 10_000
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'mnv2det\[plots\]'"):
        draw_figures(tmp_path)


def test_the_plot_of_ablations(tmp_path: Path):
    pytest.importorskip("matplotlib")
    curves = {"linear": [{10: 0.2, 20: 0.4}, {10: 0.3, 20: 0.5}], "ReLU6": [{10: 0.1, 20: 0.3}]}
    draw_ablations(tmp_path / "6.png", {"bottleneck": curves, "again": curves}, metric="top-1")
    assert (tmp_path / "6.png").stat().st_size > 10_000


def test_tables_are_computed_without_allocating_tensors():
    assert all(p.device == torch.device("meta") for p in build(V1, "classifier", 224).parameters())
