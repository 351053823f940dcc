"""Files that TensorFlow wrote itself, imported here.

TensorFlow is no requirement of this project. ``TENSORFLOW_PYTHON`` names an interpreter that has it; by default it is
the one that runs the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_same_numbers

from mnv2det.convert.tensorflow.convert import convert_tensorflow
from mnv2det.models.build import assemble
from mnv2det.models.model import Model
from mnv2det.models.weight_file import Header

pytestmark = [pytest.mark.slow, pytest.mark.process]

GRAPH = "weights/ssdlite_mnv2_pedestrian_tf/frozen_inference_graph.pb"
NO_CONVERTER = 3  # of tests/write_with_tensorflow.py


@pytest.fixture(scope="module")
def interpreter() -> str:
    python = os.environ.get("TENSORFLOW_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import tensorflow"], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} has no TensorFlow (TENSORFLOW_PYTHON names another): this check was NOT made")
    return python


def write(interpreter: str, root: Path, *arguments: str) -> None:
    script = root / "tests/write_with_tensorflow.py"
    done = subprocess.run([interpreter, str(script), *arguments], capture_output=True, text=True, check=False)
    if done.returncode == NO_CONVERTER:
        pytest.skip(f"{interpreter} has no tensorflowjs: this check was NOT made")
    assert done.returncode == 0, done.stderr[-2000:]


def build(tensors: dict[str, torch.Tensor], header: Header) -> Model:
    model = assemble(header.backbone, header.heads, classes=header.classes, preprocess=header.preprocess)
    model.load_state_dict(tensors)
    return model.eval()


@pytest.mark.shared
def test_checkpoints_and_saved_models(interpreter: str, shared: Path, root: Path, tmp_path: Path):
    write(interpreter, root, "graph", str(shared / GRAPH), str(tmp_path))
    expected, frozen = convert_tensorflow(shared / GRAPH)
    for form in ("checkpoint", "saved_model"):
        tensors, header = convert_tensorflow(tmp_path / form)
        assert header.trainable
        assert header.preprocess == frozen.preprocess
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items()), form


@pytest.mark.shared
def test_models_of_tensorflow_js(interpreter: str, shared: Path, root: Path, tmp_path: Path):
    write(interpreter, root, "tfjs", str(shared / GRAPH), str(tmp_path))
    whole, frozen = convert_tensorflow(shared / GRAPH)
    tensors, header = convert_tensorflow(tmp_path / "float32")
    quantised, quantised_header = convert_tensorflow(tmp_path / "uint8")
    assert not header.trainable
    assert header.preprocess == frozen.preprocess
    image = torch.rand(1, 3, 300, 300) * 2 - 1
    with torch.no_grad():
        found, expected = build(tensors, header)(image)["det"], build(whole, frozen)(image)["det"]
    for name in ("logits", "codes", "anchors"):
        assert_same_numbers(found[name], expected[name], name, within=1e-5)
    assert quantised_header.heads == header.heads
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() > 1:
            step = float(tensor.max() - tensor.min()) / 255
            assert float((quantised[name] - tensor).abs().max()) <= 0.501 * step + 1e-6, name


def test_keras_mobilenet_v2(interpreter: str, root: Path, tmp_path: Path):
    write(interpreter, root, "keras", str(tmp_path))
    expected = np.load(tmp_path / "expected.npz")
    image = torch.from_numpy(expected["image"]).permute(0, 3, 1, 2)
    variables = sorted(np.sort(expected[name].ravel()).tobytes() for name in expected if name.startswith("variable"))
    for form in ("saved_model", "exported", "checkpoint"):
        tensors, header = convert_tensorflow(tmp_path / form)
        assert header.trainable
        # the same numbers, each in some tensor, and each in the right place
        ours = [tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")]
        assert sorted(tensor.flatten().sort().values.numpy().tobytes() for tensor in ours) == variables
        with torch.no_grad():
            scores = build(tensors, header)(image)["cls"]["logits"].softmax(1)
        assert_same_numbers(scores, torch.from_numpy(expected["scores"]), within=1e-5)
