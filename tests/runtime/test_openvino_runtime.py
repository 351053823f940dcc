"""What OpenVINO does to the process that uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_models import weights

from mnv2det.graphs.program import ExportMetadata
from mnv2det.models.build import from_file
from mnv2det.runtime.base import write

pytest.importorskip("openvino")

SIGNALLED = """
import ctypes, signal, sys
import numpy as np
from mnv2det import Predictor

class Stack(ctypes.Structure):
    _fields_ = [("memory", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def bytes_of_signal_stack():
    found = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.size if found.memory else 0

image = np.zeros((64, 64, 3), np.uint8)
first, second = (Predictor(sys.argv[1], backend="openvino") for _ in range(2))
first(image), second(image)
print("signal stack of", bytes_of_signal_stack(), "bytes")
del first
del second
seen = []
signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
signal.raise_signal(signal.SIGUSR1)
print("handled", len(seen))
"""


@pytest.mark.export
@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO changes the signal stack on Linux only")
def test_signals_are_handled_after_predictors_went_in_the_order_they_came(tmp_path: Path) -> None:
    model, header = from_file(str(weights(tmp_path, "det", size=(64, 64))))
    write(model, ExportMetadata(header, "raw"), tmp_path / "raw.xml")
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "raw.xml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"killed by signal {-done.returncode}: {done.stdout}{done.stderr}"
    assert "handled 1" in done.stdout
    if "signal stack of 0 bytes" in done.stdout:
        pytest.skip("OpenVINO uses no signal stack on this processor: nothing could go wrong")
