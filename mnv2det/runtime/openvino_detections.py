"""The steps of `mnv2det.ops.detections` as operators of OpenVINO, behind a network that predicts boxes at anchors.

The steps are little work in many small calls. After a network has run, whose weights fill the caches, each call from
Python takes several times as long as by itself; within the graph they take next to no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnv2det.io import import_optional
from mnv2det.models.head import AnchorCoding, Head
from mnv2det.ops.boxes import CENTER_SCALE, MAX_LOG_SIZE, SIZE_SCALE
from mnv2det.structures import Detections, Frame

FRAME = "frame"  # name of the input that says where the picture lies
ANCHORS = 192  # most anchors whose boxes are computed
LOWEST = np.finfo(np.float32).min


class GraphDetections:
    """The detections of one task as further outputs of a network.

    Only the `ANCHORS` anchors with the highest class logits are used. Every candidate above the highest logit of
    another anchor is at one of them, and greedy NMS decides on a box from better ones alone. So the survivors above
    that logit are the survivors of all anchors. Where they are fewer than the detections asked for, `read` returns
    None, and `Head.decode` has to look at all anchors.

    Args:
        network: An ``openvino.Model`` for one picture of a fixed size; it is changed.
        task: Name of the task.
        coding: How its head predicts boxes.
        anchors: float32 (A, 4), xyxy in pixels of the input.
        frame: Parameter float32 (3, 4) of the network, as `write_frame` fills it.
    """

    def __init__(
        self, network: Any, task: str, coding: AnchorCoding, anchors: NDArray[np.float32], *, frame: Any
    ) -> None:
        op = import_optional("openvino", "openvino").opset13
        self.task, self.settings = task, coding.settings
        self.least_logit = coding.settings.least_logit(softmax=coding.softmax)

        def ints(*values: int) -> Any:
            return op.constant(np.array(values, np.int64))

        def columns(values: Any, first: int, last: int, axis: int = 1) -> Any:
            return op.slice(values, ints(first), ints(last), ints(1), ints(axis))

        logits, codes = (network.output(f"{task}.{name}").node.input_value(0) for name in (coding.logits, coding.codes))
        _, number, width = logits.get_shape()
        if coding.softmax:
            logits = op.log_softmax(logits, 2)
        if width > coding.classes:
            logits = columns(logits, width - coding.classes, width, 2)
        logits = op.reshape(logits, ints(number, coding.classes), special_zero=False)
        count = min(ANCHORS, number)
        # sorted by index, so that of equal candidates the first is taken, as NumPy does
        top = op.topk(op.reduce_max(logits, ints(1)), np.int64(count), 0, "max", "index", index_element_type="i32")
        rows = top.output(1)
        logits = op.gather(logits, rows, ints(0))
        least = op.reduce_min(top.output(0), ints(0)) if count < number else op.constant(LOWEST)

        # as `mnv2det.ops.boxes.decode_numpy`
        pairs = np.concatenate([anchors[:, :2], anchors[:, 2:] - anchors[:, :2]], 1)
        pair = op.gather(op.constant(pairs), rows, ints(0))
        code = op.gather(op.reshape(codes, ints(number, 4), special_zero=False), rows, ints(0))
        low, sides, shift, growth = columns(pair, 0, 2), columns(pair, 2, 4), columns(code, 0, 2), columns(code, 2, 4)
        center = op.add(low, op.multiply(op.add(op.divide(shift, np.float32(CENTER_SCALE)), np.float32(0.5)), sides))
        growth = op.minimum(op.divide(growth, np.float32(SIZE_SCALE)), np.float32(MAX_LOG_SIZE))
        half = op.multiply(op.exp(growth), op.multiply(sides, np.float32(0.5)))
        used, factor, size = (columns(frame, row, row + 1, 0) for row in range(3))

        def clip(boxes: Any, corner: Any) -> Any:
            return op.minimum(op.maximum(boxes, np.float32(0)), corner)

        boxes = op.concat([op.subtract(center, half), op.add(center, half)], 1)
        if not self.settings.clip_after_nms:
            boxes = clip(boxes, used)
        kept = op.non_max_suppression(
            op.unsqueeze(boxes, ints(0)),
            op.unsqueeze(op.transpose(logits, ints(1, 0)), ints(0)),
            ints(self.settings.max_detections),
            op.constant(np.float32(self.settings.nms_iou)),
            op.maximum(least, op.constant(np.maximum(np.float32(self.least_logit), LOWEST))),
            box_encoding="corner",
            sort_result_descending=True,
            output_type="i32",
        ).output(0)
        outputs = {
            "kept": kept,
            "boxes": clip(op.multiply(boxes, factor), size),
            "logits": logits,
            "scores": op.exp(logits) if coding.softmax else op.sigmoid(logits),
            "least": least,
        }
        self.names = [f"{task}.first.{name}" for name in outputs]
        results = [op.result(output) for output in outputs.values()]
        for name, result in zip(self.names, results, strict=True):
            result.output(0).get_tensor().set_names({name})
        network.add_results(results)

    def read(self, request: Any) -> Detections | None:
        """Reads the detections; None where all anchors have to be looked at.

        Args:
            request: An ``openvino.InferRequest`` that has run.
        """
        kept, boxes, logits, scores, least = (request.get_tensor(name).data for name in self.names)
        limit = self.settings.max_detections
        if len(kept) < limit and least.item() > self.least_logit:
            return None
        # columns: picture of the batch, class, row among the anchors used; best first
        labels, rows = kept[:, 1], kept[:, 2]
        best = logits[rows, labels]
        if (best[1:] == best[:-1]).any():
            order = np.lexsort((labels, rows, -best))
            labels, rows = labels[order], rows[order]
        labels, rows = labels[:limit], rows[:limit]
        return Detections(
            torch.from_numpy(boxes[rows]),
            torch.from_numpy(scores[rows, labels]),
            torch.from_numpy(labels.astype(np.int64)),
        )


def add_detections(network: Any, heads: Mapping[str, Head], size: tuple[int, int]) -> list[GraphDetections]:
    """Adds the detections of all heads that predict boxes at anchors, and the input `FRAME` if there are any.

    Args:
        network: An ``openvino.Model`` for one picture of a fixed size; it is changed.
        heads: By task.
        size: (H, W) of the input.
    """
    codings = {task: coding for task, head in heads.items() if (coding := head.anchor_coding()) is not None}
    # an IoU of 1 keeps equal boxes as well, and libraries disagree on which boxes are equal
    codings = {task: coding for task, coding in codings.items() if coding.settings.nms_iou < 1}
    if not codings:
        return []
    frame = import_optional("openvino", "openvino").opset13.parameter([3, 4], np.float32, FRAME)
    frame.output(0).get_tensor().set_names({FRAME})
    network.add_parameters([frame])
    return [
        GraphDetections(network, task, coding, heads[task].constants(size)[coding.anchors].numpy(), frame=frame)
        for task, coding in codings.items()
    ]


def write_frame(frame: Frame, values: NDArray[np.float32]) -> None:
    """Writes where the picture lies into the input `FRAME`.

    Args:
        frame: Of the picture.
        values: float32 (3, 4). The rows become the lower right corner of the picture within the input, the factors
            from there to the picture's own pixels, and its lower right corner in these; x and y, each twice.
    """
    (height, width), (used_height, used_width) = frame
    values[0] = used_width, used_height, used_width, used_height
    values[1] = (width / used_width, height / used_height) * 2
    values[2] = width, height, width, height
