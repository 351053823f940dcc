"""Pictures: what is drawn where, which words stand on it, and that files hold what was given."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from mnv2det.errors import DataError
from mnv2det.report.draw import color_of, draw_boxes, draw_confusion, draw_mask, encode_mask, palette

Image = NDArray[np.uint8]

NAMES = ["background", "cat", "dog"]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is put on a picture."""
    texts: list[str] = []
    original = cv2.putText

    def record(image: Any, text: str, *rest: Any) -> Any:
        texts.append(text)
        return original(image, text, *rest)

    monkeypatch.setattr(cv2, "putText", record)
    return texts


def photo(height: int = 240, width: int = 320) -> Image:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def halves(left: int, right: int, height: int = 240, width: int = 320) -> Image:
    """A mask of two classes side by side."""
    mask = np.full((height, width), left, np.uint8)
    mask[:, width // 2 :] = right
    return mask


def mixed(image: Image, color: tuple[int, int, int], alpha: float) -> NDArray[np.float64]:
    return (1 - alpha) * image + alpha * np.array(color)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_pixels_are_tinted_by_their_class(alpha: float) -> None:
    image, mask = photo(), halves(1, 2)
    drawn = draw_mask(image, mask, NAMES, alpha=alpha, legend=False)
    assert drawn.dtype == np.uint8
    # a thing has the colour of its boxes, whose labels do not count the background
    np.testing.assert_allclose(drawn[:, :160], mixed(image[:, :160], color_of(0), alpha), atol=1)
    np.testing.assert_allclose(drawn[:, 160:], mixed(image[:, 160:], color_of(1), alpha), atol=1)


def test_the_background_is_left_as_it_is() -> None:
    image = photo()
    drawn = draw_mask(image, halves(0, 1), NAMES, legend=False)
    np.testing.assert_array_equal(drawn[:, :160], image[:, :160])
    assert (drawn[:, 160:] != image[:, 160:]).any(axis=2).mean() > 0.95


def test_a_first_class_that_is_no_background_is_drawn() -> None:
    image = photo()
    drawn = draw_mask(image, halves(0, 1), ["sky", "road"], legend=False)
    np.testing.assert_allclose(drawn[:, :160], mixed(image[:, :160], color_of(0), 0.5), atol=1)
    np.testing.assert_allclose(drawn[:, 160:], mixed(image[:, 160:], color_of(1), 0.5), atol=1)


@pytest.mark.parametrize("names", [NAMES, ["sky", "road"]])
def test_ignored_pixels_are_hatched_grey(names: list[str]) -> None:
    image, mask = photo(), np.full((240, 320), 255, np.uint8)
    drawn = draw_mask(image, mask, names, legend=False)
    same = (drawn == image).all(axis=2)
    assert 0.4 < same.mean() < 0.6
    np.testing.assert_allclose(drawn[~same], mixed(image[~same], (128, 128, 128), 0.5), atol=1)


def test_drawing_leaves_its_image_and_mask_unchanged() -> None:
    image, mask = photo(), halves(1, 255)
    kept = image.copy(), mask.copy()
    draw_mask(image, mask, NAMES)
    draw_mask(image, mask, NAMES, alpha=0)
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(mask, kept[1])


def test_types_and_memory_order_do_not_matter() -> None:
    image, mask = photo(), halves(1, 255)
    wanted = draw_mask(image, mask, NAMES)
    np.testing.assert_array_equal(draw_mask(image, mask.astype(np.int64), NAMES), wanted)
    swapped = np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1]
    for other in (swapped, np.asfortranarray(image)):
        np.testing.assert_array_equal(draw_mask(other, np.asfortranarray(mask), NAMES), wanted)


def test_boxes_can_be_drawn_on_top() -> None:
    drawn = draw_mask(photo(), halves(1, 2), NAMES)
    boxes, labels = np.array([[200.0, 50, 300, 200]]), np.array([1])
    done = draw_boxes(drawn, boxes, labels, NAMES[1:], text=False)
    assert done.shape == drawn.shape
    assert tuple(done[100, 200]) == color_of(1)
    np.testing.assert_array_equal(done[60:190, 210:290], drawn[60:190, 210:290])


def test_the_legend_has_the_classes_that_are_there_largest_first(written: list[str]) -> None:
    mask = np.zeros((240, 320), np.uint8)
    mask[:, 80:] = 2  # three quarters
    mask[:60, :80] = 255  # a sixteenth
    mask[200, :5] = 1  # 5 pixels
    image = photo()
    drawn = draw_mask(image, mask, [*NAMES, "eel"])
    assert written == ["dog 75%", "background 19%", "ignored 6%", "cat <1%"]
    plain = draw_mask(image, mask, [*NAMES, "eel"], legend=False)
    rows, columns = np.nonzero((drawn != plain).any(axis=2))
    assert rows.max() < 240 / 2
    assert columns.max() < 320 / 2
    for color in (color_of(0), color_of(1), (128, 128, 128)):
        assert (drawn[: rows.max(), :20] == color).all(axis=2).sum() >= 50, f"no field of colour {color}"


