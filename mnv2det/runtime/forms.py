"""Results in other forms: fewer boxes, a line of text, plain data, COCO's rows, a drawing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnv2det.data.images import EXTENSIONS
from mnv2det.errors import ConfigError, DataError, near
from mnv2det.io import write_atomically
from mnv2det.report.draw import draw_detections, draw_mask, encode
from mnv2det.structures import Detections, Scores, Segmentation, TaskResult

Results = Mapping[str, TaskResult]
Names = Mapping[str, Sequence[str]]  # class names by task

BEST = 5  # classes of a picture that are told
MOST_TOLD = 8  # names in a line of text


def detectors_of(results: Results) -> dict[str, Detections]:
    """Those of the results that are boxes."""
    return {task: result for task, result in results.items() if isinstance(result, Detections)}


def chosen(detections: Detections, rows: Tensor) -> Detections:
    """Some of the boxes, by their numbers or a mask."""
    rows = rows.to(detections.scores.device)
    return Detections(detections.boxes[rows], detections.scores[rows], detections.labels[rows])


def _best(detections: Detections, threshold: float) -> Detections:
    """The boxes that score at least that much. They are the first ones: slices cost a prediction less than a mask."""
    count = int(np.count_nonzero(detections.scores.cpu().numpy() >= threshold))
    return Detections(detections.boxes[:count], detections.scores[:count], detections.labels[:count])


def filtered(
    results: Results, class_names: Names, names: str | Collection[str] | None, threshold: float | None
) -> dict[str, TaskResult]:
    """The results with fewer boxes; see `mnv2det.runtime.result.Result.filter`."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold: expected a number from 0 to 1, got {threshold}")
    kept, detectors = dict(results), detectors_of(results)
    if threshold is not None:
        kept |= {task: _best(found, threshold) for task, found in detectors.items()}
    if names is not None:
        wanted = {names} if isinstance(names, str) else set(names)
        known = {name for task in detectors for name in class_names[task]}
        for name in sorted(wanted - known):
            raise ConfigError(f"names: no class '{name}'{near(name, known)}")
        for task, found in detectors_of(kept).items():
            is_wanted = [class_names[task][label] in wanted for label in found.labels.tolist()]
            kept[task] = chosen(found, torch.tensor(is_wanted, dtype=torch.bool))
    return kept


def describe(results: Results, names: Names) -> list[str]:
    """Says in a few words what was found: ``2 dogs, 1 person`` of all detectors, then a text for each other task."""
    texts = []
    if detectors := detectors_of(results):
        found = Counter(names[task][label] for task in detectors for label in detectors[task].labels.tolist())
        texts.append(_some([_counted(name, count) for name, count in found.most_common()]) or "no boxes")
    for task, result in results.items():
        if isinstance(result, Segmentation):
            shares = sorted(class_shares(result, names[task]).items(), key=lambda item: -item[1])
            texts.append(_some([f"{name} {share:.0%}" for name, share in shares]))
        elif isinstance(result, Scores):
            texts += [f"{name} {probability:.2f}" for name, probability in best_classes(result, names[task], 1)]
    return texts


def _some(parts: Sequence[str]) -> str:
    """The first parts as a list in a sentence."""
    return ", ".join([*parts[:MOST_TOLD], *(["..."] if len(parts) > MOST_TOLD else [])])


def _counted(name: str, count: int) -> str:
    """A number of things. Only what is surely right gets a plural: names may be in any language."""
    last = name[-1:].lower()
    if count == 1 or not last.isascii() or not last.isalpha() or last == "s":
        return f"{count} {name}"
    return f"{count} {name}{'es' if last in 'xz' or name.lower().endswith(('ch', 'sh')) else 's'}"


