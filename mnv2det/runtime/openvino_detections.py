"""Detections of one picture, found at the best anchors inside OpenVINO's graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnv2det.io import import_optional
from mnv2det.models.head import Head
from mnv2det.models.ssdlite import SSDLite
from mnv2det.ops.boxes import CENTER_SCALE, MAX_LOG_SIZE, SIZE_SCALE
from mnv2det.structures import Detections, Frame

FRAME = "frame"  # name of the input that says where the picture lies
MOST = 192  # anchors looked at
LOWEST = np.finfo(np.float32).min


class Shortlist:
    """What `SSDLite.decode` does, as outputs of the network more.

    It is little work in many small steps, and after a network has run, whose weights fill the caches,
    each step costs several times in Python what it does alone. All candidates better than the best one
    of some anchor are at the anchors whose best ones are better, and greedy NMS decides on a box from
    better ones: so what survives of those is what survives of all. Where it is too little, `read` says
    so and `SSDLite.decode` has to look at all.

    Args:
        network: An ``openvino.Model`` for one picture of a fixed size; it is changed.
        task: Name of the head.
        head: The head.
        frame: Input float32 (3, 4), as `describe` fills it.
        size: (H, W) of the input.
    """

    def __init__(self, network: Any, task: str, head: SSDLite, *, frame: Any, size: tuple[int, int]) -> None:
        op = import_optional("openvino", "openvino").opset13
        self.task, self.head = task, head

        def ints(*values: int) -> Any:
            return op.constant(np.array(values, np.int64))

        def part(values: Any, first: int, last: int, axis: int) -> Any:
            return op.slice(values, ints(first), ints(last), ints(1), ints(axis))

        logits, codes = (network.output(f"{task}.{name}").node.input_value(0) for name in ("logits", "codes"))
        _, anchors, columns = logits.get_shape()
        evidence = op.log_softmax(logits, 2) if head.softmax else logits
        if columns > head.classes:
            evidence = part(evidence, columns - head.classes, columns, 2)
        evidence = op.reshape(evidence, ints(anchors, head.classes), special_zero=False)
        count = min(MOST, anchors)
        # in their order, so that of equal candidates the first is taken, as NumPy does
        top = op.topk(op.reduce_max(evidence, ints(1)), np.int64(count), 0, "max", "index", index_element_type="i32")
        rows = top.output(1)
        evidence = op.gather(evidence, rows, ints(0))
        least = op.reduce_min(top.output(0), ints(0)) if count < anchors else op.constant(LOWEST)

        # as `mnv2det.ops.boxes.decode_within`
        boxes = head.constants(size)["anchors"].numpy()
        pairs = op.gather(op.constant(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)), rows, ints(0))
        code = op.gather(op.reshape(codes, ints(anchors, 4), special_zero=False), rows, ints(0))
        low, sides, shift, growth = part(pairs, 0, 2, 1), part(pairs, 2, 4, 1), part(code, 0, 2, 1), part(code, 2, 4, 1)
        center = op.add(low, op.multiply(op.add(op.divide(shift, np.float32(CENTER_SCALE)), np.float32(0.5)), sides))
        growth = op.minimum(op.divide(growth, np.float32(SIZE_SCALE)), np.float32(MAX_LOG_SIZE))
        half = op.multiply(op.exp(growth), op.multiply(sides, np.float32(0.5)))
        used, factor, original = (part(frame, number, number + 1, 0) for number in range(3))

        def within(values: Any, limits: Any) -> Any:
            return op.minimum(op.maximum(values, np.float32(0)), limits)

        found = within(op.concat([op.subtract(center, half), op.add(center, half)], 1), used)
        kept = op.non_max_suppression(
            op.unsqueeze(found, ints(0)),
            op.unsqueeze(op.transpose(evidence, ints(1, 0)), ints(0)),
            ints(head.max_detections),
            op.constant(np.float32(head.nms_iou)),
            op.maximum(least, op.constant(np.maximum(np.float32(head.least_evidence), LOWEST))),
            box_encoding="corner",
            sort_result_descending=True,
            output_type="i32",
        ).output(0)
        outputs = {
            "kept": kept,
            "boxes": within(op.multiply(found, factor), original),
            "evidence": evidence,
            "scores": op.exp(evidence) if head.softmax else op.sigmoid(evidence),
            "least": least,
        }
        self.names = [f"{task}.first.{name}" for name in outputs]
        results = [op.result(output) for output in outputs.values()]
        for name, result in zip(self.names, results, strict=True):
            result.output(0).get_tensor().set_names({name})
        network.add_results(results)

    def read(self, request: Any) -> Detections | None:
        """The detections; None where all candidates have to be looked at.

        Args:
            request: An ``openvino.InferRequest`` that has run.
        """
        kept, boxes, evidence, scores, least = (request.get_tensor(name).data for name in self.names)
        most = self.head.max_detections
        if len(kept) < most and least.item() > self.head.least_evidence:
            return None
        # of each batch, class and place among the anchors looked at; best first
        labels, rows = kept[:, 1], kept[:, 2]
        best = evidence[rows, labels]
        if (best[1:] == best[:-1]).any():
            order = np.lexsort((labels, rows, -best))
            labels, rows = labels[order], rows[order]
        labels, rows = labels[:most], rows[:most]
        return Detections(
            torch.from_numpy(boxes[rows]),
            torch.from_numpy(scores[rows, labels]),
            torch.from_numpy(labels.astype(np.int64)),
        )


def shorten(network: Any, heads: Mapping[str, Head], size: tuple[int, int]) -> list[Shortlist]:
    """Adds shortlists of all detectors, and the input `FRAME`.

    Args:
        network: As `Shortlist` takes it.
        heads: By task.
        size: (H, W) of the input.
    """
    # where even boxes that are alike are kept, libraries disagree
    detectors = {task: head for task, head in heads.items() if isinstance(head, SSDLite) and head.nms_iou < 1}
    if not detectors:
        return []
    frame = import_optional("openvino", "openvino").opset13.parameter([3, 4], np.float32, FRAME)
    frame.output(0).get_tensor().set_names({FRAME})
    network.add_parameters([frame])
    return [Shortlist(network, task, head, frame=frame, size=size) for task, head in detectors.items()]


def describe(frame: Frame, values: NDArray[np.float32]) -> None:
    """Fills in what the graph has to know: last corners in the input, factors to the picture, last corners in it."""
    (height, width), (used_height, used_width) = frame
    values[0] = used_width, used_height, used_width, used_height
    values[1] = (width / used_width, height / used_height) * 2
    values[2] = width, height, width, height
