"""Times COCO evaluation: `CocoAP` with either of its libraries, and pycocotools used directly.

    python benchmarks/coco_eval.py [--images 1000] [--detections 100]

The data are synthetic, from a fixed seed. The table shows seconds, the ratio to pycocotools, and the largest difference
among the 12 metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnv2det.evaluation.coco import Backend, CocoAP
from mnv2det.structures import Detections

Image = tuple[dict[str, NDArray[Any]], Detections]


def make_images(count: int, *, detections: int, classes: int, seed: int) -> list[Image]:
    """Makes ground truth (7 boxes per image on average) and detections, half of which are jittered copies of it."""
    rng = np.random.default_rng(seed)

    def boxes(n: int) -> NDArray[np.float32]:
        corner, size = rng.uniform(0, 500, (n, 2)), np.exp(rng.uniform(1.5, 5.5, (n, 2)))
        return np.concatenate([corner, corner + size], axis=1, dtype=np.float32, casting="same_kind")

    images = []
    for _ in range(count):
        n = 1 + rng.poisson(6)
        truth = boxes(n)
        labels = rng.integers(0, classes, n)
        area = np.prod(truth[:, 2:] - truth[:, :2], axis=1)
        target = {"boxes": truth, "labels": labels, "ignore": rng.random(n) < 0.01, "area": area}
        copied = rng.integers(0, n, detections // 2)
        size = np.tile(truth[copied, 2:] - truth[copied, :2], 2)
        near = (truth[copied] + rng.normal(0, 0.05 * size)).astype(np.float32)
        rest = detections - len(copied)
        result = Detections(
            boxes=torch.from_numpy(np.concatenate([near, boxes(rest)])),
            scores=torch.from_numpy(np.sort(rng.random(detections, np.float32))[::-1].copy()),
            labels=torch.from_numpy(np.concatenate([labels[copied], rng.integers(0, classes, rest)])),
        )
        images.append((target, result))
    return images


def ours(images: list[Image], classes: int, backend: Backend) -> list[float]:
    """Computes the 12 metrics with the evaluator of this package."""
    evaluator = CocoAP(classes=[str(k) for k in range(classes)], backend=backend)
    for image_id, (target, result) in enumerate(images):
        evaluator.update(image_id, result, target)
    return list(evaluator.compute().values())[:12]


def direct(images: list[Image], classes: int) -> list[float]:
    """Computes the 12 metrics with pycocotools, used as in its own examples."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(boxes: NDArray[np.float32]) -> list[list[float]]:
        wide = boxes.astype(np.float64)
        return np.concatenate([wide[:, :2], wide[:, 2:] - wide[:, :2]], axis=1).tolist()  # type: ignore[no-any-return]

    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for i, (target, found) in enumerate(images):
        columns = (xywh(target["boxes"]), *(target[key].tolist() for key in ("labels", "ignore", "area")))
        for box, label, ignore, area in zip(*columns, strict=True):
            entry = {"image_id": i, "category_id": label, "bbox": box, "iscrowd": int(ignore), "area": area}
            annotations.append({"id": len(annotations) + 1, **entry})
        rows = zip(xywh(found.boxes.numpy()), found.labels.tolist(), found.scores.tolist(), strict=True)
        results += [{"image_id": i, "category_id": label, "bbox": box, "score": s} for box, label, s in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(len(images))],
            "categories": [{"id": k} for k in range(classes)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def main() -> None:
    """Parses the arguments and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100)
    )
    parser.add_argument("--images", type=int, default=1000, help="number of images (default 1000)")
    parser.add_argument("--detections", type=int, default=100, help="detections per image (default 100)")
    parser.add_argument("--classes", type=int, default=80, help="number of classes (default 80)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic data (default 0)")
    options = parser.parse_args()
    images = make_images(options.images, detections=options.detections, classes=options.classes, seed=options.seed)
    runs = {
        "pycocotools, direct": lambda: direct(images, options.classes),
        "CocoAP, pycocotools": lambda: ours(images, options.classes, "pycocotools"),
        "CocoAP, faster_coco_eval": lambda: ours(images, options.classes, "faster_coco_eval"),
    }
    print(f"{options.images} images, {options.images * options.detections} detections, {options.classes} classes")
    print(f"{'':26}{'seconds':>9}{'times faster':>14}{'AP':>8}{'max difference':>16}")
    base: tuple[float, list[float]] | None = None
    for name, run in runs.items():
        start = time.perf_counter()
        metrics = run()
        seconds = time.perf_counter() - start
        base = base or (seconds, metrics)
        difference = float(np.abs(np.subtract(metrics, base[1])).max())
        print(f"{name:26}{seconds:9.2f}{base[0] / seconds:14.1f}{metrics[0]:8.4f}{difference:16.1e}")


if __name__ == "__main__":
    main()
