"""Segmentation from several looks at a picture: scales, mirror images, overlapping windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mnv2det.models.head import Dense
from mnv2det.ops.maps import label
from mnv2det.structures import Frame, Result

if TYPE_CHECKING:
    from mnv2det.models.model import Model

OVERLAP = 1 / 3  # least share of a window that its neighbour sees too


def segment(
    model: Model,
    heads: Mapping[str, Dense],
    inputs: Tensor,
    frames: Sequence[Frame],
    *,
    scales: Sequence[float],
    flip: bool,
) -> dict[str, list[Result]]:
    """Masks from class probabilities averaged over scales and mirror images (paper, Table 7: MF).

    Where pictures are not scaled to the input (``fit: pad``), one larger than the input is covered
    by windows that overlap by a third or more.

    Args:
        model: Whose backbone to use.
        heads: The segmentation heads among its own.
        inputs: float32 (B, 3, H, W), normalised.
        frames: One per image.
        scales: Factors of the input's size; the authors' MF has 0.5 to 1.75 in steps of 0.25.
        flip: Whether every scale is also seen mirrored.

    Returns:
        Task name to one `Segmentation` per image.
    """
    size = (inputs.shape[-2], inputs.shape[-1])
    window = model.preprocess.input_size if model.preprocess.fit == "pad" else size
    totals: dict[str, Tensor] = {}
    for scale in scales:
        # corners are aligned, hence n - 1 steps between n pixels
        scaled = (round((size[0] - 1) * scale) + 1, round((size[1] - 1) * scale) + 1)
        seen = inputs
        if scaled != size:
            seen = F.interpolate(inputs, scaled, mode="bilinear", align_corners=True)
        # with its scale a window covers the same part of the picture
        part = (round((window[0] - 1) * scale) + 1, round((window[1] - 1) * scale) + 1)
        for mirrored in (False, True) if flip else (False,):
            found = _scores(model, heads, seen.flip(-1) if mirrored else seen, part)
            for task, maps in found.items():
                maps = maps.flip(-1) if mirrored else maps
                if scaled != size:
                    maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
                totals[task] = totals[task] + maps if task in totals else maps
    return {task: list(label(maps, frames)) for task, maps in totals.items()}


def _scores(model: Model, heads: Mapping[str, Dense], inputs: Tensor, window: tuple[int, int]) -> dict[str, Tensor]:
    """Probabilities (B, K, H, W) of each task, from one pass or from windows."""
    height, width = inputs.shape[-2:]
    taps = tuple(dict.fromkeys(tap for head in heads.values() for tap in head.taps))
    totals: dict[str, Tensor] = {}
    seen = inputs.new_zeros(height, width)
    for rows, columns in windows((height, width), window):
        features = model.backbone(inputs[..., rows, columns], taps)
        seen[rows, columns] += 1
        for task, head in heads.items():
            maps = head.scores(head(features), (rows.stop - rows.start, columns.stop - columns.start))
            if task not in totals:
                totals[task] = maps.new_zeros(*maps.shape[:2], height, width)
            totals[task][..., rows, columns] += maps
    return {task: maps / seen for task, maps in totals.items()}


def windows(size: tuple[int, int], window: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Windows that cover a picture, evenly spread, each the size of ``window`` or all there is.

    Args:
        size: (H, W) of the picture.
        window: (H, W) of a window.

    Yields:
        Rows and columns.
    """
    for rows in _spread(size[0], window[0]):
        for columns in _spread(size[1], window[1]):
            yield rows, columns


def _spread(length: int, window: int) -> list[slice]:
    if length <= window:
        return [slice(0, length)]
    step = max(1, int(window * (1 - OVERLAP)))
    count = -(-(length - window) // step) + 1
    starts = torch.linspace(0, length - window, count).round().int().tolist()
    return [slice(start, start + window) for start in starts]
