"""What surrounds a network in a complete export, as tensor operations that can be traced.

No size of a picture becomes a tensor's size before the network: it only decides which pixels are
read, so that all later shapes are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mnv2det.ops.geometry import place
from mnv2det.ops.maps import enlarge
from mnv2det.structures import Preprocess

ONE = 2048  # OpenCV's weights are whole numbers of this many parts
Suppress = Callable[[Tensor, Tensor, float, float, int], Tensor]


def fit(image: Tensor, preprocess: Preprocess) -> tuple[Tensor, Tensor, Tensor]:
    """What `mnv2det.data.fit.fit` does, to a batch of pictures of one size and as OpenCV rounds.

    Where pictures are not scaled (``pad``), one larger than the input is: a graph has no windows.

    Args:
        image: uint8 (B, h, w, 3), RGB.
        preprocess: Of the model.

    Returns:
        int32 (B, H, W, 3); (h, w) of the pictures and the part of the input they fill, float64 (2,) each.
    """
    height, width = (torch.scalar_tensor(image.shape[axis], dtype=torch.float64) for axis in (1, 2))
    placed = place(height, width, preprocess, torch, shrink=True)
    size = torch.stack([height, width])
    scaled, corner, used = (
        torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values]) for values in placed
    )
    (y0, y1, down0, down1), (x0, x1, right0, right1) = (
        _taps(preprocess.input_size[axis], size[axis], scaled[axis], corner[axis], exact_ends=axis == 1)
        for axis in (0, 1)
    )
    rows = []
    for y in (y0, y1):
        row = image.index_select(1, y)
        left, right = row.index_select(2, x0).int(), row.index_select(2, x1).int()
        rows.append((left * right0[:, None] + right * right1[:, None]) // 16)
    above, below = (row * part[:, None, None] // 65536 for row, part in zip(rows, (down0, down1), strict=True))
    fitted = (above + below + 2) // 4
    if preprocess.fit in ("letterbox", "pad"):
        seen = [torch.arange(preprocess.input_size[axis]) < used[axis] for axis in (0, 1)]
        fill = torch.tensor(preprocess.fill, dtype=torch.int32)
        fitted = torch.where((seen[0][:, None] & seen[1])[..., None], fitted, fill)
    return fitted, size, used


def _taps(
    length: int, size: Tensor, used: Tensor, first: Tensor, *, exact_ends: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along one axis, the two pixels that each of ``length`` new ones is mixed from, and their weights.

    ``first`` is the first of the new ones: those before it are cut off.

    As OpenCV computes them: rounded to 1 / 2048, at the ends of rows (not of columns) one pixel alone.
    """
    places = torch.arange(length, dtype=torch.float64) + first
    place = ((places + 0.5) * (size / used) - 0.5).float()
    last = (size - 1).float()
    low = place.floor()
    part = place - low
    if exact_ends:
        part = torch.where((low < 0) | (low >= last), 0.0, part)
    weights = (((1 - part) * ONE).round().int(), (part * ONE).round().int())
    first, second = (at.clamp(min=0.0).minimum(last).long() for at in (low, low + 1))
    return first, second, *weights


