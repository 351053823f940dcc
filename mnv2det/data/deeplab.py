"""DeepLab's augmentation: the picture at a random scale, and a crop of it."""

from __future__ import annotations

from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mnv2det.data.transforms import Transform, Warp, pipeline
from mnv2det.ranges import NonNegativeFloat, PositiveInt, PositiveShare, Share, check_order
from mnv2det.registry import AUGMENTATIONS
from mnv2det.structures import IGNORE, Preprocess

TRIES = 10  # crops drawn for `cat_max`, as in mmsegmentation
Scale = Annotated[float, Field(gt=0, le=100)]


class ScaledCrop(Warp):
    """Scales the picture with its ratio kept, and crops it at whole pixels.

    Where the scaled picture is smaller than the output, the window reaches beyond its right and bottom.

    Args:
        size: (H, W) of the output.
        scales: One of them is drawn; of a tuple, any scale between the two.
        base: Pixels of the picture's longer side at scale 1; None leaves its own.
        cat_max: See `deeplab`.
        fill: RGB beyond the picture.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        scales: NDArray[np.float64] | tuple[float, float],
        base: int | None,
        cat_max: float | None,
        fill: tuple[int, int, int],
    ) -> None:
        super().__init__(p=1)
        self.size, self.scales, self.base, self.cat_max, self.fill = size, scales, base, cat_max, fill

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Chooses the scale and the window's corner (y, x) in pixels of the scaled picture."""
        rng, shape = self.random_generator, np.array(params["shape"][:2])
        scale = rng.uniform(*self.scales) if isinstance(self.scales, tuple) else rng.choice(self.scales)
        scale *= self.base / shape.max() if self.base else 1
        free = np.maximum(shape * scale - self.size, 0).astype(int)
        corner = rng.integers(0, free + 1)
        if self.cat_max is not None and "mask" in data:
            for _ in range(TRIES):
                # every fourth row and column suffices to count classes
                rows, columns = self._pixels(data["mask"].shape, scale, corner)
                if _largest_share(data["mask"][rows[::4]][:, columns[::4]]) <= self.cat_max:
                    break
                corner = rng.integers(0, free + 1)
        window = np.concatenate([corner, corner + self.size]) / np.tile(shape * scale, 2)
        return {"scale": scale, "corner": corner, "window": window[[1, 0, 3, 2]]}

    def apply(self, img: NDArray[Any], scale: float, corner: NDArray[Any], **params: Any) -> NDArray[Any]:
        """Warps the image, bilinear; beyond its border lies the fill colour."""
        y, x = 0.5 * scale - 0.5 - corner  # pixel centres lie at .5
        matrix = np.array([[scale, 0, x], [0, scale, y]])
        shown = cv2.warpAffine(img, matrix, self.size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        rows, columns = self._pixels(img.shape, scale, corner)
        shown[len(rows) :], shown[:, len(columns) :] = self.fill, self.fill
        return shown

    def apply_to_mask(self, mask: NDArray[Any], scale: float, corner: NDArray[Any], **params: Any) -> NDArray[Any]:
        """Warps the mask, nearest neighbour; beyond its border lies 255."""
        rows, columns = self._pixels(mask.shape, scale, corner)
        shown = np.full(self.size, IGNORE, np.uint8)
        shown[: len(rows), : len(columns)] = mask[rows][:, columns]
        return shown

    def _pixels(self, shape: tuple[int, ...], scale: float, corner: NDArray[Any]) -> list[NDArray[np.int64]]:
        """The picture's row (column) in which the centre of each row (column) of the output lies.

        Rows and columns of the output that lie beyond the picture are left out.
        """
        pixels = []
        for count, start, end in zip(self.size, corner, shape, strict=False):
            # a centre on the edge of two pixels belongs to the later one, however the division is rounded
            positions = np.floor((np.arange(count) + 0.5 + start) / scale + 1e-6).astype(np.int64)
            pixels.append(positions[positions < end])
        return pixels


def _largest_share(mask: NDArray[Any]) -> float:
    """The share of the labelled pixels that have the most frequent class; 1 where none is labelled."""
    counts = np.bincount(mask.ravel(), minlength=IGNORE)[:IGNORE]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


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
    scales = np.linspace(*scale, int((scale[1] - scale[0]) / step + 1.000001)) if step else scale
    size = crop or preprocess.input_size
    warp = ScaledCrop(size, scales=scales, base=base, cat_max=cat_max, fill=preprocess.fill)
    return pipeline(warp, flip=flip, photometric=photometric)
