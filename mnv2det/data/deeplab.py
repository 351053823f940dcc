"""DeepLab's augmentation: the picture at a random scale, and a crop of it."""

from __future__ import annotations

import numpy as np

from mnv2det.data.transforms import Transform
from mnv2det.errors import ConfigError
from mnv2det.registry import AUGMENTATIONS
from mnv2det.structures import Preprocess


@AUGMENTATIONS.register("deeplab")
def deeplab(
    preprocess: Preprocess,
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    step: float = 0.25,
    base: int | None = None,
    crop: tuple[int, int] | None = None,
    cat_max: float | None = None,
    flip: float = 0.5,
    photometric: float = 0.0,
) -> Transform:
    """DeepLab's augmentation (TensorFlow research/deeplab, input_preprocess.py) as one warp.

    The picture is scaled with its ratio kept, filled up at the right and bottom where it is smaller
    than the crop, cropped and mirrored; beyond the picture the mask is 255.

    Args:
        preprocess: Of the model: size of the output, and the colour beyond the image.
        scale: Smallest and largest.
        step: Between the scales drawn from; 0 draws any between the two.
        base: Pixels of the picture's longer side at scale 1; null leaves its own.
        crop: (H, W) of the output where it is not the input size.
        cat_max: A crop in which one class covers more than this share of the labelled pixels is
            drawn again, up to 10 times (mmsegmentation's cat_max_ratio); null takes any.
        flip: Share that are mirrored left-right.
        photometric: Share whose brightness, contrast, saturation and hue change.

    Returns:
        A function of (sample, seed).

    Raises:
        ConfigError: A value is out of its range.
    """
    if not (0 < scale[0] <= scale[1] <= 100 and step >= 0):
        raise ConfigError(
            f"augmentation deeplab: scale {list(scale)}, step {step}: expected 0 < scale <= 100, step >= 0"
        )
    if not all(0 <= share <= 1 for share in (flip, photometric)):
        raise ConfigError("augmentation deeplab: flip and photometric must be shares from 0 to 1")
    if cat_max is not None and not 0 < cat_max <= 1:
        raise ConfigError(f"augmentation deeplab: cat_max {cat_max}: expected null or a share above 0, at most 1")
    if (base is not None and base < 1) or (crop is not None and min(crop) < 1):
        raise ConfigError(f"augmentation deeplab: base {base}, crop {crop}: expected null or pixels of 1 and more")
    from mnv2det.data.warps import Pipeline, ScaledCrop

    scales = np.linspace(*scale, int((scale[1] - scale[0]) / step + 1.000001)) if step else scale
    size = crop or preprocess.input_size
    warp = ScaledCrop(size, scales=scales, base=base, cat_max=cat_max, fill=preprocess.fill)
    return Pipeline(warp, flip=flip, photometric=photometric)
