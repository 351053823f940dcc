"""Maps of class scores: how they are enlarged, and the masks that they stand for."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mnv2det.ops.geometry import GraphFrame
from mnv2det.structures import Frame, Segmentation

TILE = 16  # side in pixels of the squares of a mask that are labelled at once
TILES = 1024  # most squares that are interpolated at once, which bounds the memory


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes maps bilinearly with the corners aligned, as DeepLab's authors do.

    Args:
        maps: (B, K, h, w), any floating type.
        size: (H, W).

    Returns:
        float32 (B, K, H, W).
    """
    return F.interpolate(maps.float(), size, mode="bilinear", align_corners=True)


def sample(maps: Tensor, size: tuple[int, int], step: int) -> Tensor:
    """Computes every ``step``-th row and column of what `enlarge` gives, and nothing else.

    Args:
        maps: (B, K, h, w), any floating type.
        size: (H, W) that `enlarge` would be given.
        step: Distance from one row or column to the next.

    Returns:
        float32 (B, K, ceil(H / step), ceil(W / step)).
    """
    rows, columns = (torch.arange(0, n, step, device=maps.device) * (2 / max(n - 1, 1)) - 1 for n in size)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)


def label(maps: Tensor, frames: Sequence[Frame]) -> list[Segmentation]:
    """Finds the class with the largest value at every pixel.

    Args:
        maps: Logits or probabilities (B, K, H, W) at the size of the network's input.
        frames: Where each picture lies in the input.

    Returns:
        Masks in the original sizes.
    """
    results = []
    for image, (size, (height, width)) in enumerate(frames):
        shown = maps[image : image + 1, :, :height, :width]
        if (height, width) != tuple(size):
            # the picture was resized without aligning corners, so the way back is the same
            shown = F.interpolate(shown, tuple(size), mode="bilinear", align_corners=False)
        results.append(Segmentation(shown[0].argmax(dim=0).to(torch.uint8)))
    return results


def label_enlarged(maps: Tensor, size: tuple[int, int], frames: Sequence[Frame]) -> list[Segmentation]:
    """Finds the masks of ``label(enlarge(maps, size), frames)`` without computing most of those values.

    An interpolated value is a weighted mean of values of the map, with the same weights for all classes. So
    where one class is largest at every position that a tile of the mask reads, it is largest in the whole
    tile. In the other tiles a class can only win if it is somewhere above the class of each corner.

    Args:
        maps: (B, K, h, w), any floating type.
        size: (H, W) of the network's input.
        frames: Where each picture lies in the input.

    Returns:
        Masks in the original sizes.
    """
    maps = maps.float()
    return [
        Segmentation(_label_tiles(scores, best, size, frame))
        for scores, best, frame in zip(maps, maps.argmax(dim=1), frames, strict=True)
    ]


def label_in_graph(maps: Tensor, weights: Sequence[Tensor], frame: GraphFrame) -> Tensor:
    """Finds the masks that `label_enlarged` finds, by operations that can be traced for pictures of any size.

    Args:
        maps: (B, K, h, w).
        weights: From `enlarging_weights`, of the rows and of the columns.
        frame: Where the pictures lie in the input.

    Returns:
        uint8 (B, H, W).
    """
    rows = _weights_in_picture(weights[0], frame.height, frame.used[0])
    columns = _weights_in_picture(weights[1], frame.width, frame.used[1])
    return torch.matmul(torch.matmul(rows, maps.float()), columns.T).argmax(dim=1).to(torch.uint8)


def enlarging_weights(low: int, full: int) -> Tensor:
    """Along one axis, the weights (full, low) by which `enlarge` makes pixels from the positions of a map."""
    return enlarge(torch.eye(low)[None, None], (full, low))[0, 0]


def _weights_in_picture(weights: Tensor, length: int, used: Tensor) -> Tensor:
    """Weights (length, low) of a map's positions in the pixels of a picture, from those in the pixels of the input."""
    size = torch.scalar_tensor(length, dtype=torch.float64)
    center = ((torch.arange(length, dtype=torch.float64) + 0.5) * (used / size) - 0.5).clamp(min=0.0)
    pixel = center.floor()
    share = (center - pixel).float()[:, None]
    first, second = (weights.index_select(0, index.minimum(used - 1).long()) for index in (pixel, pixel + 1))
    return first * (1 - share) + second * share


