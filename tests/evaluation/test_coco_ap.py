"""COCO metrics against pycocotools, torchmetrics and hand counts."""

from __future__ import annotations

import contextlib
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mnv2det.errors import ConfigError, DataError, TrainingError
from mnv2det.evaluation.coco import Backend, CocoAP
from mnv2det.registry import EVALUATORS
from mnv2det.structures import Detections, Scores

Image = tuple[dict[str, NDArray[Any]], Detections]
Images = dict[Any, Image]

BACKENDS: tuple[Backend, ...] = ("faster_coco_eval", "pycocotools")
SIZES = ["small", "medium", "large"]
NAMES = ["AP", "AP50", "AP75", *[f"AP_{size}" for size in SIZES]]
NAMES += ["AR1", "AR10", "AR100", *[f"AR_{size}" for size in SIZES]]
CLASSES = ["cat", "dog", "eel", "fox"]


def image(truths: list[Any], found: list[Any], ignore: list[bool] | None = None) -> Image:
    """From (label, x1, y1, x2, y2) and (score, label, x1, y1, x2, y2) rows."""
    rows = np.array(truths, np.float32).reshape(-1, 5)
    boxes = rows[:, 1:]
    target = {
        "boxes": boxes,
        "labels": rows[:, 0].astype(np.int64),
        "ignore": np.array(ignore or [False] * len(rows), np.bool_),
        "area": np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
    }
    detected = torch.tensor(found, dtype=torch.float32).reshape(-1, 6)
    return target, Detections(detected[:, 2:], detected[:, 0], detected[:, 1].long())


def random_images(seed: int, count: int = 12, classes: int = 3, whole: bool = False) -> Images:
    """Crowds, tied scores, sizes of all three ranges, areas below the boxes', empty images."""
    rng = np.random.default_rng(seed)

    def boxes(n: int) -> NDArray[Any]:
        corner = rng.uniform(0, 300, (n, 2))
        return np.concatenate([corner, corner + np.exp(rng.uniform(1, 5.5, (n, 2)))], axis=1)

    images: Images = {}
    for i in range(count):
        n, extra = int(rng.integers(0, 7)), int(rng.integers(0, 8))
        truth, labels = boxes(n), rng.integers(0, classes, n)
        copied = rng.integers(0, n, 12) if n else np.empty(0, np.int64)
        size = np.tile(truth[copied, 2:] - truth[copied, :2], 2)
        found = np.concatenate([truth[copied] + rng.normal(0, 0.1 * size), boxes(extra)])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        if whole:
            truth, found = truth.round(), found.round()
        where = np.concatenate([labels[copied], rng.integers(0, classes, extra)])
        scores = np.sort(rng.integers(1, 30, len(found)) / 32)[::-1]
        target, result = image(
            np.c_[labels, truth].tolist(), np.c_[scores, where, found].tolist(), (rng.random(n) < 0.15).tolist()
        )
        target["area"] *= rng.uniform(0.5, 1, n).astype(np.float32)
        images[i * 7 + 3] = target, result
    return images


def only(found: Detections, label: int) -> Detections:
    rows = found.labels == label
    return Detections(found.boxes[rows], found.scores[rows], found.labels[rows])


def evaluate(images: Images, *, classes: list[str] | None = None, **settings: Any) -> dict[str, float]:
    evaluator = CocoAP(classes=classes or CLASSES, **settings)
    for key, (target, result) in images.items():
        evaluator.update(key, result, target)
    return evaluator.compute()


