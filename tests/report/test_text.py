"""Text in any script on pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mnv2det.report import text as module
from mnv2det.report.draw import draw_boxes
from mnv2det.report.text import font_note, measure, put

WORDS = {"Cyrillic": "кошка", "Arabic": "قطة", "Hebrew": "חתול"}


@pytest.fixture
def dejavu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose only font has Cyrillic, Arabic and Hebrew, but no Chinese."""
    matplotlib = pytest.importorskip("matplotlib")
    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    monkeypatch.setattr(module, "_fonts", lambda: [str(font)])
    module._best_font.cache_clear()
    yield
    module._best_font.cache_clear()


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_fonts", lambda: [])
    module._best_font.cache_clear()
    yield
    module._best_font.cache_clear()


def written(text: str, size: float = 0.8, height: int = 60, width: int = 400) -> NDArray[np.uint8]:
    canvas = np.full((height, width, 3), 200, np.uint8)
    put(canvas, text, (10, 40), size, (0, 0, 0), 1)
    return canvas


@pytest.mark.parametrize("text", ["cat 0.95", "", "a_b-c d", "{}%"])
@pytest.mark.parametrize("size", [0.4, 1.2])
def test_latin_has_the_pixels_and_the_size_that_opencv_gives_it(text: str, size: float) -> None:
    canvas = np.full((60, 400, 3), 200, np.uint8)
    cv2.putText(canvas, text, (10, 40), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
    np.testing.assert_array_equal(written(text, size), canvas)
    assert measure(text, size, 1) == cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)


@pytest.mark.usefixtures("dejavu")
@pytest.mark.parametrize("script", WORDS)
def test_other_scripts_are_drawn_with_a_font_that_has_them(script: str) -> None:
    word = WORDS[script]
    assert font_note([word, "cat"]) is None
    drawn = written(word)
    assert (drawn < 100).sum() > 100
    # neither marks that stand for any letter, nor the same for every word
    for other in ("?" * len(word), word[0] * len(word), *(other for other in WORDS.values() if other != word)):
        assert (drawn != written(other)).any()


@pytest.mark.usefixtures("dejavu")
@pytest.mark.parametrize("text", ["кошка 0.95", "old кошка", "قطة кошка 2"])
def test_a_text_fills_the_room_it_is_measured_to_take(text: str) -> None:
    (width, height), depth = measure(text, 0.8, 1)
    rows, columns = np.nonzero((written(text) != 200).any(axis=2))
    assert columns.min() >= 10 - 2
    assert columns.max() <= 10 + width + 2
    assert columns.max() >= 10 + width - 8
    assert rows.min() >= 40 - height - 2
    assert rows.max() <= 40 + depth + 2


@pytest.mark.usefixtures("dejavu")
@pytest.mark.parametrize("origin", [(-30, 20), (390, 20), (10, -5), (10, 75), (500, 500)])
def test_what_lies_outside_the_picture_is_cut_off(origin: tuple[int, int]) -> None:
    canvas = np.full((60, 400, 3), 200, np.uint8)
    put(canvas, "кошка", origin, 0.8, (0, 0, 0), 1)
    whole = np.full((700, 1200, 3), 200, np.uint8)
    put(whole, "кошка", (origin[0] + 100, origin[1] + 100), 0.8, (0, 0, 0), 1)
    np.testing.assert_array_equal(canvas, whole[100:160, 100:500])


@pytest.mark.usefixtures("dejavu")
def test_characters_that_no_font_has_are_said_and_the_rest_is_drawn() -> None:
    note = font_note(["кошка", "\U00017000猫", "cat"])
    assert note is not None
    assert note.startswith("no font here has 猫")
    assert "fonts-noto-cjk" in note
    assert (written("猫кошка") != written("猫")).any()
    np.testing.assert_array_equal(written("猫"), written("犬"))


@pytest.mark.usefixtures("no_fonts")
def test_without_any_font_of_the_system_texts_are_still_drawn() -> None:
    assert "fonts-noto-core" in (font_note(["קטן"]) or "")
    assert (written("קטן") < 100).any()


@pytest.mark.usefixtures("dejavu")
def test_a_file_that_is_no_font_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ttf").write_bytes(b"no font")
    good = module._fonts()
    monkeypatch.setattr(module, "_fonts", lambda: [str(tmp_path / "a.ttf"), *good])
    module._best_font.cache_clear()
    assert font_note(WORDS.values()) is None


@pytest.mark.usefixtures("dejavu")
def test_labels_of_boxes_are_readable_in_any_script() -> None:
    image = np.full((240, 320, 3), 128, np.uint8)
    boxes, labels = np.array([[20.0, 60, 200, 200]]), np.array([0])
    drawn = [draw_boxes(image, boxes, labels, [name]) for name in ("кошка", "собак", "?????")]
    assert (drawn[0] != drawn[1]).any()
    assert (drawn[0] != drawn[2]).any()


def test_fonts_with_many_scripts_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "Zebra.ttf",
        "DejaVuSans.ttf",
        "NotoSansCJK-Regular.ttc",
        "DejaVuSans-Bold.ttf",
        "notes.txt",
        "Abc-Bold.otf",
    )
    for name in names:
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(module, "_font_folders", lambda: [tmp_path])
    found = [Path(path).name for path in module._fonts.__wrapped__()]
    assert found == [
        "NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "Zebra.ttf", "Abc-Bold.otf"
    ]  # fmt: skip
