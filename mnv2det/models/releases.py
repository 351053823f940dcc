"""Weights that their authors released, by name, and where they are kept once fetched. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from mnv2det.errors import WeightsError
from mnv2det.io import RunFolder, cache_folder
from mnv2det.version import __version__


class Release(NamedTuple):
    """A published file that becomes one of our weight files.

    Attributes:
        what: The network, its classes and what it is for.
        licence: Its authors'.
        url: Where they published it: a tar archive.
        size: Bytes of the archive.
        checksum: Of the archive: the name of the hash, a colon, and its hexadecimal digits.
        member: Path of the file in the archive that is converted.
        labels: Class names, as ``import-weights --labels`` takes them; None keeps the converter's.
    """

    what: str
    licence: str
    url: str
    size: int
    checksum: str
    member: str
    labels: str | None = None


# sizes and checksums are those that OpenVINO's Open Model Zoo states for the same files
RELEASES = {
    "coco": Release(
        "detector: SSDLite, COCO's 80 classes, 300x300; the authors' release",
        "Apache-2.0",
        "http://download.tensorflow.org/models/object_detection/ssdlite_mobilenet_v2_coco_2018_05_09.tar.gz",
        51_025_348,
        "sha256:542445cce834dbfbb7df1991425d475e85a2d7ec68c60a4f262bb18aac10c8b2",
        "ssdlite_mobilenet_v2_coco_2018_05_09/frozen_inference_graph.pb",
        "coco90",
    ),
    "voc_deeplab": Release(
        "segmenter: Mobile DeepLabv3, PASCAL VOC's 20 classes and background, 513x513; the authors' release",
        "Apache-2.0",
        "http://download.tensorflow.org/models/deeplabv3_mnv2_pascal_train_aug_2018_01_29.tar.gz",
        23_882_985,
        "sha384:d3f2b27bb00c485ca45d68731f7198a23926cb865dd010fc444bcad9158e33413cd60da2588a9be3ff1e8c9b4557362b",
        "deeplabv3_mnv2_pascal_train_aug/frozen_inference_graph.pb",
    ),
}


def is_release(source: str | os.PathLike[str]) -> bool:
    """Whether a source is one of `RELEASES`, and no file or run folder of this name."""
    return str(source) in RELEASES and not os.path.isfile(source) and not RunFolder(source).config.is_file()


def weights_folder() -> Path:
    """Where fetched files are kept."""
    return cache_folder() / "weights"


def archive_of(name: str) -> Path:
    """Where a release's archive is kept, or can be put by hand."""
    return weights_folder() / RELEASES[name].url.rpartition("/")[2]


def release_file(name: str) -> Path:
    """The weight file that a release became, which may not be there yet.

    It is named after the version of this package too, since a later one may convert in another way.
    """
    return weights_folder() / f"{name}-{__version__}.safetensors"


def fetched(name: str) -> Path:
    """The weight file of a release that was fetched before.

    Raises:
        WeightsError: It was not; says how to.
    """
    path = release_file(name)
    if not path.is_file():
        raise WeightsError(f"{name}: not on this machine yet; fetch it with: mnv2det weights get {name}")
    return path
