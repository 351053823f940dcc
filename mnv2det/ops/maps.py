"""Maps of class scores: enlarging them, and the masks they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mnv2det.structures import Frame, Segmentation


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with the corners aligned, as DeepLab's authors do.

    Args:
        maps: (B, K, h, w), any floating type.
        size: (H, W).

    Returns:
        float32 (B, K, H, W).
    """
    return F.interpolate(maps.float(), size, mode="bilinear", align_corners=True)


def sample(maps: Tensor, size: tuple[int, int], step: int) -> Tensor:
    """What `enlarge` gives in every ``step``-th row and column, without computing the rest.

    Args:
        maps: (B, K, h, w), any floating type.
        size: (H, W) that it would be enlarged to.
        step: From one row or column to the next.

    Returns:
        float32 (B, K, ceil(H / step), ceil(W / step)).
    """
    rows, columns = (torch.arange(0, n, step, device=maps.device) * (2 / max(n - 1, 1)) - 1 for n in size)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)


def label(maps: Tensor, frames: Sequence[Frame]) -> list[Segmentation]:
    """The class with the largest value at every pixel.

    Args:
        maps: Logits or probabilities (B, K, H, W) of the network's input.
        frames: One per image.

    Returns:
        Masks in the original sizes.
    """
    results = []
    for image, (size, (height, width)) in enumerate(frames):
        seen = maps[image : image + 1, :, :height, :width]
        if (height, width) != tuple(size):
            # the picture was resized without aligning corners, so this is its way back
            seen = F.interpolate(seen, tuple(size), mode="bilinear", align_corners=False)
        results.append(Segmentation(seen[0].argmax(dim=0).to(torch.uint8)))
    return results
