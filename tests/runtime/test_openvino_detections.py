"""What OpenVINO's graph finds among a detector's best anchors is what `SSDLite.decode` finds among all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import picture, weights
from torch.testing import assert_close

from mnv2det.graphs.program import ExportMetadata
from mnv2det.models.build import from_file
from mnv2det.models.classifier import Classifier
from mnv2det.models.ssdlite import SSDLite
from mnv2det.runtime.base import write
from mnv2det.runtime.openvino_detections import ANCHORS, FRAME, add_detections, write_frame
from mnv2det.runtime.openvino_runtime import shared_core
from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import Detections, FeatureInfo, Frame

pytestmark = pytest.mark.export

openvino = pytest.importorskip("openvino")
FEATURES = {"a": FeatureInfo(16, 16), "b": FeatureInfo(24, 32)}
SIZE = (96, 128)


class Graph:
    """A detector whose raw outputs are given, with its detections behind them."""

    def __init__(self, head: SSDLite, size: tuple[int, int] = SIZE, private: int = 1) -> None:
        op = openvino.opset13
        self.head, self.anchors = head, head.constants(size)["anchors"]
        shapes = {"logits": (1, len(self.anchors), private + head.classes), "codes": (1, len(self.anchors), 4)}
        inputs = [op.parameter(list(shape), np.float32, name) for name, shape in shapes.items()]
        results = [op.result(value) for value in inputs]
        for name, result in zip(shapes, results, strict=True):
            result.output(0).get_tensor().set_names({f"det.{name}"})
        network = openvino.Model(results, inputs)
        other = Classifier({"last": FeatureInfo(8, 32)}, classes=2)
        (self.detections,) = add_detections(network, {"det": head, "other": other}, size)
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        self.request = shared_core().compile_model(network, "CPU", settings).create_infer_request()

    def both(self, logits: torch.Tensor, codes: torch.Tensor, frame: Frame) -> tuple[Detections | None, Detections]:
        write_frame(frame, self.request.get_tensor(FRAME).data)
        self.request.infer({0: logits.numpy(), 1: codes.numpy()})
        raw = {"logits": logits, "codes": codes, "anchors": self.anchors}
        return self.detections.read(self.request), self.head.decode(raw, [frame])[0]


def head(**hyper: object) -> SSDLite:
    return SSDLite(FEATURES, **{"classes": 3, "taps": ("a", "b"), "extras": (16, 16), "max_detections": 20, **hyper})


def assert_alike(found: Detections | None, wanted: Detections) -> None:
    assert found is not None
    assert found.labels.dtype == torch.int64
    assert_close(found.labels, wanted.labels)
    assert_close(found.scores, wanted.scores, rtol=1e-5, atol=1e-7)
    assert_close(found.boxes, wanted.boxes, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
@pytest.mark.parametrize(
    ("spread", "hyper"),
    [
        (1.0, {"score_threshold": 0.01}),
        (3.0, {"score_threshold": 0.3}),  # candidates are few
        (3.0, {"score_threshold": 0.3, "nms_iou": 0.2, "max_detections": 100}),
        (2.0, {"score_threshold": 0.0, "classes": 80}),
        (2.0, {"score_threshold": 0.0, "classes": 1}),  # hardly more candidates than anchors are used
        (2.0, {"score_threshold": 1.0}),  # none
    ],
)
def test_the_graph_finds_what_decode_finds(score: str, spread: float, hyper: dict[str, object]):
    graph = Graph(head(score=score, **hyper))
    generator = torch.Generator().manual_seed(0)
    boxes = 0
    for frame in [Frame((480, 640), SIZE), Frame((300, 200), (96, 64)), Frame(SIZE, SIZE)]:
        for _ in range(5):
            logits = torch.randn(1, len(graph.anchors), graph.head.classes + 1, generator=generator) * spread
            codes = torch.randn(1, len(graph.anchors), 4, generator=generator) * 4
            found, wanted = graph.both(logits, codes, frame)
            assert_alike(found, wanted)
            boxes += len(wanted.boxes)
    assert (boxes > 0) == (hyper["score_threshold"] != 1.0)


def test_logits_without_a_background():
    graph = Graph(head(score_threshold=0.1), private=0)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, len(graph.anchors), 3, generator=generator)
    found, wanted = graph.both(logits, torch.zeros(1, len(graph.anchors), 4), Frame(SIZE, SIZE))
    assert len(wanted.boxes) == 20
    assert_alike(found, wanted)


def test_equal_scores_are_taken_in_the_same_order():
    graph = Graph(head(score_threshold=0.05, nms_iou=0.3))
    generator = torch.Generator().manual_seed(2)
    compared = 0
    for _ in range(40):
        logits = torch.randn(1, len(graph.anchors), 4, generator=generator).mul(3).round()
        codes = torch.randn(1, len(graph.anchors), 4, generator=generator) * 3
        found, wanted = graph.both(logits, codes, Frame((480, 640), SIZE))
        assert len(wanted.scores.unique()) < len(wanted.scores), "nothing is equal"
        # where the last ones are as good as the best of another anchor, it must not decide
        if found is not None:
            compared += 1
            assert_alike(found, wanted)
    assert compared > 5


def test_read_gives_none_where_all_anchors_have_to_be_looked_at():
    graph = Graph(head(classes=80, score_threshold=0.01, nms_iou=0.1))
    logits = torch.full((1, len(graph.anchors), 81), -3.0)
    # the best candidates are one object, seen by anchors that all give the same box
    first = graph.anchors[0]
    count = ANCHORS + 8
    assert count <= len(graph.anchors), "too few anchors for this"
    logits[0, :count, 5] = torch.linspace(3, 4, count)
    codes = torch.zeros(1, len(graph.anchors), 4)
    middle, sides = (graph.anchors[:, :2] + graph.anchors[:, 2:]) / 2, graph.anchors[:, 2:] - graph.anchors[:, :2]
    goal, extent = (first[:2] + first[2:]) / 2, first[2:] - first[:2]
    codes[0, :count, :2] = ((goal - middle) / sides * 10)[:count]
    codes[0, :count, 2:] = ((extent / sides).log() * 5)[:count]
    found, wanted = graph.both(logits, codes, Frame(SIZE, SIZE))
    assert found is None
    assert len(wanted.boxes) == 20


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "pad"])
def test_a_predictor_reads_detections_from_the_graph(fit, tmp_path, monkeypatch: pytest.MonkeyPatch):
    source = weights(tmp_path, "det", "seg", fit=fit)
    model, header = from_file(str(source))
    path = tmp_path / "model.onnx"
    write(model, ExportMetadata(header, "raw"), path)
    predictor = Predictor(path, backend="openvino")
    shown = [picture(height, width, 7) for height, width in ((96, 128), (50, 70), (70, 100))]
    results = []
    for image in shown:
        pixels, frame = predictor.prepare(image)
        outputs = predictor.run(pixels[None], [frame])
        assert isinstance(outputs["det"], Detections)
        assert "det.logits" not in outputs
        assert "seg.logits" in outputs
        results.append(predictor.finish(outputs, [frame])[0])
        # a batch has none
        assert "det.logits" in predictor.run(np.stack([pixels, pixels]), [frame, frame])
        whole = predictor.finish(predictor.run(pixels[None]), [frame])[0]
        found = results[-1]
        assert len(whole["det"].scores) > 5
        assert_alike(found["det"], whole["det"])
        assert torch.equal(found["seg"].mask, whole["seg"].mask)
    for found, again in zip(results, predictor.batch(shown), strict=True):
        assert_alike(again["det"], found["det"])
    # what it keeps is its own: the next picture does not change it
    before = results[0]["det"].boxes.clone()
    predictor(shown[1])
    assert torch.equal(results[0]["det"].boxes, before)
    # where the graph cannot know, all anchors are looked at
    monkeypatch.setattr(type(predictor.session.detections[0]), "read", lambda self, request: None)
    for image, wanted in zip(shown, results, strict=True):
        assert_alike(wanted["det"], predictor(image, threshold=0)["det"])
