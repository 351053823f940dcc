import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from mnv2det.data.images import decode_image, inside, list_images, read_image, read_sized
from mnv2det.errors import DataError

ORIENTATION = 0x0112


def encode(picture: Image.Image, kind: str, *, orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    stream = io.BytesIO()
    picture.save(stream, kind, exif=exif)
    return stream.getvalue()


def lying_png(width: int, height: int) -> bytes:
    """A header that claims a size, and a hundred bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def two_colours(size: tuple[int, int] = (40, 60)) -> Image.Image:
    """Red, with a blue left edge: which way is up can be told from it."""
    picture = Image.new("RGB", size[::-1], (200, 0, 0))
    picture.paste((0, 0, 200), (0, 0, 10, size[0]))
    return picture


def message(data: bytes) -> str:
    with pytest.raises(DataError) as error:
        decode_image(data, where="x.jpg")
    assert "\n" not in str(error.value)
    return str(error.value)


# what can be read


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_pixels_are_rgb_bytes(kind: str):
    image = decode_image(encode(two_colours(), kind), where="x")
    assert (image.shape, image.dtype) == ((40, 60, 3), np.uint8)
    assert image[20, 5].tolist() == [0, 0, 200]
    assert image[20, 50].tolist() == [200, 0, 0]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_other_pixel_formats_become_rgb_bytes(mode: str):
    picture = Image.new("I;16", (60, 40), 0x8000) if mode == "I;16" else two_colours().convert(mode)
    image = decode_image(encode(picture, "PNG"), where="x")
    assert (image.shape, image.dtype) == ((40, 60, 3), np.uint8)


def test_grey_is_the_same_in_all_channels():
    image = decode_image(encode(Image.new("L", (5, 5), 77), "PNG"), where="x")
    assert (image == 77).all()


def test_sixteen_bits_keep_the_upper_eight():
    _, data = cv2.imencode(".png", np.full((4, 4, 3), 0x8012, np.uint16))
    assert (decode_image(data.tobytes(), where="x") == 0x80).all()


def test_alpha_is_dropped():
    image = decode_image(encode(Image.new("RGBA", (4, 4), (10, 20, 30, 0)), "PNG"), where="x")
    assert image[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str):
    image = decode_image(encode(Image.new("RGB", (8, 8), (200, 40, 10)).convert("CMYK"), kind), where="x")
    np.testing.assert_allclose(image[4, 4], [200, 40, 10], atol=3)


def test_exif_rotation_is_applied():
    # 6: the camera was turned, show it a quarter clockwise: the left edge becomes the top one
    image = decode_image(encode(two_colours(), "JPEG", orientation=6), where="x")
    assert image.shape == (60, 40, 3)
    assert image[2, 20].argmax() == 2
    assert image[50, 20].argmax() == 0


def test_read_image_reads_a_file(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encode(two_colours(), "PNG"))
    assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(two_colours()))


# what cannot


def test_missing_file(tmp_path: Path):
    with pytest.raises(DataError) as error:
        read_image(tmp_path / "a.png")
    assert str(error.value) == f"{tmp_path}/a.png: cannot read the image (No such file or directory)"


def test_folder_is_no_image(tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot read the image \(Is a directory\)$"):
        read_image(tmp_path)


@pytest.mark.parametrize("name", ["a\0b.png", "a\ud800.png"])
def test_name_that_no_file_can_have(name: str):
    with pytest.raises(DataError, match="cannot read the image"):
        read_image(name)


def test_empty_file():
    assert message(b"") == "x.jpg: the image file is empty"


def test_file_that_is_no_image():
    assert message(b"<html>not found</html>") == "x.jpg: not an image, or a damaged one (22 bytes)"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_jpeg_is_refused_although_opencv_would_fill_it(share: float):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = encode(Image.fromarray(noise), "JPEG")
    data = whole[: int(len(whole) * share)]
    assert message(data) == f"x.jpg: truncated JPEG (no end-of-image marker in {len(data)} bytes)"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_png_is_refused(share: float):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = encode(Image.fromarray(noise), "PNG")
    data = whole[: int(len(whole) * share)]
    assert message(data) == f"x.jpg: truncated PNG (no IEND chunk in {len(data)} bytes)"
    assert decode_image(whole + bytes(500), where="x").shape == (64, 64, 3)


def test_padding_after_the_end_of_a_jpeg_is_harmless():
    assert decode_image(encode(two_colours(), "JPEG") + bytes(500), where="x").shape == (40, 60, 3)


@pytest.mark.parametrize("size", [50_000, 2**31 - 1])
def test_png_that_claims_to_be_huge_is_refused(size: int):
    found = message(lying_png(size, size))
    assert found.startswith("x.jpg: ")
    assert len(found) < 250


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP"]), st.data())
def test_any_damage_gives_an_image_or_a_data_error(kind: str, data: st.DataObject):
    content = bytearray(encode(two_colours((8, 12)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        # beyond the header, so that no size of gigabytes is claimed
        content[data.draw(st.integers(len(content) // 2, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(bytes(content[: data.draw(st.integers(1, len(content)))]), where="x")
    except DataError:
        return
    assert (image.ndim, image.shape[2], image.dtype) == (3, 3, np.uint8)


# stated sizes


def test_stated_size_that_fits(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encode(two_colours(), "PNG"))
    assert read_sized(tmp_path / "a.png", (40, 60)).shape == (40, 60, 3)


def test_stated_size_of_the_upright_picture(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(encode(two_colours(), "JPEG", orientation=6))
    image = read_sized(tmp_path / "a.jpg", (60, 40))
    assert image.shape == (60, 40, 3)
    assert image[2, 20].argmax() == 2


def test_stated_size_of_the_stored_pixels_leaves_rotation_out(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(encode(two_colours(), "JPEG", orientation=6))
    image = read_sized(tmp_path / "a.jpg", (40, 60))
    assert image.shape == (40, 60, 3)
    assert image[20, 2].argmax() == 2


def test_swapped_size_without_rotation_is_refused(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encode(two_colours(), "PNG"))
    with pytest.raises(DataError) as error:
        read_sized(tmp_path / "a.png", (60, 40))
    assert str(error.value) == f"{tmp_path}/a.png: image is 60x40, its annotation says 40x60"


# folders and paths


def test_pictures_are_listed_sorted_and_by_suffix(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for name in ("b.JPG", "a.png", "sub/c.webp", "notes.txt", "d.jpg.part"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == ["a.png", "b.JPG", "sub/c.webp"]


def test_hidden_files_and_folders_are_not_listed(tmp_path: Path):
    for name in ("a.png", "._a.png", ".thumbnails/a.png", "sub/@eaDir/a.png", "__MACOSX/a.png", "sub/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [tmp_path / "a.png", tmp_path / "sub/b.png"]
    # a hidden folder that is asked for is meant
    assert list_images(tmp_path / ".thumbnails") == [tmp_path / ".thumbnails/a.png"]


def test_folder_without_pictures(tmp_path: Path):
    with pytest.raises(DataError) as error:
        list_images(tmp_path)
    expected = f"{tmp_path}: no images in it (looked for .bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp)"
    assert str(error.value) == expected


def test_missing_folder(tmp_path: Path):
    with pytest.raises(DataError, match=r"/none: no such folder$"):
        list_images(tmp_path / "none")


@pytest.mark.parametrize("relative", ["a.jpg", "sub/a.jpg", "sub/../a.jpg", "./a.jpg", "..a.jpg", ""])
def test_paths_inside_are_joined(relative: str):
    path = inside(Path("/data/set"), relative, where="x")
    assert path == Path("/data/set") or Path("/data/set") in path.parents


@pytest.mark.parametrize("relative", ["..", "../a", "/data/set/a", "a/../../b", "../set2/a", "a\0"])
def test_paths_that_leave_are_refused(relative: str):
    with pytest.raises(DataError) as error:
        inside(Path("/data/set"), relative, where="x")
    assert str(error.value) == f"x: path {relative!r} leaves the data folder /data/set"


@pytest.mark.parametrize("root", [".", "..", "/", "data/", "../data"])
def test_any_root_may_be_given(root: str):
    assert inside(Path(root), "a/b", where="x") == Path(root) / "a" / "b"
    for outside in ("/etc", "..", "../x", "a/../../x"):
        with pytest.raises(DataError):
            inside(Path(root), outside, where="x")


def test_a_film_behind_the_picture_and_a_thumbnail_before_it_do_not_matter(tmp_path: Path):
    """Phones append films to photographs; a thumbnail's end marker is not the picture's."""
    whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))[1].tobytes()
    small = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    thumbnail = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    (tmp_path / "phone.jpg").write_bytes(whole[:2] + thumbnail + whole[2:] + bytes(5000))
    assert read_image(tmp_path / "phone.jpg").shape == (90, 70, 3)
    (tmp_path / "cut.jpg").write_bytes(whole[:2] + thumbnail + whole[2 : len(whole) * 2 // 3])
    with pytest.raises(DataError, match="truncated JPEG"):
        read_image(tmp_path / "cut.jpg")


def test_every_real_kind_of_jpeg_is_whole_and_every_cut_is_found(tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for options in (
        [],
        [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
        [cv2.IMWRITE_JPEG_RST_INTERVAL, 2],
        [cv2.IMWRITE_JPEG_QUALITY, 5],
    ):
        data = cv2.imencode(".jpg", image, options)[1].tobytes()
        assert decode_image(data, where="x").shape == (64, 64, 3)
        for end in range(3, len(data) - 1, max(1, len(data) // 97)):
            with pytest.raises(DataError, match="truncated JPEG"):
                decode_image(data[:end], where="x")
