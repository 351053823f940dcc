"""Trained weights in, detections out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnv2det.data.images import read_image
from mnv2det.data.loader import stack
from mnv2det.data.transforms import fit
from mnv2det.errors import DataError
from mnv2det.models.model import from_file, pick_device, weights_of
from mnv2det.structures import Result

Picture = str | os.PathLike[str] | NDArray[np.uint8]


class Predictor:
    """A model with all it needs to know: classes, input size, mean and std come with its weights.

    Args:
        source: A run folder (its ``best.safetensors``) or a weight file.
        device: ``cpu``, ``cuda`` ...; None takes CUDA where there is one.

    Raises:
        WeightsError: There are no weights, or they are damaged.

    Example:
        >>> predictor = Predictor("runs/ssdlite_bccd")          # doctest: +SKIP
        >>> found = predictor("photo.jpg")["det"]               # doctest: +SKIP
        >>> [predictor.classes["det"][i] for i in found.labels]  # doctest: +SKIP
    """

    def __init__(self, source: str | os.PathLike[str], *, device: str | None = None) -> None:
        self.device = pick_device(device)
        model, self.header = from_file(str(weights_of(source)))
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.classes = model.classes

    def __call__(self, picture: Picture) -> dict[str, Result]:
        """Results of every task for one picture.

        Args:
            picture: A file, or uint8 (H, W, 3) RGB.

        Returns:
            Task name to result, in the picture's own pixels.

        Raises:
            DataError: The picture cannot be read, or has another shape or type.
        """
        return self.batch([picture])[0]

    def batch(self, pictures: Sequence[Picture]) -> list[dict[str, Result]]:
        """Results for several pictures, of any sizes, in one pass."""
        if not pictures:
            return []
        images = [_load(picture) for picture in pictures]
        fitted = [fit(image, self.model.preprocess) for image in images]
        pixels = stack([torch.from_numpy(image).permute(2, 0, 1) for image, _ in fitted]).to(self.device)
        found = self.model.predict(pixels, [frame for _, frame in fitted])
        return [{task: results[number] for task, results in found.items()} for number in range(len(images))]


def coco_results(found: Any, image_id: int | str, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Detections as COCO's results format states them.

    Args:
        found: `Detections`.
        image_id: Goes into every row.
        category_ids: The json's id of each label; None counts from 1.
    """
    boxes = found.boxes.cpu().double().numpy()
    sizes = boxes[:, 2:] - boxes[:, :2]
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[label]) if category_ids is not None else int(label) + 1,
            "bbox": [round(value, 3) for value in (*box[:2].tolist(), *size.tolist())],
            "score": round(float(score), 6),
        }
        for box, size, score, label in zip(boxes, sizes, found.scores.cpu(), found.labels.cpu(), strict=True)
    ]


def _load(picture: Picture) -> NDArray[np.uint8]:
    if not isinstance(picture, np.ndarray):
        return read_image(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise DataError(f"array of {picture.dtype} {picture.shape}: expected uint8 (H, W, 3), RGB")
    return picture