def test_a_long_legend_stops_where_there_is_no_more_room(written: list[str]) -> None:
    mask = np.repeat(np.arange(150), 240 * 320 // 150).reshape(240, 320)
    mask[mask < 50] = 149  # 100 classes are left
    draw_mask(photo(), mask, [f"class{k}" for k in range(150)])
    shown = len(written) - 1
    assert 5 <= shown <= 15
    assert written[0] == "class149 34%"
    assert written[1:-1] == [f"class{k} 1%" for k in range(50, 50 + shown - 1)]
    assert written[-1] == f"{100 - shown} more {(100 - shown) / 150:.0%}"


@pytest.mark.parametrize(("height", "width"), [(96, 96), (96, 400), (400, 96), (240, 320), (1200, 1600), (2400, 900)])
def test_texts_fit_the_picture_and_grow_with_it(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def measure(
        image: Image, text: str, at: tuple[int, int], font: int, size: float, ink: Any, pen: int, *_: Any
    ) -> None:
        (text_width, text_height), _base = cv2.getTextSize(text, font, size, pen)
        assert at[0] + text_width <= image.shape[1]
        assert at[1] <= image.shape[0]
        sizes.append(text_height)

    monkeypatch.setattr(cv2, "putText", measure)
    names = ["background", "a class with a name longer than any sensible one", "dog"]
    draw_mask(photo(height, width), halves(1, 2, height, width), names)
    assert len(sizes) == 2
    assert min(sizes) >= max(8, 0.015 * min(height, width))


@pytest.mark.parametrize("shape", [(95, 300), (300, 95), (1, 1)])
def test_small_pictures_go_without_a_legend(shape: tuple[int, int], written: list[str]) -> None:
    drawn = draw_mask(photo(*shape), np.ones(shape, np.uint8), NAMES)
    np.testing.assert_array_equal(drawn, draw_mask(photo(*shape), np.ones(shape, np.uint8), NAMES, legend=False))
    assert written == []


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"mask of shape \(240, 320\) does not cover an image of \(100, 320\)"):
        draw_mask(photo(100), halves(0, 1), NAMES)
    with pytest.raises(DataError, match=r"^a mask has value 3, but there are 3 classes$"):
        draw_mask(photo(), halves(0, 3), NAMES)
    with pytest.raises(DataError, match="integers from 0 to 255"):
        draw_mask(photo(), halves(0, 1) * 1.0, NAMES)
    with pytest.raises(DataError, match="integers from 0 to 255"):
        draw_mask(photo(), halves(0, 1).astype(np.int64) - 1, NAMES)


def test_the_first_classes_have_different_colours() -> None:
    colors = np.array([color_of(label) for label in range(21)])
    apart = np.abs(colors[:, None] - colors[None]).max(axis=2) + 255 * np.eye(21)
    assert apart.min() > 25


def test_the_palette_is_vocs() -> None:
    colors = palette()
    assert colors.dtype == np.uint8
    assert colors.shape == (256, 3)
    # background, aeroplane, bicycle, bird, boat ... person, tvmonitor, and the border's
    wanted = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0)}
    wanted |= {15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {value: tuple(colors[value].tolist()) for value in wanted} == wanted
    assert len(np.unique(colors, axis=0)) == 256


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_a_mask_file_holds_the_mask(dtype: type) -> None:
    mask: NDArray[Any] = np.arange(256).astype(dtype).reshape(8, 32)
    picture = PIL.Image.open(io.BytesIO(encode_mask(mask)))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "P", (32, 8))
    np.testing.assert_array_equal(np.array(picture), mask)
    np.testing.assert_array_equal(np.array(picture.convert("RGB")), palette()[mask])


@pytest.mark.parametrize(
    "mask",
    [np.array([[256]]), np.array([[-1]]), np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.bool_)],
    ids=["above", "below", "float", "colours", "bool"],
)
def test_what_is_no_mask_is_not_written(mask: NDArray[Any]) -> None:
    with pytest.raises(DataError, match=r"^a mask holds integers from 0 to 255 in \(H, W\), got "):
        encode_mask(mask)


@pytest.mark.shared
def test_a_mask_of_voc_is_written_as_it_was(shared: Path) -> None:
    file = shared / "voc100" / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000063.png"
    original = PIL.Image.open(file)
    again = PIL.Image.open(io.BytesIO(encode_mask(np.array(original))))
    np.testing.assert_array_equal(np.array(again), np.array(original))
    assert again.getpalette() == original.getpalette() == palette().ravel().tolist()


def test_a_confusion_matrix_is_given_in_percent_of_its_rows(written: list[str]) -> None:
    picture = draw_confusion(np.array([[3, 1, 0], [0, 0, 0], [1, 1, 998]]), NAMES)
    assert picture.dtype == np.uint8
    numbers = [text for text in written if text.isdigit()]
    assert numbers == ["75", "25", "100"]  # .1 % is not worth a number
    assert [text for text in written if text in NAMES] == [name for name in NAMES for _ in range(2)]
    table = picture[-108:, -108:]
    corners = table[4::36, 4::36].astype(int)  # beside the numbers
    red, blue = corners[..., 0], corners[..., 2]
    assert blue[0, 0] > red[0, 0]
    assert blue[2, 2] > red[2, 2]
    assert red[0, 1] > blue[0, 1]
    assert corners[0, 2].tolist() == [255] * 3
    assert corners[1].tolist() == [[220] * 3] * 3
    assert corners[2, 2].sum() < corners[0, 0].sum()  # the darker, the more


@pytest.mark.parametrize("count", [1, 2, 21, 100])
def test_a_confusion_matrix_of_any_size_is_drawn_whole(count: int, written: list[str]) -> None:
    names = [f"a class with the number {k}" for k in range(count)]
    picture = draw_confusion(np.eye(count, dtype=np.int64) * 7, names)
    assert picture.shape[0] == picture.shape[1] >= 36 * count
    assert written.count("100") == count
    assert written.count(names[-1]) == 2


def test_a_confusion_matrix_of_other_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(2, 2\) does not fit 3 classes"):
        draw_confusion(np.eye(2), NAMES)
