"""``weights``: fetches released weights by their names, once, and converts them."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from mnv2det.errors import WeightsError, near
from mnv2det.models.releases import RELEASES, Release, archive_of, fetched, is_release, release_file, weights_folder
from mnv2det.schema import NAMED_WEIGHTS, is_download

CHUNK = 2**18  # bytes
TRIES = 4
TIMEOUT = 30  # seconds without a byte
LARGEST_MEMBER = 2**29  # bytes
TORCHVISION_LICENCE = "BSD-3-Clause"


def provide(source: str | os.PathLike[str] | None, *, progress: bool = True) -> None:
    """Fetches what a source names, if it is a released file that is not on this machine yet.

    Args:
        source: What a user gave where weights are expected: a name, a file or folder, or None.
        progress: Whether to show how far a download is.

    Raises:
        WeightsError: It cannot be downloaded, is damaged, or cannot be converted.
    """
    if source is not None and is_release(source) and not release_file(str(source)).is_file():
        get_weights(str(source), progress=progress)


def get_weights(name: str, *, progress: bool = True) -> dict[str, Any]:
    """Downloads a release, checks it, converts it, and keeps it.

    An interrupted download is resumed. Several processes may ask for the same release: one fetches it, the others
    wait.

    Args:
        name: One of `RELEASES`, or a name of torchvision's weights as in ``model.weights``.
        progress: Whether to show how far the download is.

    Returns:
        ``name``, ``file`` (the weight file; None for torchvision's, which torch keeps), ``licence`` and ``checksum``
        (of the archive; None for torchvision's).

    Raises:
        WeightsError: There is no such name, it cannot be downloaded, is damaged, or cannot be converted.
    """
    if is_download(name):
        from mnv2det.models.loading import open_weights

        open_weights(name)
        return {"name": name, "file": None, "licence": TORCHVISION_LICENCE, "checksum": None}
    if name not in RELEASES:
        raise WeightsError(f"{name}: no weights of this name{near(name, [*RELEASES, *NAMED_WEIGHTS])}")
    release, archive, file = RELEASES[name], archive_of(name), release_file(name)
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{archive}.lock"):
            if not file.is_file():
                if not archive.is_file():
                    _download(name, release, archive, progress and sys.stderr is not None)
                _check(release, archive)
                _convert(name, release, archive, file)
    except OSError as error:
        raise WeightsError(f"{name}: cannot keep it ({error.filename or archive}: {error.strerror})") from None
    return {"name": name, "file": str(file), "licence": release.licence, "checksum": release.checksum}


def file_of(name: str) -> str:
    """The weight file of a name that was fetched before.

    Raises:
        WeightsError: There is no such name, or it was not fetched.
    """
    if is_download(name):
        from mnv2det.models.torchvision_weights import published

        file = published(name)[1]
        if not file.is_file():
            raise WeightsError(f"{name}: not on this machine yet; fetch it with: mnv2det weights get {name}")
        return str(file)
    if name not in RELEASES:
        raise WeightsError(f"{name}: no weights of this name{near(name, [*RELEASES, *NAMED_WEIGHTS])}")
    return str(fetched(name))


def list_weights() -> list[dict[str, Any]]:
    """All names, with ``what``, ``licence``, ``bytes``, ``url`` and whether they are ``here``."""
    from mnv2det.models.torchvision_weights import published

    rows = []
    for name in NAMED_WEIGHTS:
        member, file = published(name)
        row: dict[str, Any] = {"name": name, "what": "classifier: ImageNet's 1000 classes, 224x224; torchvision's"}
        row |= {"licence": TORCHVISION_LICENCE, "bytes": round(member.meta["_file_size"] * 2**20)}
        rows.append({**row, "url": member.url, "here": file.is_file()})
    rows += [
        {
            "name": name,
            "what": release.what,
            "licence": release.licence,
            "bytes": release.size,
            "url": release.url,
            "here": release_file(name).is_file(),
        }
        for name, release in RELEASES.items()
    ]
    return rows


def _download(name: str, release: Release, archive: Path, progress: bool) -> None:
    """Writes the archive, and resumes where an earlier attempt stopped."""
    part, reason = archive.with_name(f"{archive.name}.part"), ""
    with tqdm(total=release.size, desc=name, unit="B", unit_scale=True, delay=0.5, disable=not progress) as bar:
        for _ in range(TRIES):
            try:
                _fetch(release, part, bar)
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.reason}"
                if error.code < 500:
                    break  # it would be the same once more
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.filename is not None:
                    raise  # of the file here, not of the network
                reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
            else:
                reason = ""
                break
    if reason:
        raise WeightsError(
            f"{name}: download failed ({reason}); fetch {release.url} elsewhere and put it into {weights_folder()}"
        )
    os.replace(part, archive)


def _fetch(release: Release, part: Path, bar: tqdm[Any]) -> None:
    """Adds to the part of a download what is missing.

    Raises:
        OSError, HTTPException: The connection fails, or ends before the last byte.
    """
    start = part.stat().st_size if part.is_file() else 0
    if start >= release.size:
        # whole or not, its checksum will tell
        return
    request = urllib.request.Request(release.url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:
            start = 0  # the server sends all of it
        bar.n = start
        with open(part, "ab" if start else "wb") as file:
            while start < release.size and (chunk := response.read(min(CHUNK, release.size - start))):
                file.write(chunk)
                start += len(chunk)
                bar.update(len(chunk))
    if start < release.size:
        raise http.client.HTTPException(f"it ended after {start} of {release.size} bytes")


def _check(release: Release, archive: Path) -> None:
    """Checks the archive's size and checksum; a damaged one is removed."""
    kind, _, wanted = release.checksum.partition(":")
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found == wanted:
        return
    size = archive.stat().st_size
    archive.unlink()
    raise WeightsError(
        f"{archive}: damaged, now removed: {size} bytes with {kind} {found[:16]}..., expected {release.size} with"
        f" {wanted[:16]}..."
    )


def _convert(name: str, release: Release, archive: Path, file: Path) -> None:
    """Converts the one file of the archive that holds the weights."""
    from mnv2det.commands.import_weights import import_weights

    with tempfile.TemporaryDirectory(prefix="mnv2det-") as folder:
        graph = Path(folder, Path(release.member).name)
        try:
            with tarfile.open(archive) as tar:
                member = tar.getmember(release.member)
                content = tar.extractfile(member)
                if content is None or member.size > LARGEST_MEMBER:
                    raise WeightsError(f"{archive}: '{release.member}' is no file of a usual size")
                with open(graph, "wb") as target:
                    shutil.copyfileobj(content, target)
        except (tarfile.TarError, KeyError, EOFError) as error:
            raise WeightsError(f"{archive}: no '{release.member}' in it ({error})") from None
        provenance = {"url": release.url, "licence": release.licence, "archive": release.checksum}
        import_weights(graph, file, labels=release.labels, provenance=provenance, progress=False)