def keep_best(
    boxes: Tensor, scores: Tensor, suppress: Suppress, *, threshold: float, iou: float, keep: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`mnv2det.ops.nms.class_nms` of a batch, with results of one length.

    Args:
        boxes: float (B, A, 4) xyxy.
        scores: float (B, K, A).
        suppress: Does the suppression.
        threshold: Scores up to this are no candidates.
        iou: Boxes of a class that overlap a better one by more are suppressed.
        keep: Most boxes of a picture.

    Returns:
        boxes (B, N, 4), scores (B, N) falling, labels int64 (B, N) and how many of them are
        detections, int64 (B,); the others have score 0.
    """
    anchors = scores.shape[2]
    kept = suppress(boxes, scores, iou, threshold, keep)
    best, index = kept.flatten(1).topk(min(keep, scores.shape[1] * anchors), dim=1)
    found = boxes.gather(1, (index % anchors)[..., None].expand(-1, -1, 4))
    return found, best, index // anchors, (best > 0).sum(dim=1)


def suppress_greedily(boxes: Tensor, scores: Tensor, iou: float, threshold: float, keep: int) -> Tensor:
    """NMS within each class, best box of all classes first.

    Returns:
        ``scores`` (B, K, A) of the at most ``keep`` boxes kept, 0 elsewhere.
    """
    anchors = scores.shape[2]
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)
    places = torch.arange(anchors)

    def goes_on(step: Tensor, left: Tensor, kept: Tensor) -> Tensor:
        return (step < keep) & (left.max() > 0)

    def take_best(step: Tensor, left: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best, index = left.flatten(1).max(dim=1)
        at = (index % anchors)[:, None]
        box = boxes.gather(1, at[..., None].expand(-1, 1, 4))
        sides = torch.minimum(box[..., 2:], boxes[..., 2:]) - torch.maximum(box[..., :2], boxes[..., :2])
        shared = sides.clamp(min=0).prod(dim=-1)
        gone = (shared > iou * (area + area.gather(1, at) - shared)) | (places == at)
        row = (index // anchors)[:, None, None].expand(-1, 1, anchors)
        left = left.scatter(1, row, torch.where(gone[:, None], 0.0, left.gather(1, row)))
        kept = kept.flatten(1).scatter(1, index[:, None], best[:, None]).view_as(kept)
        return step + 1, left, kept

    left = torch.where(scores > threshold, scores, 0.0).contiguous()
    state = (torch.zeros((), dtype=torch.int64), left, torch.zeros_like(left))
    if torch.compiler.is_exporting():
        return torch.while_loop(goes_on, take_best, state)[2]
    while goes_on(*state):
        state = take_best(*state)
    return state[2]


@torch.library.custom_op("mnv2det::suppress", mutates_args=())
def suppress_in_onnx(boxes: Tensor, scores: Tensor, iou: float, threshold: float, keep: int) -> Tensor:
    """As `suppress_greedily`; stands for ONNX's NonMaxSuppression, which keeps ``keep`` of each class."""
    return suppress_greedily(boxes, scores, iou, threshold, keep)


@suppress_in_onnx.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, threshold: float, keep: int) -> Tensor:
    return torch.empty_like(scores)


def onnx_translations() -> dict[Any, Any]:
    """What torch's ONNX exporter writes for `suppress_in_onnx`."""
    from onnxscript import opset20

    op: Any = opset20

    def suppress(boxes: Any, scores: Any, iou: float, threshold: float, keep: int) -> Any:
        chosen = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[keep]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[threshold]),
        )
        return op.ScatterND(op.ConstantOfShape(op.Shape(scores)), chosen, op.GatherND(scores, chosen))

    return {torch.ops.mnv2det.suppress.default: suppress}


def label(maps: Tensor, spread: Sequence[Tensor], image: Tensor, used: Tensor) -> Tensor:
    """The class of every pixel, as `mnv2det.ops.maps.label_enlarged` finds it.

    Args:
        maps: (B, K, h, w).
        spread: From `spread_of`, of rows and columns.
        image: (B, H, W, 3), for its size.
        used: From `fit`.

    Returns:
        uint8 (B, H, W).
    """
    rows, columns = (_mix(spread[axis], image.shape[axis + 1], used[axis]) for axis in (0, 1))
    return torch.matmul(torch.matmul(rows, maps.float()), columns.T).argmax(dim=1).to(torch.uint8)


def spread_of(low: int, full: int) -> Tensor:
    """Weights (full, low) by which a map's positions make up an input's pixels, corners aligned."""
    return enlarge(torch.eye(low)[None, None], (full, low))[0, 0]


def _mix(spread: Tensor, length: Any, used: Tensor) -> Tensor:
    """Weights (length, low) of a map's positions in a picture's pixels."""
    size = torch.scalar_tensor(length, dtype=torch.float64)
    place = ((torch.arange(length, dtype=torch.float64) + 0.5) * (used / size) - 0.5).clamp(min=0.0)
    first = place.floor()
    part = (place - first).float()[:, None]
    rows = [spread.index_select(0, at.minimum(used - 1).long()) for at in (first, first + 1)]
    return rows[0] * (1 - part) + rows[1] * part
