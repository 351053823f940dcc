"""The augmentations that a config can name; albumentations is imported when one of them is built."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mnv2det.data.dataset import Arrays
from mnv2det.data.fit import fit, resize
from mnv2det.ranges import PositiveFloat, PositiveShare, Share, check_order
from mnv2det.registry import AUGMENTATIONS
from mnv2det.structures import IGNORE, Preprocess, Sample

Transform = Callable[[Sample, int], tuple[NDArray[np.uint8], Arrays]]


def _check_ssd(args: Mapping[str, Any]) -> Iterator[str]:
    yield from check_order(args, "area", "ratio")
    if args["crop"] + args["expand"] > 1:
        yield f"crop: expected crop + expand of at most 1, got {args['crop']} + {args['expand']}"


@AUGMENTATIONS.register("ssd", check=_check_ssd)
def ssd(
    preprocess: Preprocess,
    *,
    crop: Share = 0.85,
    expand: Share = 0.0,
    area: tuple[PositiveShare, PositiveShare] = (0.1, 1.0),
    ratio: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0),
    covered: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
    most: Annotated[float, Field(ge=1)] = 4.0,
    flip: Share = 0.5,
    vertical_flip: Share = 0.0,
    photometric: Share = 0.5,
) -> Transform:
    """SSD's augmentation (docs/recipes.md).

    Args:
        preprocess: The model's; gives the size of the output and the colour beyond the image.
        crop: Share of images that are cropped.
        expand: Share of images that are shrunk into a larger canvas; the rest are shown whole.
        area: Smallest and largest area of a crop, relative to the image.
        ratio: Smallest and largest width / height of a crop.
        covered: Shares of an object that a crop must show; one is drawn per image.
        most: Largest side of the canvas, relative to the image.
        flip: Share of images that are mirrored left-right.
        vertical_flip: Share of images that are mirrored top-bottom (cells, aerial pictures).
        photometric: Share of images whose brightness, contrast, saturation and hue change.

    Returns:
        A function of (sample, seed).
    """
    from mnv2det.data.warps import Pipeline, Window

    window = Window(
        preprocess.input_size,
        crop=crop,
        expand=expand,
        area=area,
        ratio=ratio,
        covered=covered,
        most=most,
        fill=preprocess.fill,
        sampling=preprocess.sampling,
    )
    return Pipeline(window, flip=flip, vertical_flip=vertical_flip, photometric=photometric)


@AUGMENTATIONS.register("inception", check=lambda args: check_order(args, "area", "ratio"))
def inception(
    preprocess: Preprocess,
    *,
    area: tuple[PositiveShare, PositiveShare] = (0.08, 1.0),
    ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.333),
    flip: Share = 0.5,
    vertical_flip: Share = 0.0,
    photometric: Share = 0.8,
) -> Transform:
    """The augmentation for classes of whole pictures (Szegedy et al. 2014, section 6): a crop of any size, stretched.

    Args:
        preprocess: The model's; gives the size of the output.
        area: Smallest and largest area of a crop, relative to the image.
        ratio: Smallest and largest width / height of a crop.
        flip: Share of images that are mirrored left-right.
        vertical_flip: Share of images that are mirrored top-bottom.
        photometric: Share of images whose brightness, contrast, saturation and hue change.

    Returns:
        A function of (sample, seed).
    """
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
        sampling=preprocess.sampling,
    )
    return Pipeline(window, flip=flip, vertical_flip=vertical_flip, photometric=photometric)


@AUGMENTATIONS.register("none")
def none(preprocess: Preprocess) -> Transform:
    """No augmentation: brings the image to the input size as evaluation does."""
    return functools.partial(_fitted, preprocess=preprocess)


def _fitted(sample: Sample, seed: int, *, preprocess: Preprocess) -> tuple[NDArray[np.uint8], Arrays]:
    """The transform of `none`; the seed is not used. A picture that may not be scaled is cut to the input's size."""
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
    """The target of a picture that is cut at the right and bottom to (H, W)."""
    cut = dict(target)
    if "boxes" in cut:
        boxes = cut["boxes"].clip(0, np.tile(size[::-1], 2)).astype(np.float32)
        kept = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        cut |= {key: cut[key][kept] for key in ("labels", "ignore", "area") if key in cut} | {"boxes": boxes[kept]}
    if "mask" in cut:
        cut["mask"] = cut["mask"][: size[0], : size[1]]
    return cut
