"""Mobile DeepLabv3: segmentation on a dilated backbone (paper, section 6.3; docs/recipes.md)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnv2det.errors import ConfigError
from mnv2det.models.head import ClassRows, Dense
from mnv2det.models.layers import Conv, ConvNorm, JoinPooled, Separable, init_weights
from mnv2det.ops.geometry import GraphFrame
from mnv2det.ops.maps import enlarge, enlarging_weights, label_enlarged, label_in_graph, sample
from mnv2det.ops.nms import Suppress
from mnv2det.ranges import NonNegativeFloat, NormEpsilon, PositiveInt, PositiveShare, Share, ShareBelowOne
from mnv2det.registry import HEADS
from mnv2det.structures import IGNORE, FeatureInfo, Frame, Segmentation, Target

DETAIL_CHANNELS = 64
RATES = (6, 12, 18)  # of ASPP at output stride 16


def _check(args: Mapping[str, Any]) -> Iterator[str]:
    if args["aspp_separable"] and not args["aspp"]:
        yield "aspp_separable: there are no such branches without aspp"
    if args["class_weights"] is not None and not any(args["class_weights"]):
        yield "class_weights: expected some above 0, all are 0"


@HEADS.register("mobile_deeplab", check=_check)
class MobileDeepLab(Dense):
    """Image pooling, a 1x1 convolution and, if asked for, ASPP, side by side, then joined; there is no decoder.

    Give the backbone an ``output_stride`` of 16 or 8; the head takes features of any stride.

    Args:
        features: The backbone's.
        classes: K, with background where the data has one.
        tap: Backbone feature that it reads; the published one is the output of the last bottleneck.
        channels: Output channels of every branch (256).
        aspp: Whether to add three dilated 3x3 branches, of rates 6, 12 and 18 at stride 16, and twice
            that at stride 8 (Table 7's second and fourth row).
        aspp_separable: Whether these branches are depthwise-separable.
        join_kernel: Side of the convolution that joins the branches: 1, or 3 as in MMSegmentation.
        detail_tap: An earlier feature whose class scores are added at its finer stride, as in LR-ASPP
            (Howard et al., arXiv 1905.02244, section 6.4); not published for this head, and what thin
            objects need. Null leaves it out.
        dropout: Share of the joined features that training sets to zero.
        auxiliary: Weight of a second loss on an earlier feature; 0 leaves its layers out.
        auxiliary_tap: The feature that this loss is computed from.
        class_weights: Weight of each class in the loss; null gives all classes the same.
        loss_stride: The loss reads every n-th row and column of the masks. As crops start anywhere, all
            pixels are seen in the end, for a fraction of the time.
        hardest: Share of the labelled pixels, those with the largest loss, that the loss counts
            (TensorFlow's hard example mining); 1 counts all.
        norm_eps: Epsilon of batch norm.
        norm_momentum: Weight of the newest batch in batch norm's running statistics.

    Raises:
        ConfigError: There are more classes than a mask has values for, or not as many as ``class_weights``.
    """

    needs: ClassVar[tuple[str, ...]] = ("mask",)
    target_key: ClassVar[str] = "mask"
    architecture_args: ClassVar[tuple[str, ...]] = (
        "tap", "channels", "aspp", "aspp_separable", "join_kernel", "norm_eps",
    )  # fmt: skip
    optional_layers: ClassVar[tuple[str, ...]] = ("detail.", "auxiliary_head.")

    def __init__(
        self,
        features: Mapping[str, FeatureInfo],
        *,
        classes: int,
        tap: str = "block17",
        channels: PositiveInt = 256,
        aspp: bool = False,
        aspp_separable: bool = False,
        join_kernel: Literal[1, 3] = 1,
        detail_tap: str | None = None,
        dropout: ShareBelowOne = 0.1,
        loss_stride: PositiveInt = 1,
        auxiliary: NonNegativeFloat = 0.0,
        auxiliary_tap: str = "block13",
        class_weights: tuple[NonNegativeFloat, ...] | None = None,
        hardest: PositiveShare = 1.0,
        norm_eps: NormEpsilon = 1e-5,
        norm_momentum: Share = 0.03,
    ) -> None:
        super().__init__()
        if not 1 <= classes <= IGNORE:
            raise ConfigError(f"mobile_deeplab: 1 to {IGNORE} classes fit a mask, got {classes}")
        if class_weights is not None and len(class_weights) != classes:
            raise ConfigError(
                f"mobile_deeplab: class_weights: expected a number for each of {classes} classes,"
                f" got {len(class_weights)}"
            )
        self.tap, self.auxiliary_tap, self.auxiliary, self.hardest = tap, auxiliary_tap, auxiliary, hardest
        self.loss_stride, self.detail_tap = loss_stride, detail_tap
        self.taps = ("image", tap, *([auxiliary_tap] if auxiliary else []), *([detail_tap] if detail_tap else []))
        inputs, stride = features[tap]
        self.stride = features[detail_tap].stride if detail_tap else stride

        block = functools.partial(ConvNorm, act="relu", eps=norm_eps, momentum=norm_momentum)

        def dilated(rate: int) -> nn.Module:
            if aspp_separable:
                return Separable(inputs, channels, dilation=rate, act="relu", eps=norm_eps, momentum=norm_momentum)
            return block(inputs, channels, 3, dilation=rate)

        rates = [max(1, rate * 16 // stride) for rate in RATES] if aspp else []
        self.pool = block(inputs, channels)
        self.branches = nn.ModuleList([block(inputs, channels), *map(dilated, rates)])
        self.join = JoinPooled(
            channels * (2 + len(rates)), channels, join_kernel, act="relu", eps=norm_eps, momentum=norm_momentum
        )
        self.join.pooled = channels
        self.dropout = nn.Dropout(dropout)
        self.classify = Conv(channels, classes, bias=True)
        if detail_tap:
            self.detail = nn.Sequential(
                block(features[detail_tap].channels, DETAIL_CHANNELS), Conv(DETAIL_CHANNELS, classes, bias=True)
            )
        if auxiliary:
            width = features[auxiliary_tap].channels
            self.auxiliary_head = nn.Sequential(block(width, width, 3), Conv(width, classes, bias=True))
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        init_weights(self)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Classifies every position of the map.

        Args:
            features: The taps.

        Returns:
            ``logits`` (B, K, h, w) at the stride of the tap or the detail tap, ``size`` float32 (2,):
            (H, W) of the input, and ``auxiliary`` (B, K, h', w') if there is such a loss.
        """
        height, width = features["image"].shape[-2:]
        raw = {**self.forward_export(features), **self.constants((height, width))}
        raw["size"] = raw["size"].to(raw["logits"].device)
        if self.auxiliary:
            raw["auxiliary"] = self.auxiliary_head(features[self.auxiliary_tap])
        return raw

    def forward_export(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Head`: ``logits``."""
        x = features[self.tap]
        pooled = self.pool(x.mean(dim=(2, 3), keepdim=True))
        branches = [branch(x) for branch in self.branches]
        # a join of one map would stay in some exported graphs
        joined = self.join(pooled, torch.cat(branches, dim=1) if len(branches) > 1 else branches[0])
        logits = self.classify(self.dropout(joined))
        if self.detail_tap:
            detail = self.detail(features[self.detail_tap])
            logits = enlarge(logits, (detail.shape[-2], detail.shape[-1])) + detail
        return {"logits": logits}

    def constants(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """See `Head`: ``size``."""
        return {"size": torch.tensor([float(size[0]), float(size[1])])}

    def loss(self, raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Cross-entropy over labelled pixels, at the size of the masks.

        Args:
            raw: From `forward`.
            targets: Images without ``mask`` add nothing.

        Returns:
            ``seg`` and, with an auxiliary loss, ``auxiliary``.
        """
        losses = {"seg": self._loss(raw["logits"], targets)}
        if self.auxiliary:
            losses["auxiliary"] = self._loss(raw["auxiliary"], targets) * self.auxiliary
        return losses

    def loss_normalizer(self, targets: Sequence[Target], size: tuple[int, int]) -> tuple[float, float]:
        """Returns the number of labelled pixels, each times the weight of its class, and 1e-6."""
        step, weights = self.loss_stride, self.class_weights
        counts = torch.zeros(IGNORE, dtype=torch.float64)
        for target in targets:
            if "mask" in target:
                pixels = target["mask"][::step, ::step].flatten().cpu()
                counts += torch.bincount(pixels, minlength=IGNORE + 1)[:IGNORE]
        if isinstance(weights, Tensor):
            counts[: len(weights)] *= weights.cpu()
        return float(counts.sum()), 1e-6

    def _loss(self, logits: Tensor, targets: Sequence[Target]) -> Tensor:
        known = [index for index, target in enumerate(targets) if "mask" in target]
        if not known:
            return logits.float().sum() * 0
        masks = torch.stack([targets[index]["mask"] for index in known]).to(logits.device)
        logits = logits[known] if len(known) < len(targets) else logits
        if self.loss_stride == 1:
            logits = enlarge(logits, (masks.shape[1], masks.shape[2]))
        else:
            logits = sample(logits, (masks.shape[1], masks.shape[2]), self.loss_stride)
            masks = masks[:, :: self.loss_stride, :: self.loss_stride].contiguous()
        weights: Tensor | None = self.class_weights  # type: ignore[assignment]
        if self.hardest == 1:
            total = F.cross_entropy(logits, masks, weights, ignore_index=IGNORE, reduction="sum")
            count = (masks != IGNORE).sum() if weights is None else _weigh(weights, masks)
            return total / count.clamp(min=1e-6)
        losses = F.cross_entropy(logits, masks, weights, ignore_index=IGNORE, reduction="none").flatten()
        labelled = int((masks != IGNORE).sum())
        largest, index = losses.topk(max(1, int(labelled * self.hardest)))
        chosen = masks.flatten()[index]
        count = (chosen != IGNORE).sum() if weights is None else _weigh(weights, chosen)
        return largest.sum() / count.clamp(min=1e-6)

    def scores(self, raw: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """See `Dense`."""
        return enlarge(raw["logits"], size).softmax(dim=1)

    def decode(self, raw: Mapping[str, Tensor], frames: Sequence[Frame]) -> list[Segmentation]:
        """The likeliest class of every pixel, in the original size."""
        height, width = (int(value) for value in raw["size"])
        return label_enlarged(raw["logits"], (height, width), frames)

    def export_constants(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """See `Head`: the weights that enlarge the map's ``rows`` and ``columns``."""
        return {
            name: enlarging_weights(-(-length // self.stride), length)
            for name, length in zip(("rows", "columns"), size, strict=True)
        }

    def export_outputs(self, raw: Mapping[str, Tensor], frame: GraphFrame, suppress: Suppress) -> dict[str, Tensor]:
        """See `Head`: ``mask``."""
        return {"mask": label_in_graph(raw["logits"], (raw["rows"], raw["columns"]), frame)}

    def class_rows(self) -> dict[str, ClassRows]:
        """See `Head`."""
        layers = ["classify", *(["auxiliary_head.1"] if self.auxiliary else [])]
        layers += ["detail.1"] if self.detail_tap else []
        return {f"{layer}.{part}": ClassRows() for layer in layers for part in ("weight", "bias")}


def _weigh(weights: Tensor, masks: Tensor) -> Tensor:
    """The sum of the class weights of all labelled pixels."""
    counts = torch.bincount(masks.flatten(), minlength=IGNORE + 1)[: len(weights)]
    return (counts * weights).sum()
