import hashlib

import cv2
import numpy as np
import pytest
from check_tools import jpeg, picture

from mnv2det.data import duplicates
from mnv2det.data.duplicates import NEAR, Fingerprint, Fingerprints, fingerprint_of, matches


def look(image: np.ndarray, name: str = "") -> Fingerprint:
    return fingerprint_of(image, name.encode() or hashlib.md5(image.tobytes()).digest())


def again(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg(image, quality), np.uint8), cv2.IMREAD_COLOR_RGB)


def photo(seed: int, size: tuple[int, int] = (240, 320)) -> np.ndarray:
    grain = np.random.default_rng(seed).normal(0, 6, (*size, 1))
    return np.clip(picture(seed, size) + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: again(image, 30),
        lambda image: cv2.resize(image, (160, 120), interpolation=cv2.INTER_AREA),
        lambda image: cv2.resize(image, (416, 416)),
        lambda image: cv2.add(image, (6, 6, 6, 0)),
        lambda image: again(cv2.resize(image, (500, 375)), 80),
    ],
    ids=["quality", "half", "square", "brighter", "both"],
)
def test_the_same_picture_encoded_again_is_found(change):
    images = [photo(seed) for seed in range(12)]
    rows, columns = (
        Fingerprints([look(change(image)) for image in images]),
        Fingerprints([look(image) for image in images]),
    )
    assert matches(rows, columns).tolist() == list(range(12))


def test_different_pictures_are_not_found():
    looks = Fingerprints([look(photo(seed)) for seed in range(60)])
    assert (matches(looks) == -1).all()
    assert (matches(looks, tolerance=NEAR) == -1).all()


def test_a_second_exposure_is_near_but_not_the_same():
    image = photo(3)
    moved = np.roll(image, 2, axis=1)
    rows, columns = Fingerprints([look(moved)]), Fingerprints([look(photo(9)), look(image)])
    assert matches(rows, columns).tolist() == [-1]
    assert matches(rows, columns, NEAR).tolist() == [1]


def flats() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    # black, grey, white, and dark frames of a camera: noise alone
    plain = [np.full((50, 70, 3), value, np.uint8) for value in (0, 90, 255)]
    return plain + [rng.integers(0, 9, (50, 70, 3), dtype=np.uint8) for _ in range(6)]


def test_flat_and_dark_pictures_are_no_false_alarm():
    looks = Fingerprints([look(image, str(number)) for number, image in enumerate(flats())])
    assert (matches(looks) == -1).all()
    assert (matches(looks, Fingerprints([look(flats()[1], "other file")])) == -1).all()


def test_dark_pictures_are_told_apart_by_what_they_show():
    dark = [(photo(seed) // 8).astype(np.uint8) for seed in range(8)]
    looks = Fingerprints([look(image) for image in dark])
    assert (matches(looks) == -1).all()
    assert matches(looks, looks).tolist() == list(range(8))


def test_equal_files_match_even_if_flat():
    looks = Fingerprints([look(flats()[0], "a"), look(flats()[1], "b"), look(flats()[0], "a")])
    assert matches(looks).tolist() == [-1, -1, 0]


def test_colours_tell_pictures_of_one_shape_apart():
    red, blue = (np.full((60, 60, 3), 200, np.uint8) for _ in range(2))
    red[15:45, 15:45] = (180, 40, 40)
    blue[15:45, 15:45] = (40, 40, 180)
    assert matches(Fingerprints([look(red)]), Fingerprints([look(blue)])).tolist() == [-1]


def test_unreadable_pictures_match_nothing():
    looks = Fingerprints([None, look(photo(1)), None])
    assert matches(looks).tolist() == [-1, -1, -1]
    assert matches(looks, looks).tolist() == [-1, 1, -1]


def test_nothing_to_compare():
    some = Fingerprints([look(photo(1))])
    assert matches(Fingerprints([])).tolist() == []
    assert matches(some, Fingerprints([])).tolist() == [-1]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 2, 2), (7, 5, 64)])
def test_blocks_do_not_change_what_is_found(monkeypatch, sizes: tuple[int, int, int]):
    rng = np.random.default_rng(5)
    images = [photo(int(seed)) for seed in rng.integers(0, 9, 30)]
    looks = Fingerprints([look(again(image, 60 + number), str(number)) for number, image in enumerate(images)])
    expected = [next((j for j in range(i) if (images[j] == images[i]).all()), -1) for i in range(30)]
    for name, value in zip(("ROWS", "COLUMNS", "PAIRS"), sizes, strict=True):
        monkeypatch.setattr(duplicates, name, value)
    assert matches(looks).tolist() == expected
    others = Fingerprints([look(image, f"other {number}") for number, image in enumerate(images)])
    assert matches(others, looks).tolist() == [j if j >= 0 else i for i, j in enumerate(expected)]


def test_mean_brightness_is_no_part_of_the_hash():
    image = photo(4) // 2
    assert look(image).hash == look(image + 50).hash
    assert 0 < look(image).hash < 2**63
