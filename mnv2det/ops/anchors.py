"""SSD's anchors (docs/recipes.md; TensorFlow Object Detection API, ssd_anchor_generator)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

Shape = tuple[float, float]  # scale (side relative to the image) and aspect ratio (width / height)


def level_shapes(
    levels: int,
    *,
    min_scale: float = 0.2,
    max_scale: float = 0.95,
    ratios: Sequence[float] = (1.0, 2.0, 0.5, 3.0, 1 / 3),
    lowest: Sequence[Shape] | None = ((0.1, 1.0), (0.2, 2.0), (0.2, 0.5)),
) -> tuple[tuple[Shape, ...], ...]:
    """Computes the anchor shapes of every level.

    Args:
        levels: Number of feature maps, finest first.
        min_scale: Scale of the finest level.
        max_scale: Scale of the coarsest; those between are spaced evenly.
        ratios: Aspect ratios of every level, each at the level's scale. A level also gets a square of the scale
            ``sqrt(s_k s_k+1)``, s_k+1 being that of the next level.
        lowest: Shapes of the finest level in place of those; None treats it as the others.

    Returns:
        For each level its (scale, ratio) pairs.
    """
    step = (max_scale - min_scale) / max(levels - 1, 1)
    scales = [min_scale + step * level for level in range(levels)] + [1.0]
    shapes = [
        (*((scale, ratio) for ratio in ratios), (math.sqrt(scale * above), 1.0))
        for scale, above in zip(scales, scales[1:], strict=False)
    ]
    if lowest is not None:
        shapes[0] = tuple((scale, ratio) for scale, ratio in lowest)
    return tuple(shapes)


@functools.lru_cache(maxsize=32)
def make_anchors(
    maps: tuple[tuple[int, int], ...],
    shapes: tuple[tuple[Shape, ...], ...],
    size: tuple[int, int],
    cells: tuple[float, ...] | None = None,
) -> Tensor:
    """Computes the anchors of all levels, one level after another, row by row, shape by shape.

    Centres are at ``(i + .5) / map`` of the image, or at ``(i + .5) * cell`` pixels, but not beyond its edge. Sides
    are relative to the image's shorter side, so that a ratio is one of pixels, in images that are not square as well.
    Anchors are not clipped.

    Args:
        maps: (height, width) of each level's feature map.
        shapes: From `level_shapes`.
        size: (H, W) of the image in pixels.
        cells: Pixels between neighbouring centres of each level; None spreads them evenly.

    Returns:
        float32 (A, 4), xyxy in pixels; do not write to it, it is cached.
    """
    side = min(size)
    levels = []
    for number, ((height, width), level) in enumerate(zip(maps, shapes, strict=True)):
        row, column = (cells[number], cells[number]) if cells else (size[0] / height, size[1] / width)
        # cells that do not divide the image can reach beyond it: the tenth of 32 pixels in 300
        ys = ((torch.arange(height, dtype=torch.float64) + 0.5) * row).clamp(max=size[0])
        xs = ((torch.arange(width, dtype=torch.float64) + 0.5) * column).clamp(max=size[1])
        scale, ratio = torch.tensor(level, dtype=torch.float64).unbind(1)
        half = torch.stack([scale * ratio.sqrt(), scale / ratio.sqrt()], dim=1) * side / 2
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        center = torch.stack([x, y], dim=-1)[:, :, None]
        levels.append(torch.cat([center - half, center + half], dim=-1).reshape(-1, 4))
    return torch.cat(levels).float()
