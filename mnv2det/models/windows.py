"""Segmentation from several views of a picture: scales, mirror images, overlapping windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mnv2det.ops.maps import label
from mnv2det.structures import Frame, TaskResult

OVERLAP = 1 / 3  # least share of a window that its neighbour sees too


def segment(
    compute: Callable[[Tensor], Mapping[str, Tensor]],
    inputs: Tensor,
    frames: Sequence[Frame],
    *,
    window: tuple[int, int],
    scales: Sequence[float],
    flip: bool,
) -> dict[str, list[TaskResult]]:
    """Masks from class probabilities averaged over scales and mirror images (paper, Table 7: MF).

    A picture larger than ``window`` is covered by windows that overlap by a third or more.

    Args:
        compute: Gives every task's class probabilities, float32 (B, K, h, w), for an input (B, 3, h, w).
        inputs: (B, 3, H, W), as ``compute`` takes them.
        frames: One per image.
        window: (H, W) that is computed at once, at scale 1.
        scales: Factors of the input's size; the authors' MF has 0.5 to 1.75 in steps of 0.25.
        flip: Whether every scale is also seen mirrored.

    Returns:
        Task name to one `Segmentation` per image.
    """
    size = (inputs.shape[-2], inputs.shape[-1])
    totals: dict[str, Tensor] = {}
    for scale in scales:
        # corners are aligned, hence n - 1 steps between n pixels
        scaled = (round((size[0] - 1) * scale) + 1, round((size[1] - 1) * scale) + 1)
        shown = inputs
        if scaled != size:
            shown = F.interpolate(inputs, scaled, mode="bilinear", align_corners=True)
        # scaled like the picture, a window covers the same part of it
        part = (round((window[0] - 1) * scale) + 1, round((window[1] - 1) * scale) + 1)
        for mirrored in (False, True) if flip else (False,):
            view = shown.flip(-1) if mirrored else shown

            def look(rows: slice, columns: slice, view: Tensor = view) -> Mapping[str, Tensor]:
                return compute(view[..., rows, columns])

            found = average_windows(look, scaled, part)
            for task, maps in found.items():
                maps = maps.flip(-1) if mirrored else maps
                if scaled != size:
                    maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
                totals[task] = totals[task] + maps if task in totals else maps
    return {task: list(label(maps, frames)) for task, maps in totals.items()}


def average_windows(
    compute: Callable[[slice, slice], Mapping[str, Tensor]], size: tuple[int, int], window: tuple[int, int]
) -> dict[str, Tensor]:
    """Class probabilities of a whole picture from those of windows, averaged where windows overlap.

    Args:
        compute: Gives every task's probabilities (B, K, h, w) for a window's rows and columns.
        size: (H, W) of the picture.
        window: (H, W) of a window.

    Returns:
        Task name to (B, K, H, W).
    """
    totals: dict[str, Tensor] = {}
    seen = torch.zeros(size)
    for rows, columns in windows(size, window):
        seen[rows, columns] += 1
        for task, maps in compute(rows, columns).items():
            if task not in totals:
                totals[task] = maps.new_zeros(*maps.shape[:2], *size)
            totals[task][..., rows, columns] += maps
    return {task: maps / seen.to(maps.device) for task, maps in totals.items()}


def windows(size: tuple[int, int], window: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Windows that cover a picture, evenly spread, each of the size ``window`` or as large as the picture is.

    Args:
        size: (H, W) of the picture.
        window: (H, W) of a window.

    Yields:
        Rows and columns.
    """
    for rows in _along_axis(size[0], window[0]):
        for columns in _along_axis(size[1], window[1]):
            yield rows, columns


def _along_axis(length: int, window: int) -> list[slice]:
    if length <= window:
        return [slice(0, length)]
    step = max(1, int(window * (1 - OVERLAP)))
    count = -(-(length - window) // step) + 1
    starts = torch.linspace(0, length - window, count).round().int().tolist()
    return [slice(start, start + window) for start in starts]
