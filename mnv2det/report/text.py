"""Text on pictures: OpenCV's letters for Latin, the system's fonts for every other script."""

from __future__ import annotations

import functools
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

FONT = cv2.FONT_HERSHEY_SIMPLEX
EM = 30  # pixels of an em of the system's fonts beside OpenCV's letters of size 1
SMALLEST_EM = 12  # pixels; Chinese is not readable below
# The built-in letters of OpenCV 5 cover accents; those of OpenCV 4 are ASCII.
LAST_LATIN = "\u024f" if int(cv2.__version__.split(".")[0]) >= 5 else "\x7f"
OTHER_SCRIPT = re.compile(f"[^\0-{LAST_LATIN}]+(?:[ '.,_-]+[^\0-{LAST_LATIN}]+)*")
# Fonts with many scripts come first; what an installed font is not named after here is tried behind them.
PREFERRED = (
    "notosanscjk-regular", "notosans-regular", "dejavusans", "notosansarabic-regular", "notosanshebrew-regular",
    "wqy-", "droidsansfallback", "sourcehansans", "unifont", "arialunicode", "arial unicode", "pingfang",
    "hiragino sans gb", "msyh", "simhei", "malgun", "meiryo", "segoeui", "arial",
)  # fmt: skip
STYLED = re.compile("bold|italic|oblique|black|light|thin|condensed|mono|serif", re.IGNORECASE)
MOST_FONTS = 400  # files that are opened in the search for a character
NO_CHARACTER = "\U0010ffff"


def measure(text: str, size: float, pen: int) -> tuple[tuple[int, int], int]:
    """The room that a text takes.

    Args:
        text: A line of text in any script.
        size: Of OpenCV's letters; those of other fonts are made to fit.
        pen: Thickness of OpenCV's letters in pixels.

    Returns:
        Width and height above the baseline, and depth below it, in pixels; for Latin what `cv2.getTextSize` gives.
    """
    width, height, depth = 0, 0, 0
    for run, latin in _runs(text):
        if latin:
            (wide, high), deep = cv2.getTextSize(run, FONT, size, pen)
        else:
            font, drawable = _font_and_text(run, size)
            _, top, _, bottom = font.getbbox(drawable, anchor="ls")
            wide, high, deep = round(font.getlength(drawable)), round(-top), round(bottom)
        width, height, depth = width + wide, max(height, high), max(depth, deep)
    return (width, height), depth


def put(
    canvas: NDArray[np.uint8], text: str, origin: tuple[int, int], size: float, ink: Sequence[int], pen: int
) -> None:
    """Writes a text onto a picture, in place.

    Args:
        canvas: uint8 (H, W, 3), RGB.
        text: A line of text in any script.
        origin: (x, y) of the left end of the baseline in pixels.
        size: As in `measure`.
        ink: RGB.
        pen: As in `measure`.
    """
    x, y = origin
    for run, latin in _runs(text):
        if latin:
            cv2.putText(canvas, run, (x, y), FONT, size, ink, pen, cv2.LINE_AA)
            x += cv2.getTextSize(run, FONT, size, pen)[0][0]
        else:
            font, drawable = _font_and_text(run, size)
            _blend(canvas, drawable, font, (x, y), ink)
            x += round(font.getlength(drawable))


