"""Makes PASCAL VOC 2012's segmentation list ``trainaug`` and its masks from the SBD release.

Writes ``SegmentationClassAug/*.png`` and ``ImageSets/Segmentation/trainaug.txt`` into the VOC2012
folder: the images of VOC's own ``train`` list, with VOC's masks, and those of SBD (Hariharan et
al., Semantic Contours from Inverse Detectors, ICCV 2011) that are in neither ``train`` nor ``val``.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnv2det.data.images import DAMAGED
from mnv2det.data.masks import read_mask
from mnv2det.errors import DataError, Mnv2detError
from mnv2det.structures import IGNORE, VOC_MASK_CLASSES

MASKS, LISTS = "SegmentationClassAug", "ImageSets/Segmentation"
TRAINAUG = 10_582  # images, as in every published result with this list
MOST_BYTES = 2**26  # of one file in the archive; SBD's have some 10,000


def build(voc: Path, sbd: Path, *, expect: int = TRAINAUG, force: bool = False) -> int:
    """Writes the masks and the list.

    Args:
        voc: The VOC2012 folder.
        sbd: SBD's ``benchmark_RELEASE`` folder, or its archive, which is read but not unpacked.
        expect: How many images the list must have.
        force: Whether what an earlier run wrote is replaced.

    Returns:
        The number of images.

    Raises:
        DataError: Something is missing, damaged, of the wrong size or exists already. In that case nothing was
            written.
    """
    listed = voc / LISTS / "trainaug.txt"
    for path in (voc / MASKS, listed):
        if path.exists() and not force:
            raise DataError(f"{path}: is there already; --force replaces it")
    train, val = (_stems(voc / LISTS / f"{name}.txt") for name in ("train", "val"))
    if train & val:
        raise DataError(f"{voc}: image '{min(train & val)}' is in the train list and in the val list")
    work = Path(tempfile.mkdtemp(prefix=".trainaug-", dir=voc))
    try:
        new = work / MASKS
        new.mkdir()
        with tqdm(_masks(voc, sbd, train, val), desc="writing masks", unit="mask", disable=None, leave=False) as bar:
            for stem, mask in bar:
                _write(new / f"{stem}.png", mask, voc / "JPEGImages" / f"{stem}.jpg")
        stems = sorted(path.stem for path in new.iterdir())
        if len(stems) != expect:
            raise DataError(f"{sbd}: with VOC's train list it gives {len(stems)} images, expected {expect}")
        (work / listed.name).write_text("".join(f"{stem}\n" for stem in stems))
        if (voc / MASKS).exists():
            (voc / MASKS).rename(work / "old")
        new.rename(voc / MASKS)
        (work / listed.name).replace(listed)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return len(stems)


def _masks(voc: Path, sbd: Path, train: set[str], val: set[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for stem in sorted(train):
        yield stem, read_mask(voc / "SegmentationClass" / f"{stem}.png", len(VOC_MASK_CLASSES))
    seen: set[str] = set()
    for name, data in _release(sbd):
        stem = _checked(name, str(sbd))
        if stem in seen:
            raise DataError(f"{sbd}: cls/{stem}.mat occurs twice")
        seen.add(stem)
        if stem not in train and stem not in val:
            yield stem, _segmentation(data, f"{sbd}: cls/{stem}.mat")
    if not seen:
        raise DataError(f"{sbd}: no cls/*.mat in it; expected SBD's benchmark_RELEASE, folder or .tgz")


def _release(sbd: Path) -> Iterator[tuple[str, bytes]]:
    """Name without suffix, and content, of every mask file in the folder or archive."""
    if sbd.is_dir():
        folders = (sbd, sbd / "dataset", sbd / "benchmark_RELEASE" / "dataset")
        for path in sorted(path for folder in folders for path in folder.glob("cls/*.mat")):
            yield path.stem, path.read_bytes()
        return
    try:
        with tarfile.open(sbd) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not (member.isfile() and name.parent.name == "cls" and name.suffix == ".mat"):
                    continue
                if member.size > MOST_BYTES:
                    raise DataError(f"{sbd}: {member.name!a}: {member.size} bytes are no mask")
                content = archive.extractfile(member)
                yield name.stem, content.read() if content else b""
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{sbd}: cannot read SBD's release, folder or .tgz ({reason})") from None


def _segmentation(data: bytes, place: str) -> NDArray[np.uint8]:
    """The class ids in one of SBD's MATLAB files."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        content = loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=False)
        ids: NDArray[Any] = np.asarray(content["GTcls"].Segmentation)
        known = np.isin(ids, [*range(len(VOC_MASK_CLASSES)), IGNORE])
    except Exception as error:  # scipy raises many kinds on damaged files
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise DataError(f"{place}: no readable GTcls.Segmentation in it ({reason})") from None
    if ids.ndim != 2 or not known.all():
        wrong = (
            f"id {ids[~known].flat[0]} in {np.count_nonzero(~known)} pixels" if ids.ndim == 2 else f"shape {ids.shape}"
        )
        raise DataError(f"{place}: {wrong}; expected rows and columns of 0 ... {len(VOC_MASK_CLASSES) - 1} or 255")
    return ids.astype(np.uint8)


def _write(path: Path, mask: NDArray[np.uint8], image: Path) -> None:
    try:
        with Image.open(image) as picture:
            width, height = picture.size
    except DAMAGED as error:
        raise DataError(f"{image}: cannot read the image of mask '{path.stem}' ({str(error)[:80]})") from None
    if mask.shape != (height, width):
        raise DataError(f"{image}: the image is {width}x{height}, its mask {mask.shape[1]}x{mask.shape[0]}")
    colored = Image.fromarray(mask)
    colored.putpalette(_palette())
    colored.save(path)


def _palette() -> bytes:
    """VOC's colours: the bits of an id, three by three, from the top bits of red, green and blue on."""
    ids = np.arange(256)
    colors = [sum((ids >> 3 * bit + channel & 1) << 7 - bit for bit in range(8)) for channel in range(3)]
    return np.stack(colors, axis=1).astype(np.uint8).tobytes()


def _stems(path: Path) -> set[str]:
    try:
        stems = path.read_text("utf-8-sig").split()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read the image list ({getattr(error, 'strerror', '') or error})") from None
    return {_checked(stem, str(path)) for stem in stems}


def _checked(stem: str, place: str) -> str:
    if not re.fullmatch(r"\w+", stem):
        raise DataError(f"{place}: {stem[:80]!a} is no image name")
    return stem


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("``", "'"), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("voc", type=Path, metavar="VOC2012", help="such as datasets/VOCdevkit/VOC2012")
    parser.add_argument("sbd", type=Path, metavar="SBD", help="benchmark_RELEASE, or the archive benchmark.tgz itself")
    parser.add_argument(
        "--expect", type=int, default=TRAINAUG, metavar="N", help="images the list must have (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace what an earlier run wrote")
    given = parser.parse_args(arguments)
    try:
        count = build(given.voc, given.sbd, expect=given.expect, force=given.force)
    except (Mnv2detError, OSError) as error:
        print(f"voc_trainaug: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("voc_trainaug: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(f"{count} images: {given.voc / MASKS}, {given.voc / LISTS / 'trainaug.txt'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
