"""Random geometry and colours for training: the only file that knows albumentations.

Everything is linear in the image plane, so crop, expand and resize are one warp straight to the
network's input size: a photograph is never resampled twice, nor processed at full size.
"""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from mnv2det.data.dataset import Arrays
from mnv2det.structures import IGNORE, Sample

TRIES = 10  # as mmsegmentation draws a crop again


class Warp(A.DualTransform):
    """Shows a part of the image: a subclass draws a relative ``window`` (x1, y1, x2, y2) and warps the image to it."""

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


class ScaledCrop(Warp):
    """A window of the output's own proportions, at whole pixels of the scaled picture.

    Where the scaled picture is the smaller one, the window reaches beyond its right and bottom.
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
                # every fourth row and column tell enough
                rows, columns = self._pixels(data["mask"].shape, scale, corner)
                if _largest_share(data["mask"][rows[::4]][:, columns[::4]]) <= self.cat_max:
                    break
                corner = rng.integers(0, free + 1)
        window = np.concatenate([corner, corner + self.size]) / np.tile(shape * scale, 2)
        return {"scale": scale, "corner": corner, "window": window[[1, 0, 3, 2]]}

    def apply(self, img: NDArray[Any], scale: float, corner: NDArray[Any], **params: Any) -> NDArray[Any]:
        """The image, bilinear; beyond its border the mean colour."""
        y, x = 0.5 * scale - 0.5 - corner  # pixel centres lie at .5
        matrix = np.array([[scale, 0, x], [0, scale, y]])
        shown = cv2.warpAffine(img, matrix, self.size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        rows, columns = self._pixels(img.shape, scale, corner)
        shown[len(rows) :], shown[:, len(columns) :] = self.fill, self.fill
        return shown

    def apply_to_mask(self, mask: NDArray[Any], scale: float, corner: NDArray[Any], **params: Any) -> NDArray[Any]:
        """The mask, nearest; beyond its border 255."""
        rows, columns = self._pixels(mask.shape, scale, corner)
        shown = np.full(self.size, IGNORE, np.uint8)
        shown[: len(rows), : len(columns)] = mask[rows][:, columns]
        return shown

    def _pixels(self, shape: tuple[int, ...], scale: float, corner: NDArray[Any]) -> list[NDArray[np.int64]]:
        """Rows and columns of the picture in which the centres of the output's pixels lie, as far as they do."""
        found = []
        for count, start, end in zip(self.size, corner, shape, strict=False):
            # a centre between two pixels belongs to the later one, whatever the rounding
            places = np.floor((np.arange(count) + 0.5 + start) / scale + 1e-6).astype(np.int64)
            found.append(places[places < end])
        return found


def _largest_share(mask: NDArray[Any]) -> float:
    """Of the labelled pixels, those of the most frequent class; 1 where none is labelled."""
    counts = np.bincount(mask.ravel(), minlength=IGNORE)[:IGNORE]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


class Pipeline:
    """A warp, then mirroring and colours, as a `mnv2det.data.transforms.Transform`.

    Args:
        warp: Gives the output its size.
        flip: Share of images mirrored left-right.
        vertical_flip: Share mirrored top-bottom.
        photometric: Share whose brightness, contrast, saturation and hue change.
    """

    def __init__(self, warp: Warp, *, flip: float, vertical_flip: float = 0.0, photometric: float) -> None:
        colours = {"brightness": (0.8, 1.2), "contrast": (0.7, 1.3), "saturation": (0.7, 1.3), "hue": (-0.04, 0.04)}
        steps = [A.HorizontalFlip(p=flip), A.VerticalFlip(p=vertical_flip), A.ColorJitter(**colours, p=photometric)]
        self.compose = A.Compose([warp, *steps], bbox_params=A.BboxParams("albumentations", clip=True))

    def __call__(self, sample: Sample, seed: int) -> tuple[NDArray[np.uint8], Arrays]:
        """The changed image, uint8 (H, W, 3), and its target; the same for the same seed."""
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
            found = np.asarray(result["bboxes"], np.float64).reshape(-1, 6)
            target["boxes"] = (found[:, :4] * np.array(image.shape[1::-1] * 2)).astype(np.float32)
            target["labels"], target["ignore"] = found[:, 4].astype(np.int64), found[:, 5] > 0
            target.pop("area", None)
        if "mask" in target:
            target["mask"] = result["mask"]
        return image, target