def draw(image: NDArray[np.uint8], results: Results, names: Names) -> NDArray[np.uint8]:
    """Draws masks, and boxes on top of them; what classifiers say is not drawn.

    Args:
        image: uint8 (H, W, 3), RGB; it is not changed.
        results: Of this picture.
        names: Class names by task.

    Returns:
        uint8 (H, W, 3), RGB; the image itself if nothing is drawn.
    """
    for task, result in sorted(results.items(), key=lambda item: isinstance(item[1], Detections)):
        if isinstance(result, Detections):
            image = draw_detections(image, result, names[task])
        elif isinstance(result, Segmentation):
            image = draw_mask(image, result.mask.cpu().numpy(), names[task])
    return image


def write_picture(path: str | os.PathLike[str], image: NDArray[np.uint8]) -> None:
    """Writes a picture uint8 (H, W, 3), RGB, in the format that the file's suffix names.

    Raises:
        DataError: There is no such format, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in EXTENSIONS:
        raise DataError(f"{path}: no such format of pictures; expected one of {', '.join(sorted(EXTENSIONS))}")
    data = encode(image, suffix)
    try:
        write_atomically(path, lambda file: file.write(data))
    except OSError as error:
        raise DataError(f"{path}: cannot write ({error.strerror})") from None


def plain(results: Results, names: Names) -> dict[str, Any]:
    """The results as plain data that JSON can hold; see `mnv2det.runtime.result.Result.to_dict`."""
    content: dict[str, Any] = {}
    several = sum(isinstance(result, Segmentation) for result in results.values()) > 1
    for task, result in results.items():
        if isinstance(result, Detections):
            content.setdefault("boxes", []).extend(_plain_boxes(result, names[task]))
        elif isinstance(result, Segmentation):
            shares = {"pixels": class_shares(result, names[task])}
            content.update({task: shares} if several else shares)
        else:
            best = best_classes(result, names[task], BEST)
            content["classes"] = [{"name": name, "score": round(score, 5)} for name, score in best]
    return content


def _plain_boxes(detections: Detections, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    boxes = detections.boxes.cpu().double().numpy().round(3).tolist()
    scores = detections.scores.cpu().double().numpy().round(6).tolist()
    for box, score, label in zip(boxes, scores, detections.labels.tolist(), strict=True):
        yield {"name": names[label], "label": label, "score": score, "box": box}


def coco_results(detections: Detections, image_id: int | str, category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Detections in COCO's results format.

    Args:
        detections: Of one image.
        image_id: Goes into every row.
        category_ids: The json's id of each label.

    Yields:
        A row per box: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels) and ``score``.
    """
    corners = detections.boxes.cpu().double().numpy()
    boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
    for box, score, label in zip(boxes, detections.scores.cpu(), detections.labels.cpu(), strict=True):
        yield {
            "image_id": image_id,
            "category_id": int(category_ids[label]),
            "bbox": [round(value, 3) for value in box.tolist()],
            "score": round(float(score), 6),
        }


def coco_rows(
    detectors: Mapping[str, Detections], names: Names, image_id: int | str, category_ids: Sequence[int] | None
) -> list[dict[str, Any]]:
    """The rows of all detectors; see `mnv2det.runtime.result.Result.to_coco`."""
    count = sum(len(names[task]) for task in detectors)
    ids = list(range(1, count + 1) if category_ids is None else category_ids)
    if len(ids) != count:
        raise ConfigError(f"category_ids: expected {count}, one for each class, got {len(ids)}")
    rows: list[dict[str, Any]] = []
    for task, found in detectors.items():
        rows += coco_results(found, image_id, ids)
        ids = ids[len(names[task]) :]
    return rows


def class_shares(segmentation: Segmentation, names: Sequence[str]) -> dict[str, float]:
    """The share of the picture's pixels that each class of a mask has, in the order of the classes."""
    mask = segmentation.mask.cpu().numpy()
    counts = np.bincount(mask.ravel(), minlength=len(names))
    return {names[label]: round(float(counts[label] / mask.size), 5) for label in np.flatnonzero(counts).tolist()}


def best_classes(scores: Scores, names: Sequence[str], count: int) -> list[tuple[str, float]]:
    """Name and probability of the best classes, best first."""
    best = scores.probabilities.topk(max(0, min(count, len(names))))
    return [(names[index], value) for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
