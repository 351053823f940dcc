"""A head as somebody else might write it: objects as the peaks of a map, with a box at each (Zhou et al., 1904.07850).

It has no anchors, and nothing in mnv2det knows of it. Import this module, and configs can say ``name: center``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnv2det.models.head import ClassRows, Head
from mnv2det.models.layers import Conv, ConvNorm, init_weights
from mnv2det.ops.detections import DetectionSettings, detect, detect_in_graph
from mnv2det.ops.geometry import GraphFrame
from mnv2det.ops.nms import Suppress
from mnv2det.ranges import NonNegativeFloat, PositiveInt, Share
from mnv2det.registry import HEADS
from mnv2det.structures import Detections, FeatureInfo, Frame, Target

MAX_LOG_SIZE = 4.0  # a box is at most this many times e larger than a cell


@HEADS.register("center")
class CenterHead(Head):
    """Class scores of every cell, and the box of an object whose centre lies in it.

    Args:
        features: The backbone's.
        classes: K, the number of classes.
        tap: Backbone feature that it reads; its positions are the cells.
        channels: Of the layer between the feature and the predictors.
        box_weight: Weight of the box loss beside the class loss.
        score_threshold: Detections score above this.
        nms_iou: A box whose IoU with a better one of its class is above this is dropped.
        max_detections: Most detections of an image.
    """

    needs: ClassVar[tuple[str, ...]] = ("boxes", "labels")
    target_key: ClassVar[str] = "labels"
    architecture_args: ClassVar[tuple[str, ...]] = ("tap", "channels")
    detection_settings: DetectionSettings

    def __init__(
        self,
        features: Mapping[str, FeatureInfo],
        *,
        classes: int,
        tap: str = "block6",
        channels: PositiveInt = 32,
        box_weight: NonNegativeFloat = 1.0,
        score_threshold: Share = 0.05,
        nms_iou: Share = 0.6,
        max_detections: PositiveInt = 50,
    ) -> None:
        super().__init__()
        self.taps, self.tap, self.stride = ("image", tap), tap, features[tap].stride
        self.box_weight = box_weight
        self.detection_settings = DetectionSettings(score_threshold, nms_iou, max_detections)
        self.neck = ConvNorm(features[tap].channels, channels, 3)
        self.heat = Conv(channels, classes, bias=True)
        self.box = Conv(channels, 4, bias=True)
        init_weights(self)
        assert self.heat.bias is not None
        nn.init.constant_(self.heat.bias, -3.0)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns ``heat`` (B, K, h, w), ``box`` (B, 4, h, w) and ``centers`` float32 (h * w, 2)."""
        height, width = features["image"].shape[-2:]
        raw = self.forward_export(features)
        return {**raw, "centers": self.constants((height, width))["centers"].to(raw["heat"].device)}

    def forward_export(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Head`: ``heat`` and ``box``."""
        x = self.neck(features[self.tap])
        return {"heat": self.heat(x), "box": self.box(x)}

    def constants(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """See `Head`: ``centers`` of the cells, (x, y) in pixels of the input."""
        y, x = (torch.arange(-(-length // self.stride)) * self.stride + self.stride / 2 for length in size)
        return {"centers": torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)}

    def loss(self, raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Cross-entropy of every cell and smooth L1 of the boxes, divided by the number of objects."""
        heat, box = raw["heat"].float(), raw["box"].float()
        cls, boxes, count = heat.sum() * 0, box.sum() * 0, 0
        for image, target in enumerate(targets):
            if "boxes" not in target:
                continue
            learned = ~target["ignore"]
            corners, labels = target["boxes"][learned].to(heat.device), target["labels"][learned].to(heat.device)
            middle, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
            column, row = (middle / self.stride).long().unbind(dim=1)
            row, column = row.clamp(max=heat.shape[2] - 1), column.clamp(max=heat.shape[3] - 1)
            goal = torch.zeros_like(heat[image])
            goal[labels, row, column] = 1.0
            cls = cls + F.binary_cross_entropy_with_logits(heat[image], goal, reduction="sum")
            offset = (middle - raw["centers"].view(*heat.shape[2:], 2)[row, column]) / self.stride
            code = torch.cat([offset, (sides / self.stride).log()], dim=1)
            boxes = boxes + F.smooth_l1_loss(box[image, :, row, column].T, code, reduction="sum")
            count += len(labels)
        return {"cls": cls / max(count, 1), "box": boxes / max(count, 1) * self.box_weight}

    def loss_normalizer(self, targets: Sequence[Target], size: tuple[int, int]) -> tuple[float, float]:
        """Returns the number of objects, and 1."""
        return float(sum(int((~target["ignore"]).sum()) for target in targets if "boxes" in target)), 1.0

    def decode(self, raw: Mapping[str, Tensor], frames: Sequence[Frame]) -> list[Detections]:
        """Boxes at the peaks of the map, in original pixels."""
        logits, boxes = self._logits_and_boxes({name: value.detach().float().cpu() for name, value in raw.items()})
        return [
            detect(boxes[image].numpy(), logits[image].contiguous(), frame, self.detection_settings)
            for image, frame in enumerate(frames)
        ]

    def export_outputs(self, raw: Mapping[str, Tensor], frame: GraphFrame, suppress: Suppress) -> dict[str, Tensor]:
        """See `Head`: ``boxes``, ``scores``, ``labels`` and ``count``."""
        logits, boxes = self._logits_and_boxes(raw)
        return detect_in_graph(boxes, logits.sigmoid(), frame, self.detection_settings, suppress)

    def class_rows(self) -> dict[str, ClassRows]:
        """See `Head`."""
        return {"heat.weight": ClassRows(), "heat.bias": ClassRows()}

    def _logits_and_boxes(self, raw: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, N, K), very low where a neighbour's is higher, and boxes (B, N, 4), xyxy in pixels."""
        heat, box, centers = raw["heat"], raw["box"], raw["centers"]
        peaks = torch.where(F.max_pool2d(heat, 3, 1, 1) == heat, heat, -100.0)
        offset, growth = box.flatten(2).transpose(1, 2).split(2, dim=2)
        center, half = centers + offset * self.stride, growth.clamp(max=MAX_LOG_SIZE).exp() * (self.stride / 2)
        return peaks.flatten(2).transpose(1, 2), torch.cat([center - half, center + half], dim=2)
