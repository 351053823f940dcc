"""What a head is: everything that the rest of the package asks of a task.

To add a head, write one module: a subclass of `Head` (or of `Dense`, if it scores every pixel), registered with
``@HEADS.register("name")``. It needs `Head.forward`, `Head.loss`, `Head.decode` and `Head.class_rows`; with these it
trains, evaluates, predicts and exports its raw tensors. The other methods have defaults:

- `Head.loss_normalizer`, if its loss is divided by a count of things, such as matched anchors;
- `Head.constants`, if some raw tensors depend on the size of the input alone, such as anchors;
- `Head.forward_export` and `Head.drop_training_parts`, if only training needs some of its tensors or layers;
- `Head.export_outputs`, so that an exported file can contain all that follows the network;
- `Head.anchor_coding`, if it predicts boxes at anchors by SSD's box code.

A detector hands its boxes and scores to `mnv2det.ops.detections`, which has the steps from there to detections.
`mnv2det.testing.assert_head` checks what is written here; tests/extensions/center_head.py is an example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from mnv2det.errors import ConfigError
from mnv2det.ops.detections import DetectionSettings
from mnv2det.ops.geometry import GraphFrame
from mnv2det.ops.nms import Suppress
from mnv2det.structures import Detections, Frame, Scores, Segmentation, Target, TaskResult


class ClassRows(NamedTuple):
    """How the first axis of a parameter is made up: ``groups`` times (private rows, then one per class).

    Attributes:
        groups: Number of groups, for instance of anchors at a position.
        private: Rows at the start of each group that belong to no class, such as the background's.
    """

    groups: int = 1
    private: int = 0


@dataclass(frozen=True)
class AnchorCoding:
    """How a head predicts boxes at anchors, for those who compute with its raw tensors outside the head.

    Boxes are predicted as `mnv2det.ops.boxes.encode` codes them.

    Attributes:
        logits: Name of the raw tensor of class logits (B, A, K), or (B, A, 1 + K) with the background first.
        codes: Name of the raw tensor of box codes (B, A, 4).
        anchors: Name of the tensor of `Head.constants` with the anchors float32 (A, 4), xyxy in pixels of the input.
        classes: K, the number of classes without background.
        softmax: Whether scores are the softmax of an anchor's logits; otherwise they are the sigmoid of each.
        match_iou: Least IoU at which an anchor learns a box.
        settings: What decides which boxes are detections.
    """

    logits: str
    codes: str
    anchors: str
    classes: int
    softmax: bool
    match_iou: float
    settings: DetectionSettings


class Head(nn.Module, ABC):
    """A task: it reads features of any backbone and knows no data set.

    A subclass is constructed as ``MyHead(features, classes=K, **args)``: the backbone's mapping of tap name to
    `FeatureInfo`, the number of classes, and its own arguments, which are keyword-only and have defaults.

    Attributes:
        taps: Names of the backbone features that it reads, each with an optional ``/stride``. The tap ``image`` is
            the input itself, for its size.
        needs: Keys of `Target` that it learns from; an image without them adds nothing to its loss.
        target_key: Key of `Target` whose class names are the head's classes: ``labels`` (boxes), ``mask`` or
            ``label`` (of whole pictures).
        architecture_args: Names of the arguments without which weights mean something else. Who starts from a
            file takes them from there.
        optional_layers: Prefixes of the names of layers that a file may lack; these then start anew.
        detection_settings: What decides which boxes are detections; None if it detects none.
    """

    taps: tuple[str, ...]
    needs: ClassVar[tuple[str, ...]]
    target_key: ClassVar[str]
    architecture_args: ClassVar[tuple[str, ...]] = ()
    optional_layers: ClassVar[tuple[str, ...]] = ()
    detection_settings: DetectionSettings | None = None

    @abstractmethod
    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Computes the raw tensors, with the same names and shapes in train and eval mode.

        Args:
            features: The features (B, C, H / stride, W / stride) by the names in ``taps``.
        """

    @abstractmethod
    def loss(self, raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Computes the losses of a batch.

        Args:
            raw: From `forward`.
            targets: One per image, in pixels of the input; images without a key of ``needs`` add nothing.

        Returns:
            Named float32 scalars, to be added up. Where nothing is annotated, zero, with a gradient.
        """

    def loss_normalizer(self, targets: Sequence[Target], size: tuple[int, int]) -> tuple[float, float]:
        """Says what `loss` is divided by, so that several batches or processes can weigh as one batch.

        By default all batches weigh the same.

        Args:
            targets: Of one batch.
            size: (H, W) of the input.

        Returns:
            What the head counted in this batch, and the least number that a loss is divided by: the loss is
            divided by the larger of the two.
        """
        return 1.0, 1.0

    @abstractmethod
    def decode(self, raw: Mapping[str, Tensor], frames: Sequence[Frame]) -> Sequence[TaskResult]:
        """Computes the results of a batch, in pixels of the original pictures.

        Args:
            raw: From `forward`, or from `forward_export` together with `constants`.
            frames: Where each picture lies in the input, and its original size.
        """

    @abstractmethod
    def class_rows(self) -> dict[str, ClassRows]:
        """Names the parameters whose first axis runs over classes; with another class list only these start anew."""

    def constants(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Computes those raw tensors that follow from the input's size alone; none by default.

        An exported file has no weights to build them from, so buffers and parameters must not be read here.

        Args:
            size: (H, W) of the input.
        """
        return {}

    def forward_export(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Computes what an export computes: the raw tensors that `decode` reads, without those of `constants`.

        By default all raw tensors, which is right for a head without constants.
        """
        return self.forward(features)

    def drop_training_parts(self) -> None:
        """Drops, in a copy that is for inference only, what `decode` does not need; nothing by default."""
        return

    def anchor_coding(self) -> AnchorCoding | None:
        """Says how it predicts boxes at anchors; None, the default, if it does not."""
        return None

    def export_constants(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Computes the tensors that `export_outputs` needs beside `forward_export`'s; by default `constants`.

        Args:
            size: (H, W) of the input.
        """
        return self.constants(size)

    def export_outputs(self, raw: Mapping[str, Tensor], frame: GraphFrame, suppress: Suppress) -> dict[str, Tensor]:
        """Computes the results of a batch of pictures of one size, by operations that can be traced.

        A head without this method can only be exported in the raw form, which ends with `forward_export`.

        Args:
            raw: From `forward_export` and `export_constants`.
            frame: Where the pictures lie in the input.
            suppress: Does the NMS of detectors (`mnv2det.ops.detections.detect_in_graph`).

        Returns:
            Of a detector ``boxes`` (B, N, 4), xyxy in pixels of the pictures, ``scores`` (B, N), descending,
            ``labels`` (B, N) and ``count`` (B,): how many of the N are detections. Of a segmenter ``mask`` uint8
            (B, H, W). Of a classifier ``probabilities`` (B, K).

        Raises:
            ConfigError: The head has none.
        """
        raise ConfigError(f"head {type(self).__name__} has no complete export; use --form raw")

    def result_from_export(self, outputs: Mapping[str, Tensor], index: int) -> TaskResult:
        """Turns the outputs of a complete export into the result of one picture.

        Args:
            outputs: As `export_outputs` returns them.
            index: Of the picture in its batch.
        """
        picture = {name: value[index] for name, value in outputs.items()}
        if "mask" in picture:
            return Segmentation(picture["mask"])
        if "probabilities" in picture:
            return Scores(picture["probabilities"])
        count = int(picture["count"])
        return Detections(picture["boxes"][:count], picture["scores"][:count], picture["labels"][:count])


class Dense(Head):
    """A head that scores every pixel, so that its scores can be averaged over scales and windows."""

    @abstractmethod
    def scores(self, raw: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Computes class probabilities float32 (B, K, H, W) of the size (H, W) that is asked for."""
