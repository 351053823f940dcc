"""The augmentations that a config can name; albumentations is imported when one of them is built."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mnv2det.data.dataset import Arrays
from mnv2det.data.fit import fit, resize
from mnv2det.errors import ConfigError
from mnv2det.registry import AUGMENTATIONS
from mnv2det.structures import IGNORE, Preprocess, Sample

Transform = Callable[[Sample, int], tuple[NDArray[np.uint8], Arrays]]


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
    from mnv2det.data.warps import Pipeline, Window

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
    return Pipeline(window, flip=flip, vertical_flip=vertical_flip, photometric=photometric)


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
    from mnv2det.data.warps import Pipeline, Window

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
    return Pipeline(window, flip=flip, vertical_flip=vertical_flip, photometric=photometric)


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
