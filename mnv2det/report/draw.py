"""Draws boxes and masks on pictures, confusion matrices, and grids of pictures; writes picture files."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mnv2det.errors import DataError
from mnv2det.report.text import measure, put
from mnv2det.structures import IGNORE, Detections

Image = NDArray[np.uint8]
Color = tuple[int, int, int]

SMALLEST_WITH_LEGEND = 96  # pixels of the shorter side
BLACK, GREY, WHITE = (0, 0, 0), (128, 128, 128), (255, 255, 255)
RIGHT, WRONG = (30, 90, 180), (200, 50, 30)  # colours of a confusion matrix on its diagonal and elsewhere
CELL = 36  # side of a confusion matrix's cell, in pixels


def color_of(label: int) -> Color:
    """RGB of a class. Neighbouring ids get distant hues, and every eight ids the next of three shades."""
    saturation, value = ((0.85, 1.0), (0.5, 1.0), (0.9, 0.65))[label // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, saturation, value)
    return int(red * 255), int(green * 255), int(blue * 255)


def draw_boxes(
    image: Image,
    boxes: NDArray[Any],
    labels: NDArray[Any],
    names: Sequence[str],
    *,
    scores: NDArray[Any] | None = None,
    text: bool = True,
) -> Image:
    """A copy of the image with boxes drawn on it.

    Args:
        image: uint8 (H, W, 3), RGB.
        boxes: (N, 4) xyxy in its pixels.
        labels: (N,).
        names: Class names.
        scores: (N,), written behind the names; None writes names alone.
        text: Whether names and scores are written.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    canvas = np.ascontiguousarray(image).copy()
    unit = _unit(image)
    size = 0.4 * unit
    # the best box comes last, so that it lies on top
    for number in range(len(boxes))[::-1]:
        color = color_of(int(labels[number]))
        x1, y1, x2, y2 = (round(float(value)) for value in boxes[number])
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, unit)
        if not text:
            continue
        label = names[int(labels[number])] + (f" {float(scores[number]):.2f}" if scores is not None else "")
        (width, height), base = measure(label, size, unit)
        # the text stays inside the image even if the box is at its top or right edge
        x, y = max(0, min(x1, image.shape[1] - width)), max(y1, height + base)
        cv2.rectangle(canvas, (x, y - height - base), (x + width, y), color, cv2.FILLED)
        ink = BLACK if sum(color) > 382 else WHITE
        put(canvas, label, (x, y - base // 2), size, ink, unit)
    return canvas


def draw_detections(image: Image, found: Detections, names: Sequence[str], *, threshold: float = 0.0) -> Image:
    """A copy of the image with those detections drawn on it that score at least ``threshold``."""
    kept = found.scores >= threshold
    return draw_boxes(
        image,
        found.boxes[kept].cpu().numpy(),
        found.labels[kept].cpu().numpy(),
        names,
        scores=found.scores[kept].cpu().numpy(),
    )


def draw_mask(
    image: Image, mask: NDArray[Any], names: Sequence[str], *, alpha: float = 0.5, legend: bool = True
) -> Image:
    """A copy of the image with every pixel tinted in the colour of its class.

    A class 0 called ``background`` is not drawn; class n then has the colour of boxes with label n - 1, which is the
    same class. Ignored pixels are hatched grey.

    Args:
        image: uint8 (H, W, 3), RGB.
        mask: (H, W) of integers, 0 ... K-1 or 255.
        names: Class names.
        alpha: Weight of the tint, 0 to 1.
        legend: Whether a legend in the upper left corner lists the classes and their shares of the pixels, largest
            first, as many as fit. A picture with a side below 96 pixels gets none.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        DataError: The mask has another size than the image, or a value without a name.
    """
    mask = _bytes(mask)
    if mask.shape != image.shape[:2]:
        raise DataError(f"a mask of shape {mask.shape} does not cover an image of {image.shape[:2]}")
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
    wrong = np.flatnonzero(counts[len(names) : IGNORE])
    if wrong.size:
        raise DataError(f"a mask has value {len(names) + wrong[0]}, but there are {len(names)} classes")
    first = int(len(names) > 0 and names[0] == "background")
    colors = np.array([color_of(label - first) for label in range(IGNORE)] + [GREY], np.uint8)
    drawn = np.arange(IGNORE + 1) >= first
    tinted = cv2.addWeighted(image, 1 - alpha, colors[mask], alpha, 0)
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    hatched = (rows + columns) // (3 * _unit(image)) % 2 == 0
    canvas = np.where((drawn[mask] & (hatched | (mask != IGNORE)))[..., None], tinted, image)
    if legend and min(mask.shape) >= SMALLEST_WITH_LEGEND:
        largest_first = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
        entries = [
            (
                "ignored" if label == IGNORE else names[label],
                float(counts[label] / mask.size),
                colors[label].tolist() if drawn[label] else None,
            )
            for label in largest_first
        ]
        _draw_legend(canvas, entries)
    return canvas


def title(image: Image, text: str) -> Image:
    """The image with a bar above it that holds a line of text."""
    bar = np.full((24, image.shape[1], 3), 255, np.uint8)
    put(bar, text, (6, 17), 0.5, BLACK, 1)
    return np.vstack([bar, image])


def grid(images: Sequence[Image], *, columns: int, gap: int = 4) -> Image:
    """Puts images into a grid, row by row; all cells have the size that the largest image needs."""
    height = max(image.shape[0] for image in images) + gap
    width = max(image.shape[1] for image in images) + gap
    rows = -(-len(images) // columns)
    canvas = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * height, number % columns * width
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def encode(image: Image, suffix: str) -> bytes:
    """The bytes of a picture file.

    Args:
        image: uint8 (H, W, 3), RGB.
        suffix: ``.jpg``, ``.png`` ...
    """
    done, data = cv2.imencode(suffix, image[:, :, ::-1])
    assert done
    return data.tobytes()


def draw_confusion(matrix: NDArray[Any], names: Sequence[str]) -> Image:
    """Draws a confusion matrix: for each true class, which share of it was predicted as which class.

    Cells are shaded by the square root of the share, blue on the diagonal and red elsewhere. Shares of half a percent
    and more are written into their cells, in percent. The row of a class that does not occur is grey.

    Args:
        matrix: (K, K) counts; rows are the truth, columns the prediction.
        names: Class names.

    Returns:
        uint8 (H, W, 3), RGB; 36 pixels per class and the names above and to the left.

    Raises:
        DataError: The matrix does not fit the names.
    """
    count = len(names)
    if matrix.shape != (count, count):
        raise DataError(f"a confusion matrix of shape {matrix.shape} does not fit {count} classes")
    total = matrix.sum(axis=1, keepdims=True)
    share = matrix / np.maximum(total, 1)
    shade = np.sqrt(share)  # a linear shade would hide rare confusions
    full = np.where(np.eye(count, dtype=np.bool_)[..., None], RIGHT, WRONG)
    shades = np.where(total[..., None] > 0, 255 + shade[..., None] * (full - 255), 220)
    table = shades.astype(np.uint8).repeat(CELL, axis=0).repeat(CELL, axis=1)
    table[::CELL], table[:, ::CELL] = 200, 200
    for row, column in np.argwhere(share >= 0.005).tolist():
        text = f"{100 * share[row, column]:.0f}"
        x = column * CELL + (CELL - _width(text, 0.4, 1)) // 2
        ink = WHITE if shade[row, column] > 0.6 else BLACK
        put(table, text, (x, row * CELL + 23), 0.4, ink, 1)
    axes = ["rows: truth", "columns: prediction", "in % of the truth"]
    short = [_fitted(name, "", 200, 0.4, 1) for name in names]
    width = 12 + max(_width(text, 0.4, 1) for text in [*axes, *short])
    corner = np.full((width, width, 3), 255, np.uint8)
    for number, text in enumerate(axes):
        put(corner, text, (6, 20 + 18 * number), 0.4, GREY, 1)
    beside, above = np.full((2, count * CELL, width, 3), 255, np.uint8)
    for number, text in enumerate(short):
        y = number * CELL + 23
        put(beside, text, (width - 6 - _width(text, 0.4, 1), y), 0.4, BLACK, 1)
        put(above, text, (6, y), 0.4, BLACK, 1)
    return np.vstack([np.hstack([corner, np.rot90(above)]), np.hstack([beside, table])])


def palette() -> NDArray[np.uint8]:
    """PASCAL VOC's colour of each mask value, uint8 (256, 3) RGB.

    The bits of a value, from the lowest up, become the bits of red, green and blue in turn, from the highest
    down (VOClabelcolormap.m).
    """
    colors = np.zeros((256, 3), np.uint8)
    value = np.arange(256, dtype=np.uint8)
    for bit in range(8):
        colors[:, bit % 3] |= (value >> bit & 1) << (7 - bit // 3)
    return colors


def encode_mask(mask: NDArray[Any]) -> bytes:
    """The bytes of a palette PNG, whose pixels are class ids shown in the colours of `palette`.

    Args:
        mask: (H, W) of integers, 0 ... 255.

    Raises:
        DataError: The array is not a mask.
    """
    import PIL.Image

    picture = PIL.Image.fromarray(_bytes(mask))
    picture.putpalette(palette().tobytes())
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def _unit(image: Image) -> int:
    """Thickness of lines in pixels, which also scales the text."""
    return max(1, round(min(image.shape[:2]) / 300))


def _bytes(mask: NDArray[Any]) -> Image:
    """Converts a mask to uint8 (H, W).

    Raises:
        DataError: The array is not a mask.
    """
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or mask.min(initial=0) < 0 or mask.max(initial=0) > 255:
        raise DataError(f"a mask holds integers from 0 to 255 in (H, W), got {mask.dtype} of shape {mask.shape}")
    return np.ascontiguousarray(mask, np.uint8)


def _draw_legend(canvas: Image, entries: Sequence[tuple[str, float, Sequence[int] | None]]) -> None:
    """Draws a legend into the upper left corner of the canvas, in place.

    Args:
        canvas: uint8 (H, W, 3), RGB.
        entries: Name, share of the pixels and colour of each class; a class that is not drawn has None as its colour.
    """
    size = max(0.4, min(canvas.shape[:2]) / 1000)
    pen = max(1, round(size))
    line = round(40 * size)
    gap = line // 4
    fitting = max(1, canvas.shape[0] * 2 // 3 // line)  # a third of the picture stays visible
    if len(entries) > fitting:
        hidden = entries[fitting - 1 :]
        entries = [*entries[: fitting - 1], (f"{len(hidden)} more", sum(share for _, share, _ in hidden), None)]
    room = canvas.shape[1] - line - 2 * gap
    texts = [
        _fitted(name, f" {share:.0%}" if share >= 0.005 else " <1%", room, size, pen) for name, share, _ in entries
    ]
    panel = canvas[: len(texts) * line + gap, : line + 2 * gap + max(_width(text, size, pen) for text in texts)]
    panel //= 6
    for number, (text, (_, _, color)) in enumerate(zip(texts, entries, strict=True)):
        x, y = gap, number * line + gap
        if color is not None:
            cv2.rectangle(canvas, (x, y), (line - 1, y + line - gap - 1), color, cv2.FILLED)
        put(canvas, text, (line + gap, y + round(0.6 * line)), size, WHITE, pen)


def _width(text: str, size: float, pen: int) -> int:
    """Width of a text in pixels."""
    return measure(text, size, pen)[0][0]


def _fitted(name: str, tail: str, width: int, size: float, pen: int) -> str:
    """Name and tail in one text; the name is shortened until both fit into ``width`` pixels."""
    length = len(name)
    while length > 1 and _width(_cut(name, length) + tail, size, pen) > width:
        length -= 1
    return _cut(name, length) + tail


def _cut(name: str, length: int) -> str:
    """A name shortened to ``length`` characters, the last of which is then a dot."""
    return name if len(name) <= length else name[: length - 1] + "."
