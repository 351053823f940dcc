"""Detections of one picture, made inside OpenVINO's graph from the best candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnv2det.deploy.convert import need
from mnv2det.models.head import Head
from mnv2det.models.ssdlite import SSDLite
from mnv2det.ops.boxes import CENTER_SCALE, MAX_LOG_SIZE, SIZE_SCALE
from mnv2det.structures import Detections, Frame

FRAME = "frame"  # name of the input that says where the picture lies
MOST = 192  # candidates looked at
LOWEST = np.finfo(np.float32).min


class Shortlist:
    """What `SSDLite.decode` does, as outputs of the network more.

    It is little work in many small steps, and after a network has run, whose weights fill the caches,
    each step costs several times in Python what it does alone. Greedy NMS decides on a box from
    better ones, so the survivors among the best candidates are those of the whole; where they are
    too few, `read` says so and `SSDLite.decode` has to look at all.

    Args:
        network: An ``openvino.Model`` for one picture of a fixed size; it is changed.
        task: Name of the head.
        head: The head.
        frame: Input float32 (3, 4), as `describe` fills it.
        size: (H, W) of the input.
    """

    def __init__(self, network: Any, task: str, head: SSDLite, *, frame: Any, size: tuple[int, int]) -> None:
        op = need("openvino", "openvino").opset13
        self.task, self.head = task, head

        def ints(*values: int) -> Any:
            return op.constant(np.array(values, np.int64))

        def part(values: Any, first: int, last: int, axis: int) -> Any:
            return op.slice(values, ints(first), ints(last), ints(1), ints(axis))

        def best(values: Any, count: int) -> Any:
            # by place, so that equal ones are taken in NumPy's order
            return op.topk(values, np.int64(count), 0, "max", "index", index_element_type="i32")

        logits, codes = (network.output(f"{task}.{name}").node.input_value(0) for name in ("logits", "codes"))
        _, anchors, columns = logits.get_shape()
        evidence = op.log_softmax(logits, 2) if head.softmax else logits
        if columns > head.classes:
            evidence = part(evidence, columns - head.classes, columns, 2)
        evidence = op.reshape(evidence, ints(anchors, head.classes), special_zero=False)
        # the best of all values are in the anchors whose best values are the best
        among = best(op.reduce_max(evidence, ints(1)), min(MOST, anchors)).output(1)
        count = min(MOST, anchors * head.classes)
        self.all = count == anchors * head.classes
        top = best(op.reshape(op.gather(evidence, among, ints(0)), ints(-1), special_zero=False), count)
        value, place = top.output(0), top.output(1)
        row = op.divide(place, op.constant(np.int32(head.classes)))
        label = op.subtract(place, op.multiply(row, op.constant(np.int32(head.classes))))
        anchor = op.gather(among, row, ints(0))

        # as `mnv2det.ops.boxes.decode_within`
        boxes = head.fixed(size)["anchors"].numpy()
        pairs = op.gather(op.constant(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)), anchor, ints(0))
        code = op.gather(op.reshape(codes, ints(anchors, 4), special_zero=False), anchor, ints(0))
        low, sides, shift, growth = part(pairs, 0, 2, 1), part(pairs, 2, 4, 1), part(code, 0, 2, 1), part(code, 2, 4, 1)
        center = op.add(low, op.multiply(op.add(op.divide(shift, np.float32(CENTER_SCALE)), np.float32(0.5)), sides))
        growth = op.minimum(op.divide(growth, np.float32(SIZE_SCALE)), np.float32(MAX_LOG_SIZE))
        half = op.multiply(op.exp(growth), op.multiply(sides, np.float32(0.5)))
        used, factor, original = (part(frame, number, number + 1, 0) for number in range(3))

        def within(values: Any, limits: Any) -> Any:
            return op.minimum(op.maximum(values, np.float32(0)), limits)

        found = within(op.concat([op.subtract(center, half), op.add(center, half)], 1), used)

        # NMS goes by how many are better: so equal ones, too, have an order
        mine, other = op.unsqueeze(value, ints(1)), op.unsqueeze(value, ints(0))
        before = op.constant(np.tri(count, k=-1, dtype=bool))
        better = op.logical_or(op.greater(other, mine), op.logical_and(op.equal(other, mine), before))
        order = op.negative(op.reduce_sum(op.convert(better, "f32"), ints(1)))
        own = op.equal(op.unsqueeze(label, ints(0)), op.constant(np.arange(head.classes, dtype=np.int32)[:, None]))
        kept = op.non_max_suppression(
            op.unsqueeze(found, ints(0)),
            op.unsqueeze(op.select(own, op.unsqueeze(order, ints(0)), op.constant(np.float32(-np.inf))), ints(0)),
            ints(head.max_detections),
            op.constant(np.float32(head.nms_iou)),
            op.constant(LOWEST),
            box_encoding="corner",
            sort_result_descending=True,
            output_type="i32",
        ).output(0)
        score = op.exp(value) if head.softmax else op.sigmoid(value)
        outputs = {
            "kept": kept,
            "boxes": within(op.multiply(found, factor), original),
            "scores": score,
            "least": op.reduce_min(score, ints(0)),
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
        kept, boxes, scores, least = (request.get_tensor(name).data for name in self.names)
        # batch, class and place of each, best first
        kept = kept[: self.head.max_detections]
        places = kept[:, 2]
        best = scores[places]
        threshold, least = self.head.score_threshold, least.item()
        if self.all or least <= threshold:
            if best[-1].item() <= threshold:
                places = places[: np.count_nonzero(best > threshold)]
                best = best[: len(places)]
        # of those equal to the least, others may have been left out
        elif not (len(best) == self.head.max_detections and best[-1].item() > least):
            return None
        labels = kept[: len(best), 1].astype(np.int64)
        return Detections(torch.from_numpy(boxes[places]), torch.from_numpy(best), torch.from_numpy(labels))


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
    frame = need("openvino", "openvino").opset13.parameter([3, 4], np.float32, FRAME)
    frame.output(0).get_tensor().set_names({FRAME})
    network.add_parameters([frame])
    return [Shortlist(network, task, head, frame=frame, size=size) for task, head in detectors.items()]


def describe(frame: Frame, values: NDArray[np.float32]) -> None:
    """Fills in what the graph has to know: last corners in the input, factors to the picture, last corners in it."""
    (height, width), (used_height, used_width) = frame
    values[0] = used_width, used_height, used_width, used_height
    values[1] = (width / used_width, height / used_height) * 2
    values[2] = width, height, width, height
