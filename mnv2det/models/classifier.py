"""The ImageNet classification head (paper, Table 2: average pool and a linear classifier)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnv2det.models.head import ClassRows, Head
from mnv2det.models.layers import init_weights
from mnv2det.ops.geometry import GraphFrame
from mnv2det.ops.nms import Suppress
from mnv2det.ranges import ShareBelowOne
from mnv2det.registry import HEADS
from mnv2det.structures import FeatureInfo, Frame, Scores, Target


@HEADS.register("classifier")
class Classifier(Head):
    """Average pooling, dropout and a linear layer, trained by the cross-entropy of a softmax.

    Args:
        features: The backbone's.
        classes: K, the number of classes.
        dropout: Share of the pooled features that training sets to zero (0.2 in torchvision and Keras).
        label_smoothing: Share of the target spread over all classes (paper, section 6.1: 0.1).
    """

    taps = ("last",)
    needs: ClassVar[tuple[str, ...]] = ("label",)
    target_key: ClassVar[str] = "label"

    def __init__(
        self,
        features: Mapping[str, FeatureInfo],
        *,
        classes: int,
        dropout: ShareBelowOne = 0.2,
        label_smoothing: ShareBelowOne = 0.1,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features["last"].channels, classes)
        init_weights(self)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns ``logits`` (B, K)."""
        return {"logits": self.linear(self.dropout(features["last"].mean(dim=(2, 3))))}

    def loss(self, raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Returns ``cls``: cross-entropy over the images that have a label."""
        known = [index for index, target in enumerate(targets) if "label" in target]
        logits = raw["logits"].float()
        if not known:
            return {"cls": logits.sum() * 0}
        labels = torch.stack([targets[index]["label"] for index in known]).to(logits.device)
        return {"cls": F.cross_entropy(logits[known], labels, label_smoothing=self.label_smoothing)}

    def loss_normalizer(self, targets: Sequence[Target], size: tuple[int, int]) -> tuple[float, float]:
        """Returns the number of images that have a label, and 1."""
        return float(sum("label" in target for target in targets)), 1.0

    def decode(self, raw: Mapping[str, Tensor], frames: Sequence[Frame]) -> list[Scores]:
        """Returns the softmax of each image."""
        return [Scores(probabilities) for probabilities in raw["logits"].float().softmax(dim=1)]

    def export_outputs(self, raw: Mapping[str, Tensor], frame: GraphFrame, suppress: Suppress) -> dict[str, Tensor]:
        """See `Head`: ``probabilities``."""
        return {"probabilities": raw["logits"].softmax(dim=1)}

    def class_rows(self) -> dict[str, ClassRows]:
        """See `Head`."""
        return {"linear.weight": ClassRows(), "linear.bias": ClassRows()}
