"""SSDLite: SSD with depthwise-separable layers (paper, section 6.2; docs/recipes.md)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mnv2det.models.head import AnchorCoding, ClassRows, Head
from mnv2det.models.layers import Activation, Conv, ConvNorm, Padding, init_weights
from mnv2det.ops.anchors import level_shapes, make_anchors
from mnv2det.ops.boxes import decode as boxes_at_anchors
from mnv2det.ops.boxes import decode_numpy, encode
from mnv2det.ops.detections import DetectionSettings, detect, detect_in_graph
from mnv2det.ops.geometry import GraphFrame
from mnv2det.ops.losses import anchor_class_loss, hardest
from mnv2det.ops.matcher import NEGATIVE, match, pad_targets
from mnv2det.ops.nms import Suppress
from mnv2det.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    NormEpsilon,
    OpenShare,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Share,
)
from mnv2det.registry import HEADS
from mnv2det.structures import Detections, FeatureInfo, Frame, Target

# (scale, ratio) of each anchor of a level
PREDICTOR_KERNEL: Literal[3] = 3  # side of the published predictors
INNER_CHANNELS = 64  # least width inside pytorch-ssd's extra levels
AnchorShapes = Annotated[tuple[tuple[PositiveFloat, PositiveFloat], ...], Field(min_length=1)]


def _check(args: Mapping[str, Any]) -> Iterator[str]:
    if args["min_scale"] > args["max_scale"]:
        yield f"min_scale: expected at most max_scale, which is {args['max_scale']}, got {args['min_scale']}"
    levels = len(args["taps"]) + len(args["extras"])
    for key in ("anchors", "cells"):
        if args[key] is not None and len(args[key]) != levels:
            yield f"{key}: given for {len(args[key])} levels, but taps and extras make {levels}"
    if args["lite"] and args["predictor_kernel"] != PREDICTOR_KERNEL:
        yield "predictor_kernel: only predictors that are no depthwise-separable ones have another; set lite to false"


@HEADS.register("ssdlite", check=_check)
class SSDLite(Head):
    """Predictors of boxes and classes at anchors, on backbone features and further levels behind them.

    Args:
        features: The backbone's.
        classes: K, without background, which is a private channel 0 here.
        taps: Backbone features of the finest levels. The published ones are the expanded tensor of
            bottleneck 14 (TensorFlow's layer 15) and the last convolution.
        extras: Channels of the further levels, each half the size of the one before.
        lite: False makes the plain SSD head that the paper compares with (Table 5).
        predictor_kernel: Side of the plain SSD's predictors: 3, or 1 as in the Object Detection API's releases.
        layout: Where layers have activations: behind all but the predictors, as ``published``, or as ``pytorch-ssd``
            trained its mb2-ssd-lite: extra levels end linearly and are at least 64 channels wide inside, and the
            coarsest level has 1x1 predictors.
        padding: How stride-2 layers pad; heads imported from TensorFlow need ``same``.
        min_scale: Scale of the anchors of the finest level (`mnv2det.ops.anchors.level_shapes`).
        max_scale: Scale of the anchors of the coarsest level.
        ratios: Aspect ratios of the anchors.
        lowest: (scale, ratio) of the finest level's anchors; null treats it as the others.
        anchors: (scale, ratio) of all anchors, level by level, in place of the four arguments
            before; null makes them from those.
        cells: Pixels between the centres of neighbouring anchors, level by level; null spreads them evenly over the
            input. Only for weights of projects that count so, at the input size they were trained with.
        score: How logits become scores: by ``sigmoid``, as published, or ``softmax``.
        match_iou: Least IoU of an anchor and a box at which the anchor learns the box.
        negatives: Number of hard negatives per matched anchor.
        min_negatives: Least number of hard negatives of an image, of one without objects as well.
        box_weight: Weight of the box loss beside the class loss.
        box_beta: Where smooth L1 turns from quadratic to linear, in units of the box code.
        prior: Score that fresh class predictors give every class; null starts at 0.5 as published,
            which makes the loss of the first steps large.
        init_std: Standard deviation of fresh weights, which are normal and truncated at two deviations; null
            draws them as He et al. do.
        norm_eps: Epsilon of batch norm.
        norm_momentum: Weight of the newest batch in batch norm's running statistics.
        score_threshold: Detections score above this.
        nms_iou: A box whose IoU with a better one of its class is above this is dropped.
        max_detections: Most detections of an image.
        clip_after_nms: Whether boxes are cut to the picture only after NMS, as TensorFlow does it. It changes
            single boxes at the picture's edge.
    """

    detection_settings: DetectionSettings
    needs: ClassVar[tuple[str, ...]] = ("boxes", "labels")
    target_key: ClassVar[str] = "labels"
    architecture_args: ClassVar[tuple[str, ...]] = (
        "taps", "extras", "lite", "predictor_kernel", "layout", "padding", "min_scale", "max_scale", "ratios", "lowest",
        "anchors", "cells", "score", "norm_eps",
    )  # fmt: skip

    def __init__(
        self,
        features: Mapping[str, FeatureInfo],
        *,
        classes: int,
        taps: Annotated[tuple[str, ...], Field(min_length=1)] = ("block14.expand/16", "last/32"),
        extras: tuple[Annotated[int, Field(ge=2)], ...] = (512, 256, 256, 128),
        lite: bool = True,
        predictor_kernel: Literal[1, 3] = PREDICTOR_KERNEL,
        layout: Literal["published", "pytorch-ssd"] = "published",
        padding: Padding = "symmetric",
        min_scale: PositiveFloat = 0.2,
        max_scale: PositiveFloat = 0.95,
        ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0, 2.0, 0.5, 3.0, 1 / 3),
        lowest: AnchorShapes | None = ((0.1, 1.0), (0.2, 2.0), (0.2, 0.5)),
        anchors: tuple[AnchorShapes, ...] | None = None,
        cells: tuple[PositiveFloat, ...] | None = None,
        score: Literal["sigmoid", "softmax"] = "sigmoid",
        match_iou: PositiveShare = 0.5,
        negatives: NonNegativeFloat = 3.0,
        min_negatives: NonNegativeInt = 3,
        box_weight: NonNegativeFloat = 1.0,
        box_beta: NonNegativeFloat = 1.0,
        prior: OpenShare | None = 0.01,
        init_std: PositiveFloat | None = 0.03,
        norm_eps: NormEpsilon = 1e-3,
        norm_momentum: Share = 0.03,
        score_threshold: Share = 1e-8,
        nms_iou: Share = 0.6,
        max_detections: PositiveInt = 100,
        clip_after_nms: bool = False,
    ) -> None:
        super().__init__()
        self.taps = ("image", *taps)
        self.classes, self.softmax = classes, score == "softmax"
        self.private = 1  # number of logits before that of the first class: the background's
        self.match_iou, self.negatives, self.min_negatives = match_iou, negatives, min_negatives
        self.box_weight, self.box_beta = box_weight, box_beta
        self.detection_settings = DetectionSettings(score_threshold, nms_iou, max_detections, clip_after_nms)
        self.cells = cells
        self.shapes = anchors or level_shapes(
            len(taps) + len(extras), min_scale=min_scale, max_scale=max_scale, ratios=ratios, lowest=lowest
        )

        foreign = layout == "pytorch-ssd"
        block = functools.partial(ConvNorm, pad=padding, eps=norm_eps, momentum=norm_momentum)

        def extra(inputs: int, outputs: int) -> nn.Sequential:
            inner = max(outputs // 2, INNER_CHANNELS if foreign else 0)
            narrow = block(inputs, inner)
            act: Activation = "none" if foreign else "relu6"
            if not lite:
                return nn.Sequential(narrow, block(inner, outputs, 3, stride=2, act=act))
            return nn.Sequential(narrow, block(inner, inner, 3, stride=2, groups=inner), block(inner, outputs, act=act))

        def predictor(level: int, outputs: int) -> nn.Module:
            inputs = widths[level]
            if foreign and level == len(widths) - 1:
                return Conv(inputs, outputs, bias=True)
            if not lite:
                return Conv(inputs, outputs, predictor_kernel, bias=True)
            return nn.Sequential(block(inputs, inputs, 3, groups=inputs), Conv(inputs, outputs, bias=True))

        widths = [features[tap].channels for tap in taps] + list(extras)
        strides = [features[tap].stride for tap in taps]
        self.strides = strides + [strides[-1] * 2 ** (number + 1) for number in range(len(extras))]
        first = len(taps) - 1
        self.extras = nn.ModuleList(extra(a, b) for a, b in zip(widths[first:], widths[first + 1 :], strict=False))
        counts = [len(shapes) for shapes in self.shapes]
        self.class_predictors = nn.ModuleList(
            predictor(level, count * (classes + 1)) for level, count in enumerate(counts)
        )
        self.box_predictors = nn.ModuleList(predictor(level, count * 4) for level, count in enumerate(counts))
        init_weights(self, init_std)
        if prior is not None:
            self._start_from(prior)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predicts at every anchor.

        Args:
            features: The taps.

        Returns:
            ``logits`` (B, A, K + 1) with background first, ``codes`` (B, A, 4), and ``anchors``
            float32 (A, 4) xyxy in input pixels.
        """
        height, width = features["image"].shape[-2:]
        raw, maps = self._predict(features)
        anchors = make_anchors(maps, self.shapes, (int(height), int(width)), self.cells)
        return {**raw, "anchors": anchors.to(raw["logits"].device)}

    def forward_export(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Head`: ``logits`` and ``codes``."""
        return self._predict(features)[0]

    @torch.no_grad()
    def drop_training_parts(self) -> None:
        """See `Head`: drops the background's logit, on which no score depends where scores are sigmoids."""
        if self.softmax or not self.private:
            return
        for predictor, shapes in zip(self.class_predictors, self.shapes, strict=True):
            last = _last(predictor)
            assert last.bias is not None
            for name, rows in (("weight", last.weight), ("bias", last.bias)):
                classes = rows.unflatten(0, (len(shapes), -1))[:, self.private :].flatten(0, 1)
                setattr(last, name, nn.Parameter(classes.contiguous(), requires_grad=False))
            last.out_channels = len(last.weight)
        self.private = 0

    def constants(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """See `Head`: ``anchors``."""
        levels = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in self.strides]
        return {"anchors": make_anchors(tuple(levels), self.shapes, size, self.cells)}

    def _predict(self, features: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[tuple[int, int], ...]]:
        """Logits and codes of all levels, and the levels' sizes."""
        levels = [features[tap] for tap in self.taps[1:]]
        for extra in self.extras:
            levels.append(extra(levels[-1]))
        logits = [
            self._flatten(predictor(level), self.private + self.classes)
            for predictor, level in zip(self.class_predictors, levels, strict=True)
        ]
        codes = [
            self._flatten(predictor(level), 4) for predictor, level in zip(self.box_predictors, levels, strict=True)
        ]
        maps = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        return {"logits": torch.cat(logits, dim=1), "codes": torch.cat(codes, dim=1)}, maps

    def loss(self, raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Class and box loss, divided by the number of matched anchors of the batch.

        Args:
            raw: From `forward`.
            targets: Images without ``boxes`` add nothing; images with none of them, only negatives.

        Returns:
            ``cls`` and ``box``, float32 scalars.
        """
        known = [index for index, target in enumerate(targets) if "boxes" in target]
        logits, codes, anchors = raw["logits"].float(), raw["codes"].float(), raw["anchors"]
        if not known:
            return {"cls": logits.sum() * 0, "box": codes.sum() * 0}
        if len(known) < len(targets):
            logits, codes = logits[known], codes[known]
        boxes, labels, ignore, valid = pad_targets([targets[index] for index in known], logits.device)
        matched = match(anchors, boxes, valid, ignore, threshold=self.match_iou)
        positive = matched >= 0
        box_index = matched.clamp(min=0)
        classes = torch.where(positive, labels.gather(1, box_index) + 1, 0) if boxes.shape[1] else box_index * 0
        loss = anchor_class_loss(logits, classes, softmax=self.softmax)
        negatives = (positive.sum(dim=1) * self.negatives).long().clamp(min=self.min_negatives)
        chosen = positive | hardest(loss, matched == NEGATIVE, negatives)
        normalizer = positive.sum().clamp(min=1)
        cls = torch.where(chosen, loss, 0.0).sum() / normalizer
        image, anchor = positive.nonzero(as_tuple=True)
        goal = encode(boxes[image, box_index[image, anchor]], anchors[anchor])
        box = F.smooth_l1_loss(codes[image, anchor], goal, reduction="sum", beta=self.box_beta) / normalizer
        return {"cls": cls, "box": box * self.box_weight}

    def loss_normalizer(self, targets: Sequence[Target], size: tuple[int, int]) -> tuple[float, float]:
        """Returns the number of matched anchors, and 1."""
        known = [target for target in targets if "boxes" in target]
        if not known:
            return 0.0, 1.0
        boxes, _, ignore, valid = pad_targets(known, torch.device("cpu"))
        anchors = self.constants(size)["anchors"].cpu()
        return float((match(anchors, boxes, valid, ignore, threshold=self.match_iou) >= 0).sum()), 1.0

    def decode(self, raw: Mapping[str, Tensor], frames: Sequence[Frame]) -> list[Detections]:
        """Boxes after score threshold and NMS within each class, in original pixels."""
        logits = raw["logits"].detach().float().cpu()
        codes, anchors = (raw[name].detach().float().cpu().numpy() for name in ("codes", "anchors"))

        def boxes_of(image: int) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
            return lambda rows: decode_numpy(codes[image, rows], anchors[rows])

        return [
            detect(
                boxes_of(image),
                logits[image],
                frame,
                self.detection_settings,
                softmax=self.softmax,
                first_class=logits.shape[-1] - self.classes,
            )
            for image, frame in enumerate(frames)
        ]

    def anchor_coding(self) -> AnchorCoding:
        """See `Head`."""
        return AnchorCoding(
            "logits", "codes", "anchors", self.classes, self.softmax, self.match_iou, self.detection_settings
        )

    def export_outputs(self, raw: Mapping[str, Tensor], frame: GraphFrame, suppress: Suppress) -> dict[str, Tensor]:
        """See `Head`: ``boxes``, ``scores``, ``labels`` and ``count``."""
        logits = raw["logits"]
        scores = (logits.softmax(dim=-1) if self.softmax else logits.sigmoid())[..., self.private :]
        boxes = boxes_at_anchors(raw["codes"], raw["anchors"])
        return detect_in_graph(boxes, scores, frame, self.detection_settings, suppress)

    def class_rows(self) -> dict[str, ClassRows]:
        """See `Head`: the last layers of the class predictors; their private row is the background's."""
        rows: dict[str, ClassRows] = {}
        for number, (predictor, shapes) in enumerate(zip(self.class_predictors, self.shapes, strict=True)):
            name = f"class_predictors.{number}" + (".1" if isinstance(predictor, nn.Sequential) else "")
            rows |= {f"{name}.{part}": ClassRows(len(shapes), 1) for part in ("weight", "bias")}
        return rows

    def _flatten(self, maps: Tensor, values: int) -> Tensor:
        return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, values)

    @torch.no_grad()
    def _start_from(self, prior: float) -> None:
        for predictor in self.class_predictors:
            last = _last(predictor)
            assert last.bias is not None
            bias = last.bias.view(-1, self.classes + 1)
            odds = math.log(prior / (1 - prior))
            bias[:, 1:] = odds
            bias[:, 0] = 0.0 if self.softmax else -odds


def _last(predictor: nn.Module) -> nn.Conv2d:
    """The convolution whose outputs a predictor's are."""
    last = predictor[-1] if isinstance(predictor, nn.Sequential) else predictor
    assert isinstance(last, nn.Conv2d)
    return last
