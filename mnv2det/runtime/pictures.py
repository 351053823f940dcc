"""What a predictor takes for a picture: files, their bytes, Pillow's pictures, arrays and tensors."""

from __future__ import annotations

import os
import warnings
from typing import Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps
from torch import Tensor

from mnv2det.data.images import DAMAGED, decode_image, read_image
from mnv2det.errors import ConfigError, DataError

Pixels = NDArray[np.uint8]
Picture = str | os.PathLike[str] | bytes | PIL.Image.Image | Pixels | Tensor
Channels = Literal["rgb", "bgr"]

EXPECTED = "expected uint8 (H, W, 3), RGB, or grey (H, W)"


def load(picture: Picture, channels: Channels = "rgb") -> Pixels:
    """Turns any kind of picture into pixels.

    Args:
        picture: A path, the bytes of a picture file, a picture of Pillow's, a NumPy array uint8 (H, W, 3), or grey
            (H, W) or (H, W, 1), or a tensor uint8 of one of these shapes or with its channels first, (3, H, W) or
            (1, H, W). A tensor whose shape can be read both ways has its channels last.
        channels: The order of the channels in an array or tensor: ``bgr`` is OpenCV's. Files and Pillow's pictures
            say themselves what they hold.

    Returns:
        uint8 (H, W, 3), RGB. EXIF rotation is applied to files and to Pillow's pictures; alpha is dropped.

    Raises:
        ConfigError: There is no such order of channels.
        DataError: It cannot be read, is no picture, or is an array of another type or shape.
    """
    if channels not in ("rgb", "bgr"):
        raise ConfigError(f"channels: expected rgb or bgr, got {channels!r}")
    if isinstance(picture, np.ndarray):
        return _from_array(picture, channels, "array")
    if isinstance(picture, Tensor):
        return _from_tensor(picture, channels)
    if isinstance(picture, bytes | bytearray | memoryview):
        return decode_image(bytes(picture), where=f"picture of {len(picture)} bytes")
    if isinstance(picture, PIL.Image.Image):
        return _from_pillow(picture)
    if not isinstance(picture, str | os.PathLike):
        kinds = "a path, bytes, a picture of Pillow's, an array or a tensor"
        raise DataError(f"picture: expected {kinds}, got {type(picture).__name__}")
    return read_image(picture)


def _from_array(array: NDArray[np.generic], channels: Channels, kind: str) -> Pixels:
    shape = array.shape
    grey = array.ndim == 2 or (array.ndim == 3 and shape[2] == 1)
    if array.dtype != np.uint8 or 0 in shape or not (grey or (array.ndim == 3 and shape[2] == 3)):
        raise DataError(f"{kind} of {array.dtype} {tuple(shape)}: {EXPECTED}{_advice(array)}")
    pixels: Pixels = array  # type: ignore[assignment]
    if grey:
        return np.repeat(pixels.reshape(*shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if channels == "bgr" else pixels


def _advice(array: NDArray[np.generic]) -> str:
    """What probably has to be done with an array that is refused."""
    shape = array.shape
    if array.dtype.kind == "f":
        return "; turn numbers from 0 to 1 into pixels by (255 * picture).round() and uint8"
    if array.ndim == 4:
        return "; of several pictures give a list"
    if array.ndim == 3 and shape[2] == 4:
        return "; drop the alpha channel: picture[:, :, :3]"
    if array.ndim == 3 and shape[0] == 3:
        return "; move the channels to the end: picture.transpose(1, 2, 0)"
    return ""


def _from_tensor(tensor: Tensor, channels: Channels) -> Pixels:
    channels_first = tensor.ndim == 3 and tensor.shape[0] in (1, 3) and tensor.shape[2] not in (1, 3)
    moved = tensor.permute(1, 2, 0) if channels_first else tensor
    # NumPy has no bfloat16; only the name of the type is needed then
    array = (moved if moved.dtype.itemsize == 1 else moved.float()).detach().cpu().numpy()
    if array.dtype != np.uint8:
        advice = _advice(array) if tensor.is_floating_point() else ""
        raise DataError(
            f"tensor of {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}: {EXPECTED}, or with the"
            f" channels first{advice}"
        )
    return _from_array(array, channels, "tensor")


def _from_pillow(picture: PIL.Image.Image) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transparency in a palette, which is dropped as any alpha is
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I;16"):
                # the upper eight bits, as of files; Pillow would cut off what lies above 255
                return _from_array((np.asarray(upright) >> 8).astype(np.uint8), "rgb", "picture")
            if upright.mode in ("I", "F"):
                raise DataError(f"picture of Pillow's mode {upright.mode}: expected one of 8 or 16 bits, such as RGB")
            pixels = np.array(upright.convert("RGB"))
    except DAMAGED as error:
        raise DataError(f"picture of Pillow's: cannot be read ({' '.join(str(error).split())[:120]})") from None
    return _from_array(pixels, "rgb", "picture")
