"""Predictions beside ground truth."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from small_models import weights
from test_cli import make_voc

from mnv2det.commands.grid import prediction_grid
from mnv2det.errors import DataError

CONFIG = """
model: {{input_size: [96, 128]}}
tasks:
  det: {{head: {{name: ssdlite}}, evaluator: {{name: coco}}}}
data:
  root: {root}
  train: {{name: voc, args: {{sets: [Mine/train], names: [cat, dog]}}}}
  val: {{name: voc, args: {{sets: [Mine/train], names: [cat, dog]}}}}
  bad_data: skip
optim: {{optimizer: {{name: sgd, args: {{lr: 0.1}}}}}}
train: {{steps: 1}}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with an untrained detector, on a set of five pictures of which the third is broken."""
    make_voc(tmp_path, broken=True)
    folder = tmp_path / "run"
    folder.mkdir()
    weights(folder, "det").rename(folder / "best.safetensors")
    (folder / "config.yaml").write_text(CONFIG.format(root=tmp_path))
    return folder


def break_pictures(run: Path) -> None:
    for picture in (run.parent / "VOCdevkit/Mine/JPEGImages").iterdir():
        picture.write_bytes(picture.read_bytes()[:100])


@pytest.mark.parametrize(("count", "rows"), [(3, 1), (4, 2), (9, 2)])
def test_further_pictures_take_the_place_of_broken_ones(run: Path, count: int, rows: int):
    """A row shows three pictures: of five, four can be read."""
    picture = cv2.imread(str(prediction_grid(str(run), count=count, device="cpu")))
    cell = 256 + 24 + 4
    assert picture.shape[0] == rows * cell
    last_cells = picture[(rows - 1) * cell :, -20:]
    assert (last_cells.std() > 20) == (count == 3), "the last cell is noise, or there is none"


def test_broken_pictures_alone_are_one_line(run: Path):
    break_pictures(run)
    with pytest.raises(DataError, match=r"data\.val: none of its 5 images can be shown: .*img4\.jpg: truncated JPEG"):
        prediction_grid(run, device="cpu")
    assert not (run / "predictions.png").exists()


def test_a_broken_picture_is_an_error_where_the_config_says_stop(run: Path):
    with pytest.raises(DataError, match=r"img2\.jpg: truncated JPEG"):
        prediction_grid(run, ["data.bad_data=stop"], device="cpu")
