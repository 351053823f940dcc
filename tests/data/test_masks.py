import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal
from PIL import Image
from pycocotools import mask as rle

from mnv2det.data.classes import mask_list
from mnv2det.data.masks import VOC_NAMES, Region, RegionTable, bounds, encode, read_mask
from mnv2det.errors import DataError
from mnv2det.structures import VOC_MASK_CLASSES

IDS = np.array([[0, 1, 2], [3, 255, 20]], np.uint8)
PALETTE = [value for color in range(256) for value in (255 - color, color, 7)]


def png(path: Path, depth: int, kind: int, rows: list[bytes]) -> Path:
    """A PNG of any bit depth, which Pillow could not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = len(rows[0]) * 8 // depth
    head = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def save(path: Path, ids: np.ndarray, *, palette: bool = False, **options: Any) -> Path:
    picture = Image.fromarray(ids)
    if palette:
        picture.putpalette(PALETTE)
    picture.save(path, **options)
    return path


def message(path: Path, classes: int = 21) -> str:
    with pytest.raises(DataError) as error:
        read_mask(path, classes)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


# pictures of class ids


@pytest.mark.parametrize("palette", [True, False])
def test_ids_are_read_as_stored(tmp_path: Path, palette: bool):
    mask = read_mask(save(tmp_path / "a.png", IDS, palette=palette), 21)
    assert mask.dtype == np.uint8
    assert_array_equal(mask, IDS)


def test_sixteen_bits_hold_ids_too(tmp_path: Path):
    assert_array_equal(read_mask(save(tmp_path / "a.png", IDS.astype(np.uint16)), 21), IDS)


def test_one_bit_is_class_0_and_1(tmp_path: Path):
    bits = np.array([[True, False, True]])
    mask = read_mask(save(tmp_path / "a.png", bits), 2)
    assert mask.dtype == np.uint8
    assert_array_equal(mask, bits)


@pytest.mark.parametrize("kind", [0, 3], ids=["grey", "palette"])
@pytest.mark.parametrize(("depth", "row", "ids"), [(2, b"\x1b", [0, 1, 2, 3]), (4, b"\x0f\x3a", [0, 15, 3, 10])])
def test_few_bits_are_not_spread_over_the_range(tmp_path: Path, kind: int, depth: int, row: bytes, ids: list[int]):
    path = tmp_path / "a.png"
    if kind == 0:
        png(path, depth, kind, [row])
    else:
        save(path, np.array([ids], np.uint8), palette=True, bits=depth)
        assert path.read_bytes()[24] == depth
    assert_array_equal(read_mask(path, 16), [ids])


def test_turned_mask_is_put_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored picture is to be turned right
    assert_array_equal(read_mask(save(tmp_path / "a.png", IDS, exif=exif), 21), np.rot90(IDS, -1))


def test_id_without_a_class_is_counted(tmp_path: Path):
    path = save(tmp_path / "a.png", np.array([[0, 1, 21, 21, 255]], np.uint8))
    assert message(path) == "class id 21 in 2 pixels; expected 0 ... 20, or 255 = ignore"
    path = save(path, np.array([[200, 30, 30, 30, 1]], np.uint8))
    assert message(path) == "class id 30 in 3 pixels (and 1 other such ids); expected 0 ... 20, or 255 = ignore"


def test_large_id_does_not_wrap_around(tmp_path: Path):
    path = save(tmp_path / "a.png", np.array([[256, 511]], np.uint16))
    assert message(path) == "class id 256 in 1 pixels (and 1 other such ids); expected 0 ... 20, or 255 = ignore"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_are_no_ids(tmp_path: Path, mode: str):
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    assert message(tmp_path / "a.png") == (
        f"colours ({mode}) where class ids are expected; write every pixel's class id, 0 ... 20 or 255,"
        " into a palette or grey PNG"
    )


def test_missing_mask(tmp_path: Path):
    assert message(tmp_path / "a.png") == "cannot read the mask (No such file or directory)"


def test_other_pictures_are_refused(tmp_path: Path):
    Image.new("L", (3, 2)).save(tmp_path / "a.png", "JPEG")
    assert message(tmp_path / "a.png").startswith("not a PNG, or a damaged one (cannot identify image file; ")


def test_truncated_mask_is_refused(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 21, (60, 80), np.uint8)
    data = save(tmp_path / "a.png", noise, palette=True).read_bytes()
    for length in range(0, len(data) - 40, 97):
        (tmp_path / "a.png").write_bytes(data[:length])
        assert message(tmp_path / "a.png").startswith("not a PNG, or a damaged one (")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(8, 400), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_damaged_mask_is_read_or_refused(tmp_path: Path, changes: list[tuple[int, int]], palette: bool):
    exif = Image.Exif()
    exif[0x0112] = 3
    data = bytearray(save(tmp_path / "a.png", np.tile(IDS, (20, 20)), palette=palette, exif=exif).read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    (tmp_path / "a.png").write_bytes(data)
    try:
        mask = read_mask(tmp_path / "a.png", 21)
    except DataError:
        return
    assert ((mask < 21) | (mask == 255)).all()


# class lists


def test_classes_must_fit_beside_255():
    names = [str(number) for number in range(256)]
    assert mask_list(names[:255], None, where="x") == (names[:255], [])
    issue = mask_list(names, None, where="x")[1][0]
    assert (issue.kind, issue.message) == ("class_broken", "x: 256 mask classes; at most 255 fit beside 255 = ignore")


def test_vocs_classes():
    assert (len(VOC_MASK_CLASSES), VOC_MASK_CLASSES[0], VOC_MASK_CLASSES[15]) == (21, "background", "person")
    assert set(VOC_NAMES.values()) < set(VOC_MASK_CLASSES)
    assert not set(VOC_NAMES) & set(VOC_MASK_CLASSES)


# segmentations

SIZE = (40, 60)
SQUARE = [10, 5, 20, 5, 20, 12, 10, 12]


def decoded(runs: bytes, size: tuple[int, int] = SIZE) -> np.ndarray:
    return rle.decode({"size": list(size), "counts": runs})


def lengths(pixels: np.ndarray) -> list[int]:
    """Uncompressed run lengths, the first one of zeros."""
    columns = np.concatenate([[0], pixels.flatten(order="F")])
    return np.diff(np.concatenate([[0], np.flatnonzero(np.diff(columns)), [columns.size - 1]])).tolist()


def test_polygons_of_an_object_are_joined():
    runs, area = encode([SQUARE, [30, 20, 40, 20, 40, 30, 30, 30]], SIZE)
    expected = np.zeros(SIZE, np.uint8)
    expected[5:12, 10:20] = expected[20:30, 30:40] = 1
    assert_array_equal(decoded(runs), expected)
    assert area == 170


def test_polygon_beyond_the_border_is_cut():
    runs, area = encode([[-30, -30, 90, -30, 90, 70, -30, 70]], SIZE)
    assert decoded(runs).all()
    assert area == 2400


@settings(max_examples=200, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.integers(0, 1)))
def test_both_kinds_of_run_lengths_are_the_same_pixels(pixels: np.ndarray):
    size = (pixels.shape[0], pixels.shape[1])
    packed = rle.encode(np.asfortranarray(pixels))["counts"]
    for counts in (packed.decode(), lengths(pixels)):
        runs, area = encode({"size": list(size), "counts": counts}, size)
        assert_array_equal(decoded(runs, size), pixels)
        assert area == pixels.sum()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=12))
def test_long_runs_are_counted(counts: list[int]):
    total = sum(counts) + 1
    size = (total, 1)
    packed = rle.frPyObjects({"size": list(size), "counts": [*counts, 1]}, *size)["counts"]
    assert encode({"size": list(size), "counts": packed.decode()}, size)[1] == sum([*counts, 1][1::2])


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "it has no polygon"),
        ([[]], "a polygon of 0 numbers; expected x and y of 3 points or more"),
        ([[1, 2, 3, 4]], "a polygon of 4 numbers; expected x and y of 3 points or more"),
        ([SQUARE, [1, 2, 3, 4, 5]], "a polygon of 5 numbers; expected x and y of 3 points or more"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers; expected x and y of 3 points or more"),
        ([[1, 2, 3, 4, 5, "6"]], "a polygon is no list of numbers"),
        ([[1, 2, 3, 4, 5, None]], "a polygon is no list of numbers"),
        ([[1, 2, 3, 4, 5, True]], "a polygon is no list of numbers"),
        ([1, 2, 3, 4, 5, 6], "a polygon is no list of numbers"),
        ([[[1, 2], [3, 4], [5, 6]]], "a polygon is no list of numbers"),
        ([[0, 0, 9, 9, 0, float("nan")]], "a polygon from nan to nan leaves the image far behind"),
        ([[0, 0, 9, 9, 0, float("inf")]], "a polygon from 0 to inf leaves the image far behind"),
        ([[0, 0, 9, 9, 0, 121]], "a polygon from 0 to 121 leaves the image far behind"),
        ([[0, 0, 9, 9, 0, -1e300]], "a polygon from -1e+300 to 9 leaves the image far behind"),
        ([[0, 0, 9, 9, 0, 10**400]], "int too large to convert to float"),
        ([[0, 0, 60, 0, 0, 40] * 30_000], "a polygon's outline is longer than 4000000 pixels"),
        (None, "'NoneType' object is not subscriptable"),
        ("polygon", "string indices must be integers, not 'str'"),
        ({"size": [40, 60]}, "'counts'"),
        ({"size": [60, 40], "counts": [2400]}, "its size [60, 40] is not the image's [40, 60]"),
        ({"size": [40, 60], "counts": []}, "its counts do not add up to the image"),
        ({"size": [40, 60], "counts": [2399]}, "its counts do not add up to the image"),
        ({"size": [40, 60], "counts": [2401, -1]}, "its counts do not add up to the image"),
        ({"size": [40, 60], "counts": [2**61] * 16}, "its counts do not add up to the image"),
        ({"size": [40, 60], "counts": [2400.0]}, "its counts are no whole numbers"),
        ({"size": [40, 60], "counts": [2400, True]}, "its counts are no whole numbers"),
        ({"size": [40, 60], "counts": [2**70]}, "its counts are no whole numbers"),
        ({"size": [40, 60], "counts": ""}, "its counts are no run lengths"),
        ({"size": [40, 60], "counts": "1o"}, "its counts are no run lengths"),
        ({"size": [40, 60], "counts": "~1"}, "its counts are no run lengths"),
        ({"size": [40, 60], "counts": "P" * 6 + "1"}, "its counts are no run lengths"),
        ({"size": [40, 60], "counts": "11"}, "its counts do not add up to the image"),
    ],
)
def test_malformed_segmentation_says_why(segmentation: Any, reason: str):
    with pytest.raises(DataError) as error:
        encode(segmentation, SIZE)
    expected = f"segmentation: not polygons or a run-length mask ({reason})"
    assert str(error.value) == expected


def test_image_too_large_for_run_lengths():
    with pytest.raises(DataError, match="an image of 60000x60000 is too large"):
        encode([SQUARE], (60_000, 60_000))


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
NUMBERS = st.lists(st.floats(-200, 200) | st.integers(-200, 200) | LEAF, max_size=9)
RUNS = st.fixed_dictionaries(
    {"size": st.just([40, 60]) | NUMBERS, "counts": st.text("0123456789:;<=>?@noPQ`a", max_size=9) | NUMBERS | LEAF}
)


@settings(max_examples=400, deadline=None)
@given(st.lists(NUMBERS, max_size=3) | RUNS | LEAF)
def test_any_segmentation_is_pixels_or_refused(segmentation: Any):
    for look in (bounds, encode):
        try:
            found = look(segmentation, SIZE)
        except DataError:
            continue
        if look is encode:
            assert decoded(found[0]).sum() == found[1]
        else:
            assert np.isfinite(found).all()


def test_bounds_of_polygons_and_runs():
    assert bounds([SQUARE, [30, 20, 40, 25, 35, 30]], SIZE) == [10, 5, 30, 25]
    runs = encode([SQUARE], SIZE)[0].decode()
    assert bounds({"size": [40, 60], "counts": runs}, SIZE) == [10, 5, 10, 7]
    for far in (float("inf"), 1e308):
        with pytest.raises(DataError, match="not finite"):
            bounds([[-far, 0, far, 0, 0, far]], SIZE)


# painting


def region(box: tuple[int, int, int, int], *, image: int = 0, id: int = 1, crowd: bool = False) -> Region:
    x1, y1, x2, y2 = box
    runs, pixels = encode([[x1, y1, x2, y1, x2, y2, x1, y2]], SIZE)
    return Region(image, id, crowd, runs, pixels)


def test_small_objects_lie_on_large_ones_whatever_their_order():
    small, large = region((10, 10, 20, 20), id=1), region((5, 5, 30, 30), id=2)
    expected = np.zeros(SIZE, np.uint8)
    expected[5:30, 5:30], expected[10:20, 10:20] = 2, 1
    for regions in ([small, large], [large, small]):
        assert_array_equal(RegionTable(regions, 1).paint(0, SIZE), expected)


def test_crowd_is_ignored_where_no_object_lies():
    # the crowd is smaller than one object and larger than the other
    crowd, large, small = region((0, 0, 20, 20), crowd=True), region((10, 0, 60, 40), id=3), region((0, 0, 5, 5), id=4)
    expected = np.zeros(SIZE, np.uint8)
    expected[:20, :20], expected[:, 10:], expected[:5, :5] = 255, 3, 4
    for regions in ([crowd, large, small], [small, large, crowd]):
        assert_array_equal(RegionTable(regions, 1).paint(0, SIZE), expected)


def test_every_image_gets_its_own_regions():
    regions = [
        region((0, 0, 5, 5), image=2, id=1),
        region((0, 0, 9, 9), image=0, id=2),
        region((9, 9, 12, 12), image=2),
    ]
    table = RegionTable(regions, 4)
    assert [int((table.paint(index, SIZE) > 0).sum()) for index in range(4)] == [81, 0, 34, 0]
    assert table.paint(0, SIZE).flags.c_contiguous


def test_no_regions_at_all_is_all_background():
    assert not RegionTable([], 2).paint(1, SIZE).any()


def test_regions_are_flat_arrays():
    table = RegionTable([region((0, 0, 5, 5))] * 3, 1)
    assert all(isinstance(value, np.ndarray) and value.dtype != object for value in vars(table).values())
