"""VOC average precision against a plain transcription of the development kit and hand counts."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mnv2det.errors import ConfigError
from mnv2det.evaluation import voc
from mnv2det.evaluation.voc import VocAP
from mnv2det.registry import EVALUATORS
from mnv2det.structures import Detections

Style = Literal["area", "11point"]
Image = tuple[dict[str, NDArray[Any]], Detections]
Images = dict[Any, Image]

CLASSES = ["cat", "dog", "eel", "fox"]


def image(truths: list[Any], found: list[Any], difficult: list[bool] | None = None) -> Image:
    """From (label, x1, y1, x2, y2) and (score, label, x1, y1, x2, y2) rows."""
    rows = np.array(truths, np.float32).reshape(-1, 5)
    target: dict[str, NDArray[Any]] = {
        "boxes": rows[:, 1:],
        "labels": rows[:, 0].astype(np.int64),
        "ignore": np.array(difficult or [False] * len(rows), np.bool_),
        "area": np.ones(len(rows), np.float32),
    }
    detected = torch.tensor(found, dtype=torch.float32).reshape(-1, 6)
    return target, Detections(detected[:, 2:], detected[:, 0], detected[:, 1].long())


def evaluate(images: Images, **settings: Any) -> dict[str, float]:
    evaluator = VocAP(classes=CLASSES, **settings)
    for key, (target, found) in images.items():
        evaluator.update(key, found, target)
    return evaluator.compute()


def kit(images: Images, label: int, style: Style, iou: float) -> float:
    """VOCevaldet.m and VOCap.m, line by line, on 1-based inclusive pixels as their files have them."""
    gt, npos = {}, 0
    detections = []
    for key in sorted(images):
        target, found = images[key]
        rows = target["labels"] == label
        boxes = target["boxes"][rows].astype(float) + np.array([1, 1, 0, 0])
        gt[key] = {"bb": boxes, "diff": target["ignore"][rows], "det": [False] * len(boxes)}
        npos += int(np.sum(~gt[key]["diff"]))
        for box, score, k in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
            if k == label:
                detections.append((score, key, [box[0] + 1, box[1] + 1, box[2], box[3]]))
    if npos == 0:
        return -1.0
    detections.sort(key=lambda detection: -detection[0])
    tp, fp = np.zeros(len(detections)), np.zeros(len(detections))
    for d, (_, key, bb) in enumerate(detections):
        ovmax, jmax = -np.inf, -1
        for j, bbgt in enumerate(gt[key]["bb"]):
            bi = [max(bb[0], bbgt[0]), max(bb[1], bbgt[1]), min(bb[2], bbgt[2]), min(bb[3], bbgt[3])]
            iw, ih = bi[2] - bi[0] + 1, bi[3] - bi[1] + 1
            if iw > 0 and ih > 0:
                ua = (bb[2] - bb[0] + 1) * (bb[3] - bb[1] + 1)
                ua += (bbgt[2] - bbgt[0] + 1) * (bbgt[3] - bbgt[1] + 1) - iw * ih
                if iw * ih / ua > ovmax:
                    ovmax, jmax = iw * ih / ua, j
        if ovmax >= iou:
            if not gt[key]["diff"][jmax]:
                if not gt[key]["det"][jmax]:
                    tp[d] = 1
                    gt[key]["det"][jmax] = True
                else:
                    fp[d] = 1
        else:
            fp[d] = 1
    tp, fp = np.cumsum(tp), np.cumsum(fp)
    rec, prec = tp / npos, tp / np.maximum(tp + fp, np.finfo(float).eps)
    if style == "11point":
        return float(sum(prec[rec >= t].max(initial=0) / 11 for t in np.arange(0, 1.1, 0.1)))
    mrec, mpre = np.concatenate([[0], rec, [1]]), np.concatenate([[0], prec, [0]])
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    k = np.flatnonzero(mrec[1:] != mrec[:-1]) + 1
    return float(np.sum((mrec[k] - mrec[k - 1]) * mpre[k]))


def kit_metrics(images: Images, style: Style, iou: float) -> list[float]:
    """The mean and the classes."""
    each = [kit(images, label, style, iou) for label in range(len(CLASSES))]
    defined = [value for value in each if value >= 0]
    return [float(np.mean(defined)) if defined else -1.0, *each]


def random_images(seed: int, count: int = 15) -> Images:
    """Whole pixels, difficult truths, tied scores and overlaps, empty images."""
    rng = np.random.default_rng(seed)
    images: Images = {}
    for i in range(count):
        n, m = rng.integers(0, 6), rng.integers(0, 25)
        corner = rng.integers(0, 40, (n, 2))
        truth = np.c_[corner, corner + rng.integers(5, 30, (n, 2))]
        labels = rng.integers(0, 3, n)
        some = truth if n else np.array([[3, 3, 20, 20]])
        found = some[rng.integers(0, len(some), m)] + rng.integers(-3, 4, (m, 4))
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        scores = np.sort(rng.integers(1, 12, m) / 16)[::-1]
        rows = np.c_[scores, rng.integers(0, 3, m), found]
        images[f"{i:03d}"] = image(np.c_[labels, truth].tolist(), rows.tolist(), (rng.random(n) < 0.25).tolist())
    return images


@pytest.mark.parametrize("style", ["area", "11point"])
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_development_kits(seed: int, iou: float, style: Style) -> None:
    images = random_images(seed)
    metrics = evaluate(images, style=style, iou=iou)
    name = f"AP{round(iou * 100)}"
    assert list(metrics) == [name, *(f"{name}/{each}" for each in CLASSES)]
    assert list(metrics.values()) == pytest.approx(kit_metrics(images, style, iou), abs=1e-12)


boxes = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 5)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
truths = st.lists(st.tuples(st.integers(0, 1), boxes, st.booleans()), max_size=4)
founds = st.lists(st.tuples(st.sampled_from([0.25, 0.5, 0.75]), st.integers(0, 1), boxes), max_size=8)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(truths, founds), max_size=3), st.sampled_from(["area", "11point"]))
def test_ties_of_scores_and_overlaps(content: list[Any], style: Style) -> None:
    images = {
        i: image(
            [(label, *box) for label, box, _ in truth],
            [(score, label, *box) for score, label, box in found],
            [difficult for _, _, difficult in truth],
        )
        for i, (truth, found) in enumerate(content)
    }
    expected = kit_metrics(images, style, 0.5)
    assert list(evaluate(images, style=style).values()) == pytest.approx(expected, abs=1e-12)


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(9)
    expected = evaluate(images)
    monkeypatch.setattr(voc, "BLOCK", 7)
    assert evaluate(images) == expected


def test_hand_counted() -> None:
    # hit, miss, hit of three cats: precision 1 up to recall 1/3, 2/3 up to 2/3, then 0
    truths = [(0, 0, 0, 10, 10), (0, 20, 0, 30, 10), (0, 40, 0, 50, 10)]
    found = [(0.9, 0, 0, 0, 10, 10), (0.8, 0, 60, 60, 70, 70), (0.7, 0, 21, 0, 31, 10)]
    images = {1: image(truths, found)}
    assert evaluate(images)["AP50/cat"] == pytest.approx((1 + 2 / 3) / 3)
    assert evaluate(images, style="11point")["AP50"] == pytest.approx((4 + 3 * 2 / 3) / 11)


def test_overlap_of_exactly_the_limit_counts() -> None:
    images = {1: image([(0, 0, 0, 10, 10)], [(0.9, 0, 0, 0, 10, 5)])}
    assert evaluate(images, iou=0.5)["AP50"] == 1
    assert evaluate(images, iou=0.51)["AP51"] == 0


def test_a_second_box_on_a_truth_is_a_miss_even_if_another_truth_is_near() -> None:
    truths = [(0, 0, 0, 10, 10), (0, 1, 0, 11, 10)]
    found = [(0.9, 0, 0, 0, 10, 10), (0.8, 0, 0, 0, 10, 10)]  # IoU 1 and .82
    assert evaluate({1: image(truths, found)})["AP50"] == 0.5


def test_difficult_truths_count_neither_way() -> None:
    truths = [(0, 0, 0, 10, 10), (0, 20, 20, 30, 30)]
    found = [(0.9, 0, 20, 20, 30, 30), (0.8, 0, 20, 20, 30, 30), (0.7, 0, 0, 0, 10, 10)]
    assert evaluate({1: image(truths, found, [False, True])})["AP50"] == 1
    assert evaluate({1: image(truths, found[:2], [False, True])})["AP50"] == 0
    assert evaluate({1: image(truths, found[:2], [True, True])})["AP50"] == -1


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({}, -1),
        ({1: image([], [])}, -1),
        ({1: image([], [(0.9, 0, 0, 0, 9, 9)])}, -1),
        ({1: image([(0, 0, 0, 9, 9)], [])}, 0),
        ({1: image([(0, 0, 0, 9, 9)], [(0.9, 1, 0, 0, 9, 9)])}, 0),
        ({1: image([(0, 0, 0, 9, 9)], []), 2: image([], [(0.9, 0, 0, 0, 9, 9)])}, 0),
        ({1: image([(0, 5, 5, 5, 5)], [(0.9, 0, 5, 5, 5, 5)])}, 0),
    ],
    ids=["nothing", "empty image", "boxes only", "missed", "other class", "other image", "no area"],
)
def test_empty_cases(images: Images, expected: float) -> None:
    for style in ("area", "11point"):
        metrics = evaluate(images, style=style)
        assert metrics["AP50"] == metrics["AP50/cat"] == expected
        assert metrics["AP50/fox"] == -1
        assert all(type(value) is float for value in metrics.values())


def test_order_of_images_and_kind_of_ids_do_not_matter() -> None:
    images = random_images(4)
    expected = evaluate(images)
    assert evaluate(dict(reversed(images.items()))) == expected
    assert evaluate({int(key): pair for key, pair in reversed(images.items())}) == expected


def test_the_main_metric_is_named_after_the_overlap() -> None:
    for iou, name in ((0.5, "AP50"), (0.3, "AP30"), (0.75, "AP75"), (1, "AP100")):
        evaluator = VocAP(classes=CLASSES, iou=iou)
        assert evaluator.main == name
        assert evaluator.compute()[name] == -1
    assert VocAP.main == "AP50"


def test_settings_are_checked() -> None:
    for wrong in (0, -0.5, 1.01):
        with pytest.raises(ConfigError, match="iou must be above 0 and at most 1"):
            VocAP(classes=CLASSES, iou=wrong).compute()
    for wrong in (0, -0.5, 1.01, float("nan")):
        assert len(EVALUATORS.bind("voc_ap", {"iou": wrong}, place="evaluator")[1]) == 1
    with pytest.raises(ConfigError, match="no style '11points'; did you mean '11point'"):
        VocAP(classes=CLASSES, style="11points").compute()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"det\.evaluator\.args\.style"):
        EVALUATORS.build("voc_ap", {"style": "07"}, place="det.evaluator", classes=CLASSES)
    assert EVALUATORS.build("voc_ap", {"iou": 0.3}, place="det.evaluator", classes=CLASSES).main == "AP30"
