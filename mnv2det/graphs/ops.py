"""What a graph has before and behind the network: fitting pictures to the input, and NMS as ONNX has it.

No size of a picture becomes a tensor's size before the network: it only decides which pixels are
read, so that all later shapes are known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mnv2det.ops.geometry import WEIGHT_ONE, GraphFrame, place
from mnv2det.ops.nms import suppress_greedily
from mnv2det.structures import Preprocess, Sampling


def fit(images: Tensor, preprocess: Preprocess) -> tuple[Tensor, GraphFrame]:
    """Brings a batch of pictures to the input's size as `mnv2det.data.fit.fit` does, rounding like OpenCV.

    With ``pad``, which scales no pictures, one that exceeds the input is made smaller: a graph has no windows.

    Args:
        images: uint8 (B, h, w, 3), RGB.
        preprocess: That of the model.

    Returns:
        int32 (B, H, W, 3), and where the pictures lie in it.
    """
    height, width = (torch.scalar_tensor(images.shape[axis], dtype=torch.float64) for axis in (1, 2))
    placement = place(height, width, preprocess, torch, shrink=True)
    size = torch.stack([height, width])
    scaled, corner, used = (
        torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values]) for values in placement
    )
    (y0, y1, down0, down1), (x0, x1, right0, right1) = (
        _neighbours(
            preprocess.input_size[axis],
            size[axis],
            scaled[axis],
            corner[axis],
            sampling=preprocess.sampling,
            exact_ends=axis == 1,
        )
        for axis in (0, 1)
    )
    rows = []
    for y in (y0, y1):
        row = images.index_select(1, y)
        left, right = row.index_select(2, x0).int(), row.index_select(2, x1).int()
        rows.append((left * right0[:, None] + right * right1[:, None]) // 16)
    above, below = (row * down[:, None, None] // 65536 for row, down in zip(rows, (down0, down1), strict=True))
    fitted = (above + below + 2) // 4
    if preprocess.fit in ("letterbox", "pad"):
        shown = [torch.arange(preprocess.input_size[axis]) < used[axis] for axis in (0, 1)]
        fill = torch.tensor(preprocess.fill, dtype=torch.int32)
        fitted = torch.where((shown[0][:, None] & shown[1])[..., None], fitted, fill)
    return fitted, GraphFrame(images.shape[1], images.shape[2], size, used)


def _neighbours(
    length: int, size: Tensor, scaled: Tensor, start: Tensor, *, sampling: Sampling, exact_ends: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along one axis, the two pixels of a picture from which each pixel of the input is mixed, and their weights.

    Args:
        length: Number of pixels of the input.
        size: Number of pixels of the picture.
        scaled: Number of pixels of the resized picture.
        start: Which of these is the input's first.
        sampling: See `Preprocess`.
        exact_ends: With ``centers``, whether the resized picture's ends are each taken from one pixel, as OpenCV does
            in rows, but not in columns.

    Returns:
        Indices of the first and the second pixels, int64 (length,), and their weights, int32 (length,).
    """
    pixels = torch.arange(length, dtype=torch.float64) + start
    offset = 0.5 if sampling == "centers" else 0.0
    centers = ((pixels + offset) * (size / scaled) - offset).float()
    last = (size - 1).float()
    low = centers.floor()
    share = centers - low
    if exact_ends and sampling == "centers":
        share = torch.where((low < 0) | (low >= last), 0.0, share)
    weights = (((1 - share) * WEIGHT_ONE).round().int(), (share * WEIGHT_ONE).round().int())
    first, second = (index.clamp(min=0.0).minimum(last).long() for index in (low, low + 1))
    return first, second, *weights


@torch.library.custom_op("mnv2det::suppress", mutates_args=())
def suppress_in_onnx(
    boxes: Tensor, scores: Tensor, nms_iou: float, score_threshold: float, max_detections: int
) -> Tensor:
    """Stands for ONNX's NonMaxSuppression in a graph, which keeps ``max_detections`` boxes of each class.

    Args and return value are those of `mnv2det.ops.nms.suppress_greedily`.
    """
    return suppress_greedily(boxes, scores, nms_iou, score_threshold, max_detections)


@suppress_in_onnx.register_fake
def _(boxes: Tensor, scores: Tensor, nms_iou: float, score_threshold: float, max_detections: int) -> Tensor:
    return torch.empty_like(scores)


def onnx_translations() -> dict[Any, Any]:
    """What torch's ONNX exporter writes in place of `suppress_in_onnx`, by operator."""
    from onnxscript import opset20

    op: Any = opset20

    def suppress(boxes: Any, scores: Any, nms_iou: float, score_threshold: float, max_detections: int) -> Any:
        chosen = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[max_detections]),
            op.Constant(value_floats=[nms_iou]),
            op.Constant(value_floats=[score_threshold]),
        )
        return op.ScatterND(op.ConstantOfShape(op.Shape(scores)), chosen, op.GatherND(scores, chosen))

    return {torch.ops.mnv2det.suppress.default: suppress}
