"""The types that travel between rooms; docs/conventions.md states their units and ranges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from mnv2det.schema import Fit as Fit
from mnv2det.schema import Sampling as Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


# PASCAL VOC's own order
# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)
# fmt: on
VOC_MASK_CLASSES = ("background", *VOC_CLASSES)
IGNORE = 255  # value of a mask's pixel that has no class


class FeatureInfo(NamedTuple):
    """What a backbone says of one of its features."""

    channels: int
    stride: int


class Frame(NamedTuple):
    """Where a picture lies in the network's input.

    Attributes:
        size: (H, W) of the picture as it was on disk.
        used: (h, w) of the input's top-left part that shows it; the rest is fill.
    """

    size: tuple[int, int]
    used: tuple[int, int]


class Target(TypedDict, total=False):
    """Annotation of one image. An absent key means *not annotated*; an empty tensor, *nothing there*.

    Attributes:
        boxes: float32 (N, 4), xyxy in pixels of the image tensor they accompany.
        labels: int64 (N,), 0 ... K-1, foreground only.
        ignore: bool (N,), VOC ``difficult`` or COCO ``iscrowd``.
        mask: int64 (H, W), 0 ... K-1, 255 = ignore.
        label: int64 (), the class of the whole image.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    mask: Tensor
    label: Tensor


@dataclass
class Sample:
    """One decoded image with its annotation, before it becomes a tensor.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        target: Arrays named and shaped as in `Target`.
        image_id: The data set's own identifier of the image.
    """

    image: NDArray[np.uint8]
    target: dict[str, NDArray[Any]]
    image_id: int | str


@dataclass
class Batch:
    """What the loader yields.

    Attributes:
        images: uint8 (B, 3, H, W), RGB; normalised on the device by `Model.normalize`.
        targets: One `Target` per image, in pixels of ``images``.
        image_ids: The data set's identifiers.
        frames: Where each image lies in its input, and its size on disk.
        truths: In evaluation, the annotations as the data set gives them, in original pixels.
        skipped: Messages about broken images that were left out (``bad_data: skip``).
    """

    images: Tensor
    targets: list[Target]
    image_ids: list[int | str]
    frames: list[Frame]
    truths: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        """Called by the loader when CUDA is in use, so that the copy to the device can overlap."""
        self.images = self.images.pin_memory()
        return self


@dataclass
class Detections:
    """Boxes found in one image, best first.

    Attributes:
        boxes: float32 (N, 4), xyxy in pixels of the original image.
        scores: float32 (N,), 0 ... 1.
        labels: int64 (N,), 0 ... K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass
class Scores:
    """Class probabilities of one image: float32 (K,), summing to 1."""

    probabilities: Tensor


@dataclass
class Segmentation:
    """Class of every pixel of one image: uint8 (H, W), 0 ... K-1, in the original size."""

    mask: Tensor


TaskResult = Detections | Segmentation | Scores  # what one head says of one picture


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the network's input; travels with the weights.

    Attributes:
        input_size: (H, W) of the input.
        mean: Per RGB channel, in units of 0 ... 1.
        std: Likewise; the input is ``(pixel / 255 - mean) / std``.
        fit: How pictures come to that size. ``stretch``: each side by itself. ``letterbox``: scaled
            with its ratio kept, the rest at the right and bottom filled with the mean colour.
            ``pad``: not scaled, only filled up; a larger picture is covered by overlapping windows.
            ``crop``: scaled with its ratio kept so that the input shows 7/8 of the shorter side, in the
            middle; for classes of whole pictures alone.
        sampling: Which place of a picture a pixel of the resized one shows. ``centers``: their centres lie over one
            another, as OpenCV resizes. ``corners``: their upper left corners do, as TensorFlow 1's bilinear resizing
            has it, with which the Object Detection API's detectors were trained.
    """

    input_size: tuple[int, int] = (320, 320)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fit: Fit = "stretch"
    sampling: Sampling = "centers"

    @property
    def fill(self) -> tuple[int, int, int]:
        """The RGB colour, 0 ... 255, that is nearest to zero once normalised; it fills what shows no picture."""
        red, green, blue = (round(value * 255) for value in self.mean)
        return red, green, blue
