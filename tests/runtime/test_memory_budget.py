"""A memory budget from the outside: predictor and command line."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch
from small_models import picture, weights

from mnv2det.cli import main
from mnv2det.errors import ConfigError
from mnv2det.runtime.predictor import Predictor
from mnv2det.testing import peak_memory


@pytest.mark.parametrize("budget", [0, 200_000])
def test_a_predictor_with_a_budget_finds_the_same_in_less_memory(tmp_path: Path, budget: int):
    source = weights(tmp_path, "det")
    plain, small = Predictor(source), Predictor(source, memory_budget=budget)
    image = picture(96, 128)
    mine, other = plain(image)["det"], small(image)["det"]
    torch.testing.assert_close(mine.scores, other.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.boxes, other.boxes, rtol=1e-3, atol=1e-2)
    peaks = [peak_memory(lambda p=p: p.run(image[None])) for p in (plain, small)]
    assert peaks[1] < peaks[0]


def test_who_cannot_hold_a_budget_says_so(tmp_path: Path):
    source = weights(tmp_path, "det")
    with pytest.raises(ConfigError, match="only the torch backend has it, not 'onnxruntime'"):
        Predictor(source, backend="onnxruntime", memory_budget=1000)
    with pytest.raises(ConfigError, match="a memory budget needs weights, not an exported model"):
        Predictor(tmp_path / "m.onnx", memory_budget=1000)


@pytest.mark.heavy
def test_the_command_line_reads_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = str(weights(tmp_path, "det"))
    cv2.imwrite(str(tmp_path / "a.png"), picture(50, 60))
    arguments = ["predict", source, str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--memory-budget"]
    for text in ("200KB", "0.2 mb", "300000", "cache"):
        assert main([*arguments, text]) == 0
    for text in ("much", "-1", "0", "2TB"):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, text])
        assert stopped.value.code == 2
    assert "expected bytes, as in 2MB, or cache" in capsys.readouterr().err
