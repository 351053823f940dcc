"""Exports of published weights on photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mnv2det.commands.compare import compare
from mnv2det.commands.import_weights import import_weights
from mnv2det.data.images import list_images, read_image
from mnv2det.graphs.program import ExportMetadata, Form
from mnv2det.models.build import from_file
from mnv2det.runtime.base import write
from mnv2det.runtime.predictor import Predictor

pytestmark = pytest.mark.export


def export(source: Path, path: Path, form: Form = "complete") -> None:
    model, header = from_file(str(source))
    write(model, ExportMetadata(header, form), path)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("form", "backend"), [("complete", "onnxruntime"), ("raw", "onnxruntime"), ("raw", "openvino")]
)
def test_a_detector_finds_the_same_in_fifty_photographs(shared: Path, tmp_path: Path, form: Form, backend: str):
    source = tmp_path / "voc.safetensors"
    weights = shared / "weights" / "ssdlite_mnv2_voc_ncnn_int8" / "mobilenetv2_ssdlite_voc.param"
    import_weights(str(weights), str(source))
    export(source, tmp_path / "voc.onnx", form)
    pictures = [read_image(path) for path in list_images(shared / "voc100")[:50]]
    assert len({picture.shape for picture in pictures}) > 5
    found = compare(Predictor(source), Predictor(tmp_path / "voc.onnx", backend=backend), pictures)
    assert found.pictures == 50
    assert found.detections > 2 * 50 * 10
    assert found.above(1e-3) == [], found


@pytest.mark.shared
def test_a_complete_segmenter_finds_the_same_in_photographs(shared: Path, tmp_path: Path):
    source = tmp_path / "voc.safetensors"
    import_weights(str(shared / "weights" / "deeplabv3_mnv2_pascal_quant.tflite"), str(source))
    export(source, tmp_path / "voc.onnx")
    files = list_images(shared / "voc100" / "VOCdevkit" / "VOC2012" / "JPEGImages")[:8]
    pictures = [read_image(path) for path in files]
    assert all(max(picture.shape) <= 513 for picture in pictures), "larger ones are covered by windows"
    theirs = Predictor(tmp_path / "voc.onnx", backend="onnxruntime")
    found = compare(Predictor(source), theirs, pictures)
    assert found.above(1e-3) == [], found
    assert len(np.unique(theirs(pictures[0])["seg"].mask)) > 1