def oracle(images: Images, classes: int = len(CLASSES), max_detections: tuple[int, ...] = (1, 10, 100)) -> list[float]:
    """pycocotools on dicts with its own loadRes and category ids that have gaps."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(boxes: Any) -> Any:
        b = np.asarray(boxes, np.float64)
        return np.c_[b[:, :2], b[:, 2:] - b[:, :2]].tolist()

    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for key, (target, found) in images.items():
        for box, label, ignore, area in zip(
            xywh(target["boxes"]), target["labels"], target["ignore"], target["area"], strict=True
        ):
            entry = {"image_id": key, "category_id": 2 * int(label) + 5, "bbox": box, "area": float(area)}
            annotations.append({"id": len(annotations) + 1, "iscrowd": int(ignore), **entry})
        for box, label, score in zip(xywh(found.boxes), found.labels.tolist(), found.scores.tolist(), strict=True):
            results.append({"image_id": key, "category_id": 2 * label + 5, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": key} for key in images],
            "categories": [{"id": 2 * k + 5} for k in range(classes)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(8))
def test_the_twelve_metrics_are_those_of_pycocotools(seed: int, backend: Backend) -> None:
    images = random_images(seed)
    metrics = evaluate(images, backend=backend)
    assert list(metrics)[:12] == NAMES
    assert [metrics[name] for name in NAMES] == pytest.approx(oracle(images), abs=1e-12)
    assert metrics["AP"] > 0.05  # else the comparison would say little


@pytest.mark.parametrize("backend", BACKENDS)
def test_metrics_of_classes_average_to_the_main_one(backend: Backend) -> None:
    metrics = evaluate(random_images(3), backend=backend)
    each = [metrics[f"AP/{name}"] for name in CLASSES]
    assert each[3] == -1  # no fox was annotated
    assert np.mean(each[:3]) == pytest.approx(metrics["AP"], abs=1e-12)
    dogs = {
        key: ({name: column[target["labels"] == 1] for name, column in target.items()}, only(found, 1))
        for key, (target, found) in random_images(3).items()
    }
    alone = evaluate(dogs, backend=backend)
    assert alone["AP"] == metrics["AP/dog"]


@pytest.mark.filterwarnings("ignore")
def test_metrics_are_those_of_torchmetrics() -> None:
    detection = pytest.importorskip("torchmetrics.detection")
    images = random_images(5, whole=True)
    metric = detection.MeanAveragePrecision(
        backend="faster_coco_eval",
        class_metrics=True,
        # by default these are single precision, and .95 is then not what COCO compares with
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
    )
    for target, found in images.values():
        metric.update(
            [{"boxes": found.boxes, "scores": found.scores, "labels": found.labels}],
            [
                {
                    "boxes": torch.from_numpy(target["boxes"]),
                    "labels": torch.from_numpy(target["labels"]),
                    "iscrowd": torch.from_numpy(target["ignore"].astype(np.int64)),
                    "area": torch.from_numpy(target["area"]),
                }
            ],
        )
    theirs, ours = metric.compute(), evaluate(images)
    pairs = {"map": "AP", "map_50": "AP50", "map_75": "AP75", "map_small": "AP_small", "mar_100": "AR100"}
    for name, ours_name in pairs.items():
        assert float(theirs[name]) == pytest.approx(ours[ours_name], abs=1e-6)
    assert theirs["map_per_class"].tolist() == pytest.approx([ours[f"AP/{name}"] for name in CLASSES[:3]], abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_metrics_counted_by_hand(backend: Backend) -> None:
    # One of two cats found, with IoU .8: precision 1 up to recall .5, at 7 of the 10 thresholds.
    images = {1: image([(0, 0, 0, 100, 100), (0, 200, 200, 300, 300)], [(0.9, 0, 0, 0, 80, 100)])}
    metrics = evaluate(images, backend=backend)
    assert metrics["AP50"] == pytest.approx(51 / 101, abs=1e-12)
    assert metrics["AP"] == pytest.approx(7 / 10 * 51 / 101, abs=1e-12)
    assert metrics["AR100"] == pytest.approx(7 / 10 / 2, abs=1e-12)
    assert metrics["AP_large"] == metrics["AP"]
    assert (metrics["AP_small"], metrics["AR_medium"]) == (-1, -1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_crowds_swallow_any_number_of_boxes_and_are_no_misses(backend: Backend) -> None:
    truths = [(0, 0, 0, 50, 50), (0, 100, 100, 400, 400)]
    found = [(0.9, 0, 110, 110, 150, 150), (0.8, 0, 200, 200, 260, 260), (0.7, 0, 0, 0, 50, 50)]
    assert evaluate({1: image(truths, found, [False, True])}, backend=backend)["AP"] == pytest.approx(1)
    assert evaluate({1: image(truths, found)}, backend=backend)["AP"] < 0.2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({}, -1),
        ({1: image([], [])}, -1),
        ({1: image([], [(0.9, 0, 0, 0, 9, 9)])}, -1),
        ({1: image([(0, 0, 0, 50, 50)], [(0.5, 0, 0, 0, 50, 50)], [True])}, -1),
        ({1: image([(0, 0, 0, 50, 50)], [])}, 0),
        ({1: image([(0, 0, 0, 50, 50)], [(0.9, 1, 0, 0, 50, 50)])}, 0),
        ({1: image([(0, 0, 0, 50, 50)], []), 2: image([], [(0.9, 0, 0, 0, 50, 50)])}, 0),
    ],
    ids=["nothing", "empty image", "boxes only", "crowd only", "missed", "other class", "other image"],
)
def test_empty_cases(images: Images, expected: float, backend: Backend) -> None:
    metrics = evaluate(images, backend=backend)
    assert metrics["AP"] == metrics["AR100"] == metrics["AP/cat"] == expected
    assert metrics["AP/fox"] == -1
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_neither_order_nor_merging_matters(backend: Backend) -> None:
    images = random_images(4)
    keys = list(images)
    expected = evaluate(images, backend=backend)
    assert evaluate({key: images[key] for key in reversed(keys)}, backend=backend) == expected
    # two processes whose shares overlap, as a padding sampler gives them
    halves = [CocoAP(classes=CLASSES, backend=backend) for _ in range(2)]
    for half, share in zip(halves, (keys[5:], keys[:7]), strict=True):
        for key in share:
            half.update(key, images[key][1], images[key][0])
    halves[0].records.update(pickle.loads(pickle.dumps(halves[1].records)))
    assert halves[0].compute() == expected


def test_ids_may_be_strings() -> None:
    images = random_images(2)
    named = {f"image_{key:06d}": images[key] for key in reversed(list(images))}
    assert evaluate(named) == evaluate(images)
    mixed = {key if i % 2 else str(key): images[key] for i, key in enumerate(images)}
    assert evaluate(mixed) == evaluate(dict(reversed(mixed.items())))


@pytest.mark.parametrize("backend", BACKENDS)
def test_max_detections(backend: Backend) -> None:
    images = random_images(6)
    metrics = evaluate(images, backend=backend, max_detections=(2, 4, 5))
    # pycocotools' own summary takes 100 for granted in its first metric
    assert list(metrics.values())[1:12] == pytest.approx(oracle(images, max_detections=(2, 4, 5))[1:], abs=1e-12)
    assert list(metrics)[6:9] == ["AR2", "AR4", "AR5"]


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for backend in BACKENDS:
        evaluate(random_images(1, count=3), backend=backend)
    assert capsys.readouterr().out == ""


def test_records_are_small_copies() -> None:
    target, found = image([(0, 0, 0, 50, 50)], [(0.9, 0, 0, 0, 50, 50)])
    batch = torch.zeros(64, 100, 4)
    batch[0, :1] = found.boxes
    evaluator = CocoAP(classes=CLASSES)
    evaluator.update("a", Detections(batch[0, :1], found.scores, found.labels), target)
    batch.zero_()
    target["boxes"][:] = 0
    assert evaluator.compute()["AP"] == pytest.approx(1)
    assert all(column.base is None or column.base.nbytes < 100 for column in evaluator.records["a"])


def test_an_image_without_annotated_boxes_does_not_count() -> None:
    images = random_images(7)
    _, found = images[3]
    assert evaluate({**images, 999: ({"mask": np.zeros((4, 4))}, found)}) == evaluate(images)


def test_area_and_ignore_have_defaults() -> None:
    images = {1: image([(0, 0, 0, 20, 20), (0, 50, 50, 90, 90)], [(0.9, 0, 0, 0, 20, 20)])}
    bare = {key: images[1][0][key] for key in ("boxes", "labels")}
    assert evaluate({1: (bare, images[1][1])}) == evaluate(images)


def test_each_mistake_is_named() -> None:
    evaluator = CocoAP(classes=CLASSES)
    target, found = image([(0, 0, 0, 50, 50)], [(0.9, 0, 0, 0, 50, 50)])
    with pytest.raises(ConfigError, match="CocoAP needs detections, the head gives Scores"):
        evaluator.update(1, Scores(torch.ones(4)), target)
    with pytest.raises(DataError, match="image 7: detected label 4, but there are 4 classes"):
        evaluator.update(7, Detections(found.boxes, found.scores, torch.tensor([4])), target)
    with pytest.raises(DataError, match="image a: annotated label -1"):
        evaluator.update("a", found, {**target, "labels": np.array([-1])})
    with pytest.raises(TrainingError, match="image 7: a detected box or score is not finite"):
        evaluator.update(7, Detections(found.boxes, torch.tensor([float("nan")]), found.labels), target)
    with pytest.raises(ConfigError, match="no backend 'pycoco'; did you mean 'pycocotools'"):
        CocoAP(classes=CLASSES, backend="pycoco").compute()  # type: ignore[arg-type]
    for wrong in ((0, 10, 100), (1, 10, 10), (10, 1, 100)):
        with pytest.raises(ConfigError, match="three increasing counts"):
            CocoAP(classes=CLASSES, max_detections=wrong).compute()
        assert len(EVALUATORS.bind("coco", {"max_detections": wrong}, place="evaluator")[1]) == 1
    assert evaluator.records == {}


def test_it_is_registered_and_its_arguments_are_checked() -> None:
    built = EVALUATORS.build("coco", {"max_detections": [1, 10, 300]}, place="det.evaluator", classes=CLASSES)
    assert built.max_detections == (1, 10, 300)
    assert built.main in built.compute()
    with pytest.raises(ConfigError, match=r"det\.evaluator\.args\.backend"):
        EVALUATORS.build("coco", {"backend": "fast"}, place="det.evaluator", classes=CLASSES)
