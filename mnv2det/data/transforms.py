"""Augmentation and resizing: the only file that knows albumentations.

Everything is linear in the image plane, so crop, expand and resize are one warp straight to the
network's input size: a photograph is never resampled twice, nor processed at full size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from mnv2det.data.dataset import Arrays
from mnv2det.errors import ConfigError
from mnv2det.ops.geometry import place
from mnv2det.registry import AUGMENTATIONS
from mnv2det.structures import IGNORE, Frame, Preprocess, Sample

Transform = Callable[[Sample, int], tuple[NDArray[np.uint8], Arrays]]


class Warp(A.DualTransform):
    """What shows a part of the image: a subclass draws a relative ``window`` (x1, y1, x2, y2) and warps to it."""

    def apply_to_bboxes(self, bboxes: NDArray[Any], window: NDArray[np.float64], **params: Any) -> NDArray[Any]:
        """Relative boxes, cut to the window; columns 4 and 5 are label and ignore."""
        moved = bboxes.copy()
        moved[:, :4] = (bboxes[:, :4] - np.tile(window[:2], 2)) / np.tile(window[2:] - window[:2], 2)
        center = (moved[:, :2] + moved[:, 2:4]) / 2
        moved[:, 5] = np.maximum(moved[:, 5], ~((center > 0) & (center < 1)).all(axis=1))
        moved[:, :4] = moved[:, :4].clip(0, 1)
        return moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])]


class Window(Warp):
    """Shows a window of the image, which may reach beyond it, at the output size.

    The window is SSD's random crop (TensorFlow's ssd_random_crop: area and aspect ratio at random,
    some object covered by at least one of ``covered``) or its expansion, or the whole image. An
    object whose centre falls outside becomes ``ignore``: its anchors are no background either.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        crop: float,
        expand: float,
        area: tuple[float, float],
        ratio: tuple[float, float],
        covered: tuple[float, ...],
        most: float,
        fill: tuple[int, int, int],
    ) -> None:
        super().__init__(p=1)
        self.size, self.crop, self.expand, self.most, self.fill = size, crop, expand, most, fill
        self.area, self.ratio, self.covered = area, ratio, covered

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Chooses the window: x1, y1, x2, y2 relative to the image."""
        rng = self.random_generator
        dice = rng.random()
        if dice < self.crop:
            return {"window": self._crop(rng, params["shape"], np.asarray(data.get("bboxes", np.zeros((0, 6)))))}
        if dice < self.crop + self.expand:
            factor = rng.uniform(1, self.most)
            corner = -rng.random(2) * (factor - 1)
            return {"window": np.array([*corner, *(corner + factor)])}
        return {"window": np.array([0.0, 0.0, 1.0, 1.0])}

    def _crop(self, rng: np.random.Generator, shape: tuple[int, ...], boxes: NDArray[Any]) -> NDArray[np.float64]:
        tries = 50
        least = rng.choice(self.covered)
        area = rng.uniform(*self.area, tries)
        ratio = np.exp(rng.uniform(np.log(self.ratio[0]), np.log(self.ratio[1]), tries)) * shape[0] / shape[1]
        sides = np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], axis=1)
        corner = rng.random((tries, 2)) * (1 - sides)
        windows = np.concatenate([corner, corner + sides], axis=1)
        fits = (sides <= 1).all(axis=1)
        objects = boxes[boxes[:, 5] == 0, :4]
        if len(objects):
            low = np.maximum(windows[:, None, :2], objects[None, :, :2])
            high = np.minimum(windows[:, None, 2:], objects[None, :, 2:])
            share = np.clip(high - low, 0, None).prod(axis=2) / (objects[:, 2:] - objects[:, :2]).prod(axis=1)
            center = (objects[:, :2] + objects[:, 2:]) / 2
            seen = ((center > windows[:, None, :2]) & (center < windows[:, None, 2:])).all(axis=2)
            fits &= (seen & (share >= least)).any(axis=1)
        chosen = np.flatnonzero(fits)
        return windows[chosen[0]] if len(chosen) else np.array([0.0, 0.0, 1.0, 1.0])

    def _warp(self, picture: NDArray[Any], window: NDArray[np.float64], flags: int, fill: Any) -> NDArray[Any]:
        height, width = picture.shape[:2]
        if (window == (0, 0, 1, 1)).all() and flags != cv2.INTER_NEAREST:
            return cv2.resize(picture, self.size[::-1], interpolation=flags)
        scale = np.array(self.size[::-1]) / ((window[2:] - window[:2]) * (width, height))
        # pixel centres lie at .5
        shift = (0.5 - window[:2] * (width, height)) * scale - 0.5
        matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
        return cv2.warpAffine(
            picture, matrix, self.size[::-1], flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
        )

    def apply(self, img: NDArray[Any], window: NDArray[np.float64], **params: Any) -> NDArray[Any]:
        """The image, bilinear; beyond its border the mean colour."""
        return self._warp(img, window, cv2.INTER_LINEAR, self.fill)

    def apply_to_mask(self, mask: NDArray[Any], window: NDArray[np.float64], **params: Any) -> NDArray[Any]:
        """The mask, nearest; beyond its border 255."""
        return self._warp(mask, window, cv2.INTER_NEAREST, IGNORE)


@AUGMENTATIONS.register("ssd")
def ssd(
    preprocess: Preprocess,
    *,
    crop: float = 0.85,
    expand: float = 0.0,
    area: tuple[float, float] = (0.1, 1.0),
    ratio: tuple[float, float] = (0.5, 2.0),
    covered: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
    most: float = 4.0,
    flip: float = 0.5,
    vertical_flip: float = 0.0,
    photometric: float = 0.5,
) -> Transform:
    """SSD's augmentation (docs/recipes.md).

    Args:
        preprocess: Of the model: size of the output, and the colour beyond the image.
        crop: Share of images that are cropped.
        expand: Share that are shrunk into a larger canvas; the rest are shown whole.
        area: Of the crop, relative to the image.
        ratio: Of the crop, width / height.
        covered: What share of some object the crop must cover, one drawn per image.
        most: Largest side of the canvas, relative to the image.
        flip: Share that are mirrored left-right.
        vertical_flip: Share that are mirrored top-bottom (cells, aerial pictures).
        photometric: Share whose brightness, contrast, saturation and hue change.

    Returns:
        A function of (sample, seed).

    Raises:
        ConfigError: A share or range is out of order.
    """
    if crop + expand > 1 or not all(0 <= p <= 1 for p in (crop, expand, flip, vertical_flip, photometric)):
        raise ConfigError("augmentation ssd: shares must be from 0 to 1, crop + expand at most 1")
    if not (0 < area[0] <= area[1] <= 1 and 0 < ratio[0] <= ratio[1] and most >= 1 and covered):
        raise ConfigError("augmentation ssd: needs 0 < area <= 1, 0 < ratio, most >= 1 and some covered")
    if not all(0 <= share <= 1 for share in covered):
        raise ConfigError("augmentation ssd: covered must be shares from 0 to 1")
    fill = preprocess.fill
    window = Window(
        preprocess.input_size,
        crop=crop,
        expand=expand,
        area=area,
        ratio=ratio,
        covered=covered,
        most=most,
        fill=fill,
    )
    return pipeline(window, flip=flip, vertical_flip=vertical_flip, photometric=photometric)


@AUGMENTATIONS.register("inception")
def inception(
    preprocess: Preprocess,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (0.75, 1.333),
    flip: float = 0.5,
    vertical_flip: float = 0.0,
    photometric: float = 0.8,
) -> Transform:
    """The augmentation for classes of pictures (Szegedy et al. 2014, section 6): a crop of any size, stretched.

    Args:
        preprocess: Of the model.
        area: Of the crop, relative to the image.
        ratio: Of the crop, width / height.
        flip: As in `ssd`, as are the others.
        vertical_flip: Likewise.
        photometric: Likewise.

    Raises:
        ConfigError: A share or range is out of order.
    """
    if not all(0 <= p <= 1 for p in (flip, vertical_flip, photometric)):
        raise ConfigError("augmentation inception: shares must be from 0 to 1")
    if not (0 < area[0] <= area[1] <= 1 and 0 < ratio[0] <= ratio[1]):
        raise ConfigError("augmentation inception: needs 0 < area <= 1 and 0 < ratio")
    window = Window(
        preprocess.input_size,
        crop=1.0,
        expand=0.0,
        area=area,
        ratio=ratio,
        covered=(0.0,),
        most=1.0,
        fill=preprocess.fill,
    )
    return pipeline(window, flip=flip, vertical_flip=vertical_flip, photometric=photometric)


@AUGMENTATIONS.register("none")
def none(preprocess: Preprocess) -> Transform:
    """Brings the image to the input size as evaluation does, and changes nothing else."""
    return functools.partial(_fitted, preprocess=preprocess)


def _fitted(sample: Sample, seed: int, *, preprocess: Preprocess) -> tuple[NDArray[np.uint8], Arrays]:
    """A transform in which nothing is random; what of a picture lies beyond the input is cut off."""
    height, width = preprocess.input_size
    if preprocess.fit == "pad":
        sample = Sample(sample.image[:height, :width], _cut(sample.target, (height, width)), sample.image_id)
    image, frame = fit(sample.image, preprocess)
    target = resize(sample, frame.used)[1]
    if "mask" in target:
        mask = np.full(image.shape[:2], IGNORE, np.uint8)
        mask[: frame.used[0], : frame.used[1]] = target["mask"]
        target["mask"] = mask
    return image, target


def _cut(target: Arrays, size: tuple[int, int]) -> Arrays:
    cut = dict(target)
    if "boxes" in cut:
        boxes = cut["boxes"].clip(0, np.tile(size[::-1], 2)).astype(np.float32)
        kept = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        cut |= {key: cut[key][kept] for key in ("labels", "ignore", "area") if key in cut} | {"boxes": boxes[kept]}
    if "mask" in cut:
        cut["mask"] = cut["mask"][: size[0], : size[1]]
    return cut


def resize(sample: Sample, size: tuple[int, int]) -> tuple[NDArray[np.uint8], Arrays]:
    """Stretches an image with its boxes and mask.

    Args:
        sample: The image and its target.
        size: (H, W).

    Returns:
        uint8 (H, W, 3), and the target in its pixels.
    """
    target = dict(sample.target)
    factor = np.array(size) / sample.image.shape[:2]
    if "boxes" in target:
        target["boxes"] = (target["boxes"] * np.tile(factor[::-1], 2)).astype(np.float32)
    if "mask" in target:
        # exact: the plain one takes pixels up to half a pixel left of and above their place
        target["mask"] = cv2.resize(target["mask"], size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return stretch(sample.image, size), target


def fit(image: NDArray[np.uint8], preprocess: Preprocess) -> tuple[NDArray[np.uint8], Frame]:
    """Brings a picture to the network's input, as its weights want it (`Preprocess.fit`).

    Args:
        image: uint8 (h, w, 3), RGB.
        preprocess: Of the model.

    Returns:
        uint8 of the input size, or larger for a picture that is larger and may not be scaled; and
        where the picture lies in it.
    """
    (height, width), size = preprocess.input_size, (image.shape[0], image.shape[1])
    scaled, corner, used = (
        (int(rows), int(columns)) for rows, columns in place(float(size[0]), float(size[1]), preprocess, np)
    )
    image = stretch(image, scaled)
    if preprocess.fit == "crop":
        image = np.ascontiguousarray(image[corner[0] : corner[0] + height, corner[1] : corner[1] + width])
    bottom, right = max(height - used[0], 0), max(width - used[1], 0)
    if bottom or right:
        image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=preprocess.fill)  # type: ignore[assignment]
    return image, Frame(size, used)


def stretch(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resizes uint8 (h, w, 3) to (H, W, 3), bilinear."""
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def pipeline(warp: Warp, *, flip: float, vertical_flip: float = 0.0, photometric: float) -> Transform:
    """A warp, then mirroring and colours.

    Args:
        warp: Gives the output its size.
        flip: Share of images mirrored left-right.
        vertical_flip: Share mirrored top-bottom.
        photometric: Share whose brightness, contrast, saturation and hue change.
    """
    colours = {"brightness": (0.8, 1.2), "contrast": (0.7, 1.3), "saturation": (0.7, 1.3), "hue": (-0.04, 0.04)}
    steps = [A.HorizontalFlip(p=flip), A.VerticalFlip(p=vertical_flip), A.ColorJitter(**colours, p=photometric)]
    return _Pipeline([warp, *steps])


