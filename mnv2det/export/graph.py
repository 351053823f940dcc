"""A trained model as the graph that leaves this project: batch norm folded, uint8 pictures in."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mnv2det.errors import ConfigError
from mnv2det.export.ops import Suppress, fit, keep_best, label, spread_of, suppress_greedily
from mnv2det.models.classifier import Classifier
from mnv2det.models.deeplab import MobileDeepLab
from mnv2det.models.layers import ConvNorm
from mnv2det.models.model import Model
from mnv2det.models.ssdlite import SSDLite
from mnv2det.ops.boxes import decode
from mnv2det.ops.padding import same_padding


class Folded(nn.Module):
    """A `ConvNorm` in evaluation as one convolution.

    Unlike it, this one can be traced for pictures of any size.
    """

    def __init__(self, block: ConvNorm) -> None:
        super().__init__()
        conv, norm = block.conv, block.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        self.conv = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
        )
        self.conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
        self.conv.bias = nn.Parameter(norm.bias - norm.running_mean * scale, requires_grad=False)
        self.pads_by_size = conv.pads_by_size
        self.high = block.high

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        if self.pads_by_size:
            axis = (self.conv.kernel_size[0], self.conv.stride[0], self.conv.dilation[0])
            x = nn.functional.pad(x, (*same_padding(x.shape[-1], *axis), *same_padding(x.shape[-2], *axis)))
        x = self.conv(x)
        if self.high is None:
            return x
        # in place an export of it takes many times longer
        return x.clamp(0.0, self.high) if torch.compiler.is_exporting() else x.clamp_(0.0, self.high)


@torch.no_grad()
def fold(model: Model) -> Model:
    """A copy in which every convolution holds its batch norm, without what only training needs."""
    copied = copy.deepcopy(model).eval()
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ConvNorm):
                setattr(parent, name, Folded(child))
    for head in copied.heads.values():
        head.fold()  # type: ignore[operator]
    return copied.requires_grad_(False)


class Raw(nn.Module):
    """The network alone.

    Args:
        model: Any; it is copied.
        dtype: Of its weights and of what it computes with.
    """

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.dtype = fold(model), dtype
        means, stds = self.model.mean, self.model.std
        # one number for all channels, where they are alike: other runtimes are faster with it, in either layout
        self.alike = bool((means == means[:, :1]).all() and (stds == stds[:, :1]).all())
        if self.alike:
            self.model.mean, self.model.std = means[:, :1].clone(), stds[:, :1].clone()
        self.model.backbone.to(dtype)
        self.model.heads.to(dtype)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """What `Head.forward_export` gives, float32, as ``task.name``.

        Args:
            image: uint8 (B, H, W, 3), RGB, brought to the input's size.
        """
        if self.alike:
            # the turn beside the first convolution, which OpenVINO then leaves out
            inputs = self.model.normalize(image).permute(0, 3, 1, 2)
        else:
            inputs = self.model.normalize(image.permute(0, 3, 1, 2))
        inputs = inputs.to(self.dtype)
        features = self.model.backbone(inputs, self.model.taps)
        return {
            f"{task}.{name}": value.float()
            for task, head in self.model.heads.items()
            for name, value in head.forward_export(features).items()  # type: ignore[operator]
        }


class Complete(nn.Module):
    """Pictures in, results out.

    Args:
        model: Its heads must be of this package; it is copied.
        suppress: How it does NMS.

    Raises:
        ConfigError: A head is of another kind.
    """

    def __init__(self, model: Model, suppress: Suppress = suppress_greedily) -> None:
        super().__init__()
        self.raw, self.preprocess, self.suppress = Raw(model), model.preprocess, suppress
        size = model.preprocess.input_size
        shapes = {name: value.shape for name, value in self.raw(torch.zeros(1, *size, 3, dtype=torch.uint8)).items()}
        for task, head in model.heads.items():
            if isinstance(head, SSDLite):
                self.register_buffer(f"{task}_anchors", head.constants(size)["anchors"])
            elif isinstance(head, MobileDeepLab):
                for axis, name in enumerate(("rows", "columns")):
                    low = shapes[f"{task}.logits"][2 + axis]
                    self.register_buffer(f"{task}_{name}", spread_of(low, size[axis]))
            elif not isinstance(head, Classifier):
                raise ConfigError(f"tasks.{task}: no complete export of a {type(head).__name__}; use --form raw")

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Results as ``task.name``.

        Args:
            image: uint8 (B, H, W, 3), RGB, of any size.

        Returns:
            Of a detector ``boxes`` (B, N, 4) xyxy in pixels of the pictures, ``scores`` (B, N) falling,
            ``labels`` (B, N) and ``count`` (B,): how many of the N they are, the rest has score 0. Of
            a segmenter ``mask`` uint8 (B, H, W). Of a classifier ``probabilities`` (B, K).
        """
        fitted, size, used = fit(image, self.preprocess)
        raw = self.raw(fitted)
        found: dict[str, Tensor] = {}
        for task, head in self.raw.model.heads.items():
            if isinstance(head, SSDLite):
                own = {"logits": raw[f"{task}.logits"], "codes": raw[f"{task}.codes"]}
                parts = self._detect(head, own, getattr(self, f"{task}_anchors"), size, used)
                found |= {f"{task}.{name}": value for name, value in parts.items()}
            elif isinstance(head, MobileDeepLab):
                spread = (getattr(self, f"{task}_rows"), getattr(self, f"{task}_columns"))
                found[f"{task}.mask"] = label(raw[f"{task}.logits"], spread, image, used)
            else:
                found[f"{task}.probabilities"] = raw[f"{task}.logits"].softmax(dim=1)
        return found

    def _detect(
        self, head: SSDLite, raw: Mapping[str, Tensor], anchors: Tensor, size: Tensor, used: Tensor
    ) -> dict[str, Tensor]:
        logits = raw["logits"]
        scores = (logits.softmax(dim=-1) if head.softmax else logits.sigmoid())[..., head.private :].transpose(1, 2)
        inside, whole = (torch.cat([part.flip(0), part.flip(0)]).float() for part in (used, size))
        boxes, best, labels, count = keep_best(
            decode(raw["codes"], anchors).clamp(min=0.0).minimum(inside),
            scores,
            self.suppress,
            threshold=head.score_threshold,
            iou=head.nms_iou,
            keep=head.max_detections,
        )
        boxes = (boxes * (whole / inside)).minimum(whole)
        return {"boxes": boxes, "scores": best, "labels": labels, "count": count}
