"""How a picture lies in the network's input: the only place that knows what `Preprocess.fit` means in numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from mnv2det.structures import Preprocess

WEIGHT_ONE = 2048  # weights of bilinear resizing are whole numbers as OpenCV's; this one stands for 1
CROP = 0.875  # share of a picture's shorter side that `fit: crop` shows, as the authors evaluate (224 of 256)


class Placement(NamedTuple):
    """Where a picture lies, in pixels; each attribute is (vertical, horizontal).

    Attributes:
        scaled: Size that the picture is resized to.
        corner: Upper left corner of the input within the resized picture.
        used: Size of the input's upper left part that shows the picture; the rest is filled.
    """

    scaled: tuple[Any, Any]
    corner: tuple[Any, Any]
    used: tuple[Any, Any]


def place(height: Any, width: Any, preprocess: Preprocess, xp: Any, *, shrink: bool = False) -> Placement:
    """Computes where pictures lie in the input.

    Args:
        height: Heights of the pictures: a number, or an array or tensor (float64, so that all round alike).
        width: Their widths, in the same form.
        preprocess: That of the model.
        xp: The library that computes with them: ``numpy`` or ``torch``.
        shrink: Whether ``pad`` makes a picture smaller that exceeds the input; otherwise it stays larger.

    Returns:
        Whole numbers, or arrays or tensors of them.
    """
    rows, columns = preprocess.input_size
    whole, origin = (rows, columns), (0, 0)
    if preprocess.fit == "stretch":
        return Placement(whole, origin, whole)
    if preprocess.fit == "crop":
        factor = xp.maximum(rows / CROP / height, columns / CROP / width)
        scaled = (xp.clip(xp.round(height * factor), rows, None), xp.clip(xp.round(width * factor), columns, None))
        return Placement(scaled, (xp.floor((scaled[0] - rows) / 2), xp.floor((scaled[1] - columns) / 2)), whole)
    if preprocess.fit == "pad" and not shrink:
        return Placement((height, width), origin, (height, width))
    factor = xp.minimum(rows / height, columns / width)
    if preprocess.fit == "pad":
        factor = xp.clip(factor, None, 1.0)
    used = (xp.clip(xp.round(height * factor), 1, None), xp.clip(xp.round(width * factor), 1, None))
    return Placement(used, origin, used)


class GraphFrame(NamedTuple):
    """What a `Frame` is in an exported graph: where the pictures of a batch, all of one size, lie in the input.

    Attributes:
        height: Of the pictures in pixels; the symbolic size of a traced tensor.
        width: Of the pictures in pixels; symbolic as well.
        size: The same two numbers as a tensor, float64 (2,).
        used: (h, w) of the input's upper left part that shows the pictures, float64 (2,).
    """

    height: int
    width: int
    size: Tensor
    used: Tensor