class _Pipeline:
    """Albumentations' steps as a `Transform`."""

    def __init__(self, steps: list[Any]) -> None:
        self.compose = A.Compose(steps, bbox_params=A.BboxParams("albumentations", clip=True))

    def __call__(self, sample: Sample, seed: int) -> tuple[NDArray[np.uint8], Arrays]:
        self.compose.set_random_seed(seed)
        target = dict(sample.target)
        height, width = sample.image.shape[:2]
        given: dict[str, Any] = {"image": sample.image, "bboxes": np.zeros((0, 6))}
        if "boxes" in target:
            corners = target["boxes"] / np.array([width, height] * 2, np.float64)
            given["bboxes"] = np.column_stack([corners, target["labels"], target["ignore"]])
        if "mask" in target:
            given["mask"] = target["mask"]
        result = self.compose(**given)
        image = result["image"]
        if "boxes" in target:
            rows = np.asarray(result["bboxes"], np.float64).reshape(-1, 6)
            boxes = (rows[:, :4] * np.array(image.shape[1::-1] * 2)).astype(np.float32)
            # a sliver may lose its width when the picture shrinks
            kept = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
            target["boxes"] = boxes[kept]
            target["labels"], target["ignore"] = rows[kept, 4].astype(np.int64), rows[kept, 5] > 0
            target.pop("area", None)
        if "mask" in target:
            target["mask"] = result["mask"]
        return image, target
