"""A picture of what a run has learned: predictions beside ground truth."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnv2det.config import BadData, load_config
from mnv2det.data.dataset import Dataset
from mnv2det.data.fit import fit, resize
from mnv2det.data.images import EXTENSIONS
from mnv2det.engine.build import build_validation_set, check
from mnv2det.errors import ConfigError, DataError
from mnv2det.io import RunFolder, write_atomically
from mnv2det.models.build import from_file, weights_of
from mnv2det.models.model import Model, pick_device
from mnv2det.report.draw import draw_boxes, draw_detections, draw_mask, encode, grid, title
from mnv2det.structures import Detections, Frame, Sample, Segmentation

SHOWN_HEIGHT = 256  # pixels; thumbnails and photographs are shown alike


def prediction_grid(
    source: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    output: str | os.PathLike[str] | None = None,
    count: int = 12,
    threshold: float = 0.4,
    device: str | None = None,
) -> Path:
    """Draws the first readable images of a run's validation set, predictions left, ground truth right.

    Args:
        source: A run folder.
        overrides: ``key=value`` on its config.
        output: The picture; None puts ``predictions.png`` into the run folder.
        count: Most images shown.
        threshold: Least score drawn.
        device: ``cpu``, ``cuda`` or ``cuda:1``; None takes CUDA where there is one.

    Returns:
        Where the picture is.

    Raises:
        ConfigError: It is no run folder, or has no task that finds boxes or masks.
        DataError: No image can be read, or one cannot and ``data.bad_data`` is ``stop``.
    """
    run = RunFolder(source)
    run.check_begun()
    path = Path(output) if output else run.predictions
    if path.suffix.lower() not in EXTENSIONS:
        raise ConfigError(f"{path}: expected the name of a picture, ending in {', '.join(sorted(EXTENSIONS))}")
    config = load_config(run.config, overrides)
    check(config)
    model = from_file(str(weights_of(source)))[0].to(pick_device(device))
    if not {"labels", "mask"} & {head.target_key for head in model.heads.values()}:
        raise ConfigError(f"{source}: no task of this run finds boxes or masks")
    dataset = build_validation_set(config, dict(model.heads.items()), model.classes, str(source))
    cells: list[NDArray[np.uint8]] = []
    for sample in _samples(dataset, count, config.data.bad_data):
        predicted, truth = _draw(model, sample, threshold)
        cells += [title(predicted, "predicted"), title(truth, "ground truth")]
    data = encode(grid(cells, columns=6), path.suffix)
    write_atomically(path, lambda file: file.write(data))
    return path


def _samples(dataset: Dataset, count: int, bad_data: BadData) -> Iterator[Sample]:
    """The first ``count`` images that can be read."""
    read, reason = 0, "it is empty"
    for index in range(len(dataset)):
        if read == count:
            return
        try:
            sample = dataset.read(index)
        except DataError as error:
            if bad_data is BadData.stop:
                raise
            reason = str(error)
            continue
        read += 1
        yield sample
    if not read:
        raise DataError(f"data.val: none of its {len(dataset)} images can be shown: {reason}")


def _draw(model: Model, sample: Sample, threshold: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The image with its predictions, and with its annotation, each `SHOWN_HEIGHT` high."""
    image, frame = fit(sample.image, model.preprocess)
    height, width = sample.image.shape[:2]
    shown, annotation = resize(sample, (SHOWN_HEIGHT, max(1, round(width * SHOWN_HEIGHT / height))))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(model.mean.device)
    results: dict[str, list[Any]] = model.predict(pixels, [Frame((shown.shape[0], shown.shape[1]), frame.used)])
    predicted, truth = shown, shown
    # masks lie below boxes
    for task, (result,) in sorted(results.items(), key=lambda item: isinstance(item[1][0], Detections)):
        names = model.classes[task]
        if isinstance(result, Detections):
            predicted = draw_detections(predicted, result, names, threshold=threshold)
            if "boxes" in annotation:
                truth = draw_boxes(truth, annotation["boxes"], annotation["labels"], names)
        elif isinstance(result, Segmentation):
            predicted = draw_mask(predicted, result.mask.cpu().numpy(), names)
            if "mask" in annotation:
                truth = draw_mask(truth, annotation["mask"], names)
    return predicted, truth
