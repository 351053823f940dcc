"""A predictor in a service: for long, and from several threads."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from small_models import picture, weights

from mnv2det.runtime.predictor import Predictor

STATUS = Path("/proc/self/status")


def memory() -> float:
    """MB that this process has."""
    gc.collect()
    return int(STATUS.read_text().split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.is_file(), reason="NOT checked: no /proc here to read the memory from")
@pytest.mark.parametrize("tasks", [("det",), ("seg",)], ids="+".join)
@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_ten_thousand_predictions_keep_their_memory(tmp_path: Path, backend: str, tasks: tuple[str, ...]):
    predictor = Predictor(weights(tmp_path, *tasks, size=(64, 64)), backend=backend, threads=1)
    shown = [picture(40 + 7 * number, 60 + 5 * number, number) for number in range(8)]
    for number in range(1000):
        predictor(shown[number % 8])
    before = memory()
    for number in range(10_000):
        predictor(shown[number % 8])
    # a tensor kept of each would be more than a hundred
    assert memory() - before < 8