def _label_tiles(maps: Tensor, best: Tensor, size: tuple[int, int], frame: Frame) -> Tensor:
    """The mask, uint8 (H, W), of one picture from its maps (K, h, w) and the largest class at each position (h, w)."""
    (height, width), used = frame
    low = maps.shape[1:]
    rows, row_weights = (t.to(maps.device) for t in _tiles(low[0], size[0], used[0], height))
    columns, column_weights = (t.to(maps.device) for t in _tiles(low[1], size[1], used[1], width))
    across = best[rows]
    least = across.amin(dim=1)[:, columns].amin(dim=-1)
    mixed = least != across.amax(dim=1)[:, columns].amax(dim=-1)
    tiles = least.to(torch.uint8)[:, :, None, None].expand(-1, -1, TILE, TILE).contiguous()
    positions = maps.permute(1, 2, 0).contiguous()
    undecided = mixed.nonzero()
    for first in range(0, len(undecided), TILES):
        i, j = undecided[first : first + TILES].unbind(dim=1)
        y, x = rows[i][:, :, None], columns[j][:, None, :]
        corners = best[y, x][:, [0, 0, -1, -1], [0, -1, 0, -1]]
        values, classes = _contenders(positions[y, x].flatten(1, 2), corners)
        across = torch.bmm(row_weights[i], values.reshape(len(i), rows.shape[1], -1))
        across = across.reshape(len(i), TILE, columns.shape[1], -1)
        winner = torch.matmul(column_weights[j][:, None], across).argmax(dim=-1)
        tiles[i, j] = classes.gather(1, winner.flatten(1)).to(torch.uint8).reshape(-1, TILE, TILE)
    return tiles.permute(0, 2, 1, 3).reshape(len(rows) * TILE, -1)[:height, :width].contiguous()


def _contenders(values: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Keeps the classes that may be largest somewhere between the positions of a tile.

    Args:
        values: (N, positions, K): those that each of N tiles reads.
        corners: int64 (N, 4): the largest classes at the corners of each tile.

    Returns:
        The values (N, positions, M) and numbers (N, M) of M classes of each tile.
    """
    possible = torch.ones_like(values[:, 0], dtype=torch.bool)
    for corner in corners.unbind(dim=1):
        above = (values > values.gather(2, corner[:, None, None].expand(-1, values.shape[1], 1))).any(dim=1)
        possible &= above.scatter_(1, corner[:, None], True)
    count = int(possible.sum(dim=1).max())
    # in ascending order, so that a tie goes to the first class
    classes = possible.byte().topk(count, dim=1).indices.sort(dim=1).values
    return values.gather(2, classes[:, None].expand(-1, values.shape[1], -1)), classes


@functools.lru_cache(maxsize=16)
def _tiles(low: int, full: int, used: int, size: int) -> tuple[Tensor, Tensor]:
    """Along one axis, the positions of a map that each tile of a mask reads, and their weights.

    Args:
        low: Number of positions of the map.
        full: Number of pixels of the network's input; its corners are aligned to those of the map.
        used: How many of these pixels show the picture.
        size: Number of pixels of the picture.

    Returns:
        Positions int64 (T, n) and weights float32 (T, TILE, n).
    """
    weights = F.interpolate(torch.eye(low)[None], full, mode="linear", align_corners=True)[..., :used]
    if size != used:
        weights = F.interpolate(weights, size, mode="linear", align_corners=False)
    weights = F.pad(weights, (0, -size % TILE), mode="replicate")[0].T.reshape(-1, TILE, low)
    read = (weights > 0).any(dim=1).int()
    first, last = read.argmax(dim=1), low - 1 - read.flip(1).argmax(dim=1)
    count = int((last - first).max()) + 1
    positions = first.clamp(max=low - count)[:, None] + torch.arange(count)
    return positions, weights.gather(2, positions[:, None].expand(-1, TILE, -1))
