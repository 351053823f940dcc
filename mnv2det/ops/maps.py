"""Maps of class scores: enlarging them, and the masks they stand for."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mnv2det.structures import Frame, Segmentation

TILE = 16  # side of the squares that are labelled at once, pixels
TILES = 1024  # of them interpolated at once, which bounds the memory


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


def label_enlarged(maps: Tensor, size: tuple[int, int], frames: Sequence[Frame]) -> list[Segmentation]:
    """What ``label(enlarge(maps, size), frames)`` finds, without computing most of those values.

    An interpolated value is a mean of the map's, weighted alike for all classes. So where one class
    is largest at every position that a tile of the mask reads, it is largest in the whole tile; and
    in the other tiles a class nowhere above that of one of the corners cannot win.

    Args:
        maps: (B, K, h, w), any floating type.
        size: (H, W) of the network's input.
        frames: One per image.

    Returns:
        Masks in the original sizes.
    """
    maps = maps.float()
    return [
        Segmentation(_label_tiles(each, best, size, frame))
        for each, best, frame in zip(maps, maps.argmax(dim=1), frames, strict=True)
    ]


def _label_tiles(maps: Tensor, best: Tensor, size: tuple[int, int], frame: Frame) -> Tensor:
    """The mask, uint8 (H, W), from maps (K, h, w) and their largest classes (h, w)."""
    (height, width), used = frame
    low = maps.shape[1:]
    rows, row_weights = (t.to(maps.device) for t in _tiles(low[0], size[0], used[0], height))
    columns, column_weights = (t.to(maps.device) for t in _tiles(low[1], size[1], used[1], width))
    across = best[rows]
    least = across.amin(dim=1)[:, columns].amin(dim=-1)
    mixed = least != across.amax(dim=1)[:, columns].amax(dim=-1)
    tiles = least.to(torch.uint8)[:, :, None, None].expand(-1, -1, TILE, TILE).contiguous()
    deep = maps.permute(1, 2, 0).contiguous()
    places = mixed.nonzero()
    for first in range(0, len(places), TILES):
        i, j = places[first : first + TILES].unbind(dim=1)
        y, x = rows[i][:, :, None], columns[j][:, None, :]
        corners = best[y, x][:, [0, 0, -1, -1], [0, -1, 0, -1]]
        values, classes = _contenders(deep[y, x].flatten(1, 2), corners)
        across = torch.bmm(row_weights[i], values.reshape(len(i), rows.shape[1], -1))
        across = across.reshape(len(i), TILE, columns.shape[1], -1)
        winner = torch.matmul(column_weights[j][:, None], across).argmax(dim=-1)
        tiles[i, j] = classes.gather(1, winner.flatten(1)).to(torch.uint8).reshape(-1, TILE, TILE)
    return tiles.permute(0, 2, 1, 3).reshape(len(rows) * TILE, -1)[:height, :width].contiguous()


def _contenders(values: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Of values (N, positions, K) those (N, positions, M) of the classes that may be largest in between; these."""
    alive = torch.ones_like(values[:, 0], dtype=torch.bool)
    for corner in corners.unbind(dim=1):
        above = (values > values.gather(2, corner[:, None, None].expand(-1, values.shape[1], 1))).any(dim=1)
        alive &= above.scatter_(1, corner[:, None], True)
    most = int(alive.sum(dim=1).max())
    # in rising order, so that a tie goes to the first class
    classes = alive.byte().topk(most, dim=1).indices.sort(dim=1).values
    return values.gather(2, classes[:, None].expand(-1, values.shape[1], -1)), classes


@functools.lru_cache(maxsize=16)
def _tiles(low: int, full: int, used: int, size: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the map's positions that each tile reads (T, n), and their weights (T, TILE, n).

    Args:
        low: Positions of the map.
        full: Pixels of the network's input, corners aligned to the map's.
        used: Of these, how many show the picture.
        size: Pixels of the picture.
    """
    weights = F.interpolate(torch.eye(low)[None], full, mode="linear", align_corners=True)[..., :used]
    if size != used:
        weights = F.interpolate(weights, size, mode="linear", align_corners=False)
    weights = F.pad(weights, (0, -size % TILE), mode="replicate")[0].T.reshape(-1, TILE, low)
    read = (weights > 0).any(dim=1).int()
    first, last = read.argmax(dim=1), low - 1 - read.flip(1).argmax(dim=1)
    most = int((last - first).max()) + 1
    positions = first.clamp(max=low - most)[:, None] + torch.arange(most)
    return positions, weights.gather(2, positions[:, None].expand(-1, TILE, -1))
