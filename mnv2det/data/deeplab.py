"""DeepLab's augmentation: the picture at a random scale, and a crop of it."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from mnv2det.data.transforms import Transform
from mnv2det.ranges import NonNegativeFloat, PositiveInt, PositiveShare, Share, check_order
from mnv2det.registry import AUGMENTATIONS
from mnv2det.structures import Preprocess

Scale = Annotated[float, Field(gt=0, le=100)]


@AUGMENTATIONS.register("deeplab", check=lambda args: check_order(args, "scale"))
def deeplab(
    preprocess: Preprocess,
    *,
    scale: tuple[Scale, Scale] = (0.5, 2.0),
    step: NonNegativeFloat = 0.25,
    base: PositiveInt | None = None,
    crop: tuple[PositiveInt, PositiveInt] | None = None,
    cat_max: PositiveShare | None = None,
    flip: Share = 0.5,
    photometric: Share = 0.0,
) -> Transform:
    """DeepLab's augmentation (TensorFlow research/deeplab, input_preprocess.py) as one warp.

    The picture is scaled with its ratio kept, filled up at the right and bottom where it is smaller
    than the crop, cropped and mirrored; beyond the picture the mask is 255.

    Args:
        preprocess: The model's; gives the size of the output and the colour beyond the picture.
        scale: Smallest and largest scale.
        step: Distance of the scales that are drawn from; 0 draws any scale between the two.
        base: Pixels of the picture's longer side at scale 1; null leaves its own.
        crop: (H, W) of the output; null takes the model's input size.
        cat_max: A crop in which one class covers more than this share of the labelled pixels is
            drawn again, up to 10 times (mmsegmentation's cat_max_ratio); null takes any.
        flip: Share of pictures that are mirrored left-right.
        photometric: Share of pictures whose brightness, contrast, saturation and hue change.

    Returns:
        A function of (sample, seed).
    """
    from mnv2det.data.warps import Pipeline, ScaledCrop

    scales = np.linspace(*scale, int((scale[1] - scale[0]) / step + 1.000001)) if step else scale
    size = crop or preprocess.input_size
    warp = ScaledCrop(size, scales=scales, base=base, cat_max=cat_max, fill=preprocess.fill)
    return Pipeline(warp, flip=flip, photometric=photometric)
