"""Random geometry and colours for training: the only file that knows albumentations.

Crop, expansion and resizing are linear maps of the image plane, so that one warp does all of them, straight to the
network's input size: a photograph is neither resampled twice nor processed at full size.
"""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from mnv2det.data.dataset import Arrays
from mnv2det.structures import IGNORE, Preprocess, Sample, Sampling

TRIES = 10  # crops drawn for `cat_max`, as in mmsegmentation


class Warp(A.DualTransform):
    """Base of transforms that show a window of the image.

    A subclass chooses the parameter ``window``, (x1, y1, x2, y2) relative to the image, and warps pictures and masks
    to it.
    """

    def apply_to_bboxes(self, bboxes: NDArray[Any], window: NDArray[np.float64], **params: Any) -> NDArray[Any]:
        """Moves relative boxes (N, 6) into the window and cuts them off at its edge.

        Columns 4 and 5 are label and ignore. A box whose centre lies outside the window becomes ``ignore``; one that
        lies outside altogether is dropped.
        """
        moved = bboxes.copy()
        moved[:, :4] = (bboxes[:, :4] - np.tile(window[:2], 2)) / np.tile(window[2:] - window[:2], 2)
        center = (moved[:, :2] + moved[:, 2:4]) / 2
        moved[:, 5] = np.maximum(moved[:, 5], ~((center > 0) & (center < 1)).all(axis=1))
        moved[:, :4] = moved[:, :4].clip(0, 1)
        return moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])]


class Window(Warp):
    """Shows a random window of the image, which may reach beyond it, at the output size.

    The window is SSD's random crop (TensorFlow's ssd_random_crop: area and aspect ratio at random, with some object
    covered by at least a share drawn from ``covered``), or SSD's expansion, or the whole image. An object whose
    centre falls outside becomes ``ignore``, so that its anchors are not trained as background.

    Args:
        size: (H, W) of the output.
        crop: Share of images that are cropped.
        expand: Share of images that are shrunk into a larger canvas.
        area: Smallest and largest area of a crop, relative to the image.
        ratio: Smallest and largest width / height of a crop.
        covered: Shares of an object that a crop must show; one is drawn per image.
        most: Largest side of the canvas of an expansion, relative to the image.
        fill: RGB beyond the image.
        sampling: See `Preprocess`.
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
        sampling: Sampling = Preprocess.sampling,
    ) -> None:
        super().__init__(p=1)
        self.size, self.crop, self.expand, self.most, self.fill = size, crop, expand, most, fill
        self.area, self.ratio, self.covered = area, ratio, covered
        self.centre = 0.5 if sampling == "centers" else 0.0  # of a pixel

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Chooses the window: x1, y1, x2, y2 relative to the image."""
        rng = self.random_generator
        draw = rng.random()
        if draw < self.crop:
            return {"window": self._crop(rng, params["shape"], np.asarray(data.get("bboxes", np.zeros((0, 6)))))}
        if draw < self.crop + self.expand:
            factor = rng.uniform(1, self.most)
            corner = -rng.random(2) * (factor - 1)
            return {"window": np.array([*corner, *(corner + factor)])}
        return {"window": np.array([0.0, 0.0, 1.0, 1.0])}

    def _crop(self, rng: np.random.Generator, shape: tuple[int, ...], boxes: NDArray[Any]) -> NDArray[np.float64]:
        """The first of 50 random windows that shows enough of some object, else the whole image."""
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
            inside = ((center > windows[:, None, :2]) & (center < windows[:, None, 2:])).all(axis=2)
            fits &= (inside & (share >= least)).any(axis=1)
        chosen = np.flatnonzero(fits)
        return windows[chosen[0]] if len(chosen) else np.array([0.0, 0.0, 1.0, 1.0])

    def _warp(self, picture: NDArray[Any], window: NDArray[np.float64], flags: int, fill: Any) -> NDArray[Any]:
        height, width = picture.shape[:2]
        if (window == (0, 0, 1, 1)).all() and flags != cv2.INTER_NEAREST and self.centre:
            return cv2.resize(picture, self.size[::-1], interpolation=flags)
        scale = np.array(self.size[::-1]) / ((window[2:] - window[:2]) * (width, height))
        shift = (self.centre - window[:2] * (width, height)) * scale - self.centre
        matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
        return cv2.warpAffine(
            picture, matrix, self.size[::-1], flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
        )

    def apply(self, img: NDArray[Any], window: NDArray[np.float64], **params: Any) -> NDArray[Any]:
        """Warps the image, bilinear; beyond its border lies the fill colour."""
        return self._warp(img, window, cv2.INTER_LINEAR, self.fill)

    def apply_to_mask(self, mask: NDArray[Any], window: NDArray[np.float64], **params: Any) -> NDArray[Any]:
        """Warps the mask, nearest neighbour; beyond its border lies 255."""
        return self._warp(mask, window, cv2.INTER_NEAREST, IGNORE)


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


class Pipeline:
    """A warp, then mirroring and colours, as a `mnv2det.data.transforms.Transform`.

    Args:
        warp: Gives the output its size.
        flip: Share of images that are mirrored left-right.
        vertical_flip: Share of images that are mirrored top-bottom.
        photometric: Share of images whose brightness, contrast, saturation and hue change.
    """

    def __init__(self, warp: Warp, *, flip: float, vertical_flip: float = 0.0, photometric: float) -> None:
        colours = {"brightness": (0.8, 1.2), "contrast": (0.7, 1.3), "saturation": (0.7, 1.3), "hue": (-0.04, 0.04)}
        steps = [A.HorizontalFlip(p=flip), A.VerticalFlip(p=vertical_flip), A.ColorJitter(**colours, p=photometric)]
        self.compose = A.Compose([warp, *steps], bbox_params=A.BboxParams("albumentations", clip=True))

    def __call__(self, sample: Sample, seed: int) -> tuple[NDArray[np.uint8], Arrays]:
        """Gives the changed image, uint8 (H, W, 3), and its target; the same for the same seed."""
        self.compose.set_random_seed(seed)
        target = dict(sample.target)
        height, width = sample.image.shape[:2]
        inputs: dict[str, Any] = {"image": sample.image, "bboxes": np.zeros((0, 6))}
        if "boxes" in target:
            corners = target["boxes"] / np.array([width, height] * 2, np.float64)
            inputs["bboxes"] = np.column_stack([corners, target["labels"], target["ignore"]])
        if "mask" in target:
            inputs["mask"] = target["mask"]
        result = self.compose(**inputs)
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
