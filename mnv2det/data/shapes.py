"""A generated data set: coloured shapes on a textured background, with boxes and masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mnv2det.config import BadData
from mnv2det.data.dataset import Arrays, Dataset
from mnv2det.ranges import NonNegativeInt, PositiveInt, Share, check_order
from mnv2det.registry import DATASETS
from mnv2det.structures import Sample

NAMES = ("circle", "cross", "ring", "square", "triangle")
SPLITS = {"train": 0, "val": 1, "test": 2}
Side = Annotated[int, Field(ge=16, le=16384)]  # pixels
Scale = Annotated[float, Field(ge=0.02, le=1)]


def _check(args: Mapping[str, Any]) -> Iterator[str]:
    yield from check_order(args, "scale")
    if args["names"] not in (None, NAMES):
        yield f"names: its classes are {', '.join(NAMES)}; got {', '.join(args['names'])}"


@DATASETS.register("shapes", check=_check)
class Shapes(Dataset):
    """Every image is a pure function of (seed, split, index); nothing is stored.

    Later shapes lie over earlier ones. A box bounds the part of a shape that is still visible.

    Args:
        root: Not used: nothing is read.
        bad_data: Not used: no image is broken.
        split: ``train``, ``val`` or ``test``, which have no image in common.
        count: Number of images.
        size: (H, W) in pixels.
        seed: Another seed gives other images.
        most: An image has one shape to this many. If it is 1, the shape also gives the whole image its class.
        scale: Diameter of the smallest and the largest shape, relative to the image's shorter side.
        turn: Shapes are turned by up to this many degrees either way.
        min_visible: A shape of which a smaller share is visible counts as ``ignore``.
        names: Null, or the class list itself: the classes cannot be chosen.
    """

    def __init__(
        self,
        *,
        root: Path | None = None,
        bad_data: BadData = BadData.stop,
        split: Literal["train", "val", "test"] = "train",
        count: PositiveInt = 1000,
        size: tuple[Side, Side] = (192, 192),
        seed: NonNegativeInt = 0,
        most: PositiveInt = 6,
        scale: tuple[Scale, Scale] = (0.12, 0.5),
        turn: Annotated[float, Field(ge=0, le=180)] = 180.0,
        min_visible: Share = 0.3,
        names: tuple[str, ...] | None = None,
    ) -> None:
        self.split, self.count, self.size, self.seed = split, count, size, seed
        self.most, self.scale, self.turn, self.min_visible = most, scale, turn, min_visible
        self.classes = {"labels": list(NAMES), "mask": ["background", *NAMES]}
        if most == 1:
            self.classes["label"] = list(NAMES)
        self.problems = []

    def __len__(self) -> int:
        return self.count

    def image_id(self, index: int) -> int:
        """The index itself."""
        return index

    def target(self, index: int) -> Arrays:
        """See `Dataset.target`; has to draw the image."""
        return {key: value for key, value in self.read(index).target.items() if key != "mask"}

    def read(self, index: int) -> Sample:
        """See `Dataset.read`."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, SPLITS[self.split], index))
        image = _ground(rng, self.size)
        owner = np.full(self.size, -1, np.int16)
        labels, drawn = [], []
        for number in range(int(rng.integers(1, self.most + 1))):
            label = int(rng.integers(len(NAMES)))
            shape = _draw(rng, self.size, NAMES[label], self.scale, self.turn)
            owner[shape > 0] = number
            labels.append(label)
            drawn.append(int(np.count_nonzero(shape)))
            _paint(rng, image, shape)
        grain = rng.standard_normal((*self.size, 1), np.float32) * np.float32(rng.uniform(3, 12))
        target = self._annotate(owner, labels, drawn)
        if self.most == 1:
            target["label"] = np.array(labels[0], np.int64)
        return Sample(np.clip(image + grain, 0, 255).astype(np.uint8), target, index)

    def _annotate(self, owner: NDArray[np.int16], labels: list[int], drawn: list[int]) -> Arrays:
        """The target arrays.

        Args:
            owner: (H, W), number of the shape that each pixel shows, -1 for the background.
            labels: Class of each shape.
            drawn: Pixels that each shape had before others were drawn over it.
        """
        boxes, kept, ignore, area = [], [], [], []
        mask = np.zeros(self.size, np.uint8)
        for number, label in enumerate(labels):
            visible = owner == number
            ys, xs = np.nonzero(visible)
            if not len(ys):
                continue
            mask[visible] = label + 1
            boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            kept.append(label)
            ignore.append(len(ys) < self.min_visible * drawn[number])
            area.append(len(ys))
        return {
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "labels": np.array(kept, np.int64),
            "ignore": np.array(ignore, np.bool_),
            "area": np.array(area, np.float32),
            "mask": mask,
        }


def _ground(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """The background: two colours mixed by smooth noise, with stripes on top."""
    height, width = size
    coarse = int(rng.integers(2, 12))
    noise = cv2.resize(rng.random((coarse, coarse), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    angle, wave = rng.uniform(0, math.pi), rng.uniform(0.05, 0.5)
    across = np.arange(width, dtype=np.float32) * math.cos(angle)
    down = np.arange(height, dtype=np.float32) * math.sin(angle)
    stripes = np.sin((across[None] + down[:, None]) * wave) * rng.uniform(0, 0.3)
    first, second = rng.uniform(20, 235, (2, 3)).astype(np.float32)
    mix = np.clip(noise + stripes, 0, 1).astype(np.float32)[..., None]
    return first * mix + second * (1 - mix)


def _draw(
    rng: np.random.Generator, size: tuple[int, int], name: str, scale: tuple[float, float], turn: float
) -> NDArray[np.uint8]:
    """The mask of a shape that is turned and placed at random, with its centre inside the image."""
    height, width = size
    radius = min(size) * math.exp(rng.uniform(math.log(scale[0]), math.log(scale[1]))) / 2
    center = np.array(
        [rng.uniform(0.25 * radius, width - 0.25 * radius), rng.uniform(0.25 * radius, height - 0.25 * radius)]
    )
    angle = math.radians(rng.uniform(-turn, turn))
    mask = np.zeros(size, np.uint8)
    if name in ("circle", "ring"):
        axes = (radius, radius * rng.uniform(0.7, 1))
        middle = tuple(center.tolist())
        cv2.ellipse(mask, (middle, (2 * axes[0], 2 * axes[1]), math.degrees(angle)), 1, cv2.FILLED)
        if name == "ring":
            cv2.ellipse(mask, (middle, (axes[0], axes[1]), math.degrees(angle)), 0, cv2.FILLED)
        return mask
    corners = np.array(_OUTLINES[name]) * radius
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    cv2.fillPoly(mask, [np.round(corners @ rotation.T + center).astype(np.int32)], (1,))
    return mask


_ARM = 0.32
_OUTLINES = {
    "square": [(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)],
    "triangle": [(math.sin(a), -math.cos(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)],
    "cross": [
        *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
        *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
    ],
}


def _paint(rng: np.random.Generator, image: NDArray[np.float32], shape: NDArray[np.uint8]) -> None:
    """Fills the shape with a colour that differs from what it covers, and with a slight gradient of brightness."""
    ys, xs = np.nonzero(shape)
    if not len(ys):
        return
    under = image[ys, xs].mean(axis=0)
    color = rng.uniform(0, 255, 3)
    while np.abs(color - under).max() < 60:
        color = rng.uniform(0, 255, 3)
    slope = rng.uniform(-40, 40, 2) / shape.shape
    light = (ys - ys.mean()) * slope[0] + (xs - xs.mean()) * slope[1]
    image[ys, xs] = color + light[:, None]