def font_note(names: Iterable[str]) -> str | None:
    """Says which characters of class names no font of this machine has, and what to install; None if there are none."""
    missing = "".join(sorted({c for name in names for run, latin in _runs(name) if not latin for c in _missing(run)}))
    if not missing:
        return None
    shown = f"{missing[:20]}{' ...' if len(missing) > 20 else ''}"
    cjk = any(unicodedata.name(c, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL")) for c in missing)
    packages = (
        "fonts-noto-cjk (Debian, Ubuntu) or google-noto-sans-cjk-fonts (Fedora)"
        if cjk
        else "fonts-noto-core (Debian, Ubuntu) or google-noto-sans-fonts (Fedora)"
    )
    return f"no font here has {shown} of the class names, a ? is drawn instead; install a font, such as {packages}"


def _runs(text: str) -> list[tuple[str, bool]]:
    """The text in pieces of one script each, with whether OpenCV's letters cover it; an empty text is Latin."""
    runs, end = [], 0
    for match in OTHER_SCRIPT.finditer(text):
        if match.start() > end:
            runs.append((text[end : match.start()], True))
        runs.append((match[0], False))
        end = match.end()
    if end < len(text) or not runs:
        runs.append((text[end:], True))
    return runs


def _blend(canvas: NDArray[np.uint8], text: str, font: Any, origin: tuple[int, int], ink: Sequence[int]) -> None:
    """Writes text in a font of the system onto the canvas, in place; what lies outside is cut off."""
    left, top, right, bottom = (round(side) for side in font.getbbox(text, anchor="ls"))
    if right <= left or bottom <= top:
        return
    letters = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(letters).text((-left, -top), text, fill=255, font=font, anchor="ls")
    x, y = origin[0] + left, origin[1] + top
    above, before = max(0, -y), max(0, -x)
    # a negative end would count from the other side
    region = canvas[y + above : max(0, y + letters.height), x + before : max(0, x + letters.width)]
    share = np.asarray(letters)[above:, before:][: region.shape[0], : region.shape[1], None] / 255
    region[:] = np.rint(region * (1 - share) + np.array(ink[:3]) * share)


def _font_and_text(run: str, size: float) -> tuple[Any, str]:
    """The font for a run, and the run with a ? in place of what the font does not have."""
    em = max(SMALLEST_EM, round(EM * size))
    path, missing = _best_font(frozenset(run))
    return _font(path, em), "".join("?" if character in missing else character for character in run)


def _missing(run: str) -> frozenset[str]:
    """Characters of a run that are not drawn."""
    return _best_font(frozenset(run))[1]


@functools.lru_cache(maxsize=4096)
def _best_font(characters: frozenset[str]) -> tuple[str | None, frozenset[str]]:
    """The first font that has all characters, or else the one that has most of them; and those that it lacks."""
    best: tuple[str | None, frozenset[str]] = (None, frozenset(c for c in characters if not _covers(None, c)))
    for path in _fonts():
        missing = frozenset(c for c in characters if not _covers(path, c))
        if len(missing) < len(best[1]):
            best = (path, missing)
        if not best[1]:
            break
    return best


@functools.cache
def _covers(path: str | None, character: str) -> bool:
    """Whether a font draws a character otherwise than one that no font has."""
    if character.isspace() or unicodedata.category(character) in ("Cf", "Mn"):
        return True
    font = _font(path, 24)
    try:
        return bytes(font.getmask(character)) != bytes(font.getmask(NO_CHARACTER))
    except (OSError, ValueError):
        return False


@functools.cache
def _font(path: str | None, em: int) -> Any:
    """A font at a size in pixels; None, or a file that is no font of any size, is Pillow's own."""
    try:
        return ImageFont.truetype(path, em) if path else ImageFont.load_default(em)
    except OSError:
        return ImageFont.load_default(em)


@functools.cache
def _fonts() -> list[str]:
    """Font files of this machine, those that have many scripts first."""
    files = [
        os.path.join(folder, name)
        for root in _font_folders()
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc", ".otc"))
    ]

    def order(path: str) -> tuple[int, bool, str]:
        name = os.path.basename(path).lower()
        rank = next((rank for rank, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED))
        return rank, STYLED.search(name) is not None, path

    return sorted(files, key=order)[:MOST_FONTS]


def _font_folders() -> list[Path]:
    """Where fontconfig, macOS and Windows keep fonts."""
    home = Path(os.path.expanduser("~"))
    shared = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    folders = [home / ".fonts", shared / "fonts", Path(sys.prefix, "share/fonts"), Path(sys.prefix, "fonts")]
    folders += [Path("/usr/share/fonts"), Path("/usr/local/share/fonts")]
    folders += [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    if windows := os.environ.get("WINDIR"):
        folders.append(Path(windows, "Fonts"))
    if local := os.environ.get("LOCALAPPDATA"):
        folders.append(Path(local, "Microsoft/Windows/Fonts"))
    return list(dict.fromkeys(folders))
