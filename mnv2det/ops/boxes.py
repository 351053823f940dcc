"""Box arithmetic. Boxes are xyxy; anchors and boxes are in the same unit, of whatever kind."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# docs/recipes.md: scales of the box code, y 10 x 10 h 5 w 5 (variances .1 .2)
CENTER_SCALE, SIZE_SCALE = 10.0, 5.0
# a decoded box is at most this many times its anchor, so that exp() cannot overflow in training
MAX_LOG_SIZE = math.log(1000.0)


def to_center(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and sizes, (..., 2) each as (x, y) and (w, h), of xyxy boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Computes SSD's box code: what the box branch should predict at an anchor (docs/recipes.md).

    Args:
        boxes: (..., A, 4) xyxy; a box without area gives a finite but meaningless code.
        anchors: (A, 4) xyxy.

    Returns:
        (..., A, 4): scaled offsets x, y and log sizes w, h.
    """
    (center, size), (anchor_center, anchor_size) = to_center(boxes), to_center(anchors)
    offset = (center - anchor_center) / anchor_size * CENTER_SCALE
    growth = (size.clamp(min=1e-6) / anchor_size).log() * SIZE_SCALE
    return torch.cat([offset, growth], dim=-1)


def decode(codes: Tensor, anchors: Tensor) -> Tensor:
    """Computes boxes from their codes, the inverse of `encode`.

    Args:
        codes: (..., A, 4).
        anchors: (A, 4) xyxy.

    Returns:
        (..., A, 4) xyxy, not clipped to the image.
    """
    low = anchors[..., :2]
    size = anchors[..., 2:] - low
    center = low + (codes[..., :2] / CENTER_SCALE + 0.5) * size
    half = (codes[..., 2:] / SIZE_SCALE).clamp(max=MAX_LOG_SIZE).exp() * (size * 0.5)
    return torch.cat([center - half, center + half], dim=-1)


def decode_numpy(codes: NDArray[np.float32], anchors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Computes what `decode` computes, with NumPy: faster for the few boxes of one picture.

    Besides, torch's ``exp`` wakes its threads, which then spin on the cores that another runtime's next
    prediction needs.

    Args:
        codes: (N, 4).
        anchors: (N, 4) xyxy.

    Returns:
        (N, 4) xyxy, not clipped to the image.
    """
    low = anchors[:, :2]
    sides = anchors[:, 2:] - low
    center = low + (codes[:, :2] / CENTER_SCALE + 0.5) * sides
    half = np.exp(np.minimum(codes[:, 2:] / SIZE_SCALE, MAX_LOG_SIZE)) * (sides * 0.5)
    return np.concatenate([center - half, center + half], axis=1)


def clip_boxes(boxes: NDArray[np.float32], size: tuple[float, float]) -> NDArray[np.float32]:
    """Cuts boxes (..., 4), xyxy, to an image of the size (H, W)."""
    return np.clip(boxes, 0, np.array([size[1], size[0]] * 2, np.float32))


def area(boxes: Tensor) -> Tensor:
    """Areas (...) of boxes (..., 4), xyxy; 0 where a box is turned inside out."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """Overlap areas (..., N, M) of xyxy boxes (..., N, 4) and (..., M, 4), batched by broadcasting."""
    x1, y1, x2, y2 = first[..., :, None, :].unbind(-1)
    left, top, right, bottom = second.movedim(-1, 0).contiguous()[..., None, :].unbind(0)
    # one coordinate at a time is several times faster than pairs of them in the last dimension
    width = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp_(min=0)
    return width.mul_((torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp_(min=0))
