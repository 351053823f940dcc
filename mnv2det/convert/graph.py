"""What every reader of a foreign weight file yields: its operators in execution order, weights in torch's layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.errors import WeightsError


class DamagedError(Exception):
    """The file holds an offset, length or value that no intact file has."""


@dataclass(frozen=True)
class TensorInfo:
    """What a file states about one tensor.

    Attributes:
        index: Number of the tensor in the file; operators are connected by it.
        name: As in the file, at most 80 printable characters.
        shape: (N, H, W, C) for feature maps; -1 or 1 where the file leaves a size open, empty where the reader
            does not know it.
        kind: ``FLOAT32``, ``INT8`` ... or ``TYPE_<n>``.
        dtype: NumPy's name of that type, empty for one that the reader cannot decode.
        scale: float32 (1,) or (channels,); None if the tensor is not quantised.
        zero_point: int64 of the same length; None if the tensor is not quantised.
        axis: The axis that scales per channel run along.
        buffer: Number of the buffer in the file that holds the tensor's data.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    kind: str = "FLOAT32"
    dtype: str = "<f4"
    scale: NDArray[np.float32] | None = None
    zero_point: NDArray[np.int64] | None = None
    axis: int = 0
    buffer: int = 0


@dataclass
class Operator:
    """One operator of the network.

    Attributes:
        index: Position in the file's execution order. Operators that only unpack a constant are left out.
        kind: TFLite's name of the operator, whatever the format; for one that TFLite lacks, the file's own name,
            or ``OP_<n>``.
        inputs: The tensors it reads, without constants.
        outputs: The tensors it writes.
        weight: float32 in torch's layout: (out, in, kh, kw), depthwise (channels, 1, kh, kw), fully connected
            (out, in). None for an operator without weights.
        bias: float32 (out,), or None.
        attributes: ``stride``, ``dilation`` and ``filter`` as (vertical, horizontal); ``padding`` and
            ``activation`` as names (``SAME``, ``RELU6``, ``NONE`` ...). The readers document further ones.
        name: The operator's own name in the file, at most 80 printable characters; empty where it has none.
    """

    index: int
    kind: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    weight: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def display_name(self) -> str:
        """The operator's number, and its name if it has one, for messages."""
        return f"operator {self.index} '{self.name}'" if self.name else f"operator {self.index}"


@dataclass
class Graph:
    """A network as a foreign file states it.

    Attributes:
        operators: In execution order.
        inputs: The tensors that the network takes.
        outputs: The tensors that the network yields.
        format: What kind of file it was read from, for messages: ``a TFLite file``.
        source: Name of the file.
        sha256: Checksum of the file.
        parts: Further files that the network was read from, with their sha256.
    """

    operators: list[Operator]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    format: str
    source: str
    sha256: str
    parts: dict[str, str] = field(default_factory=dict)


def printable(text: str) -> str:
    """Shortens a name from a file to 80 characters and replaces control characters, so that it can be shown."""
    text = text[:80]
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


@contextmanager
def damage_located(place: str) -> Iterator[None]:
    """Puts the place, such as an operator's name, in front of the message of a `DamagedError` from the block."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(f"{place}: {error}") from None


def read_bounded(path: Path, limit: int, *, kind: str, hint: str = "") -> bytes:
    """Reads a whole file, unless it is larger than any intact file could be.

    Args:
        path: The file.
        limit: The largest size that is read, bytes.
        kind: What the file should be, for messages: ``TFLite file``.
        hint: What to say in addition where there is no such file.

    Raises:
        WeightsError: The file is missing, too large or cannot be read.
    """
    try:
        if not path.is_file():
            raise WeightsError(f"{path}: no such {kind}{hint}")
        if path.stat().st_size > limit:
            raise WeightsError(f"{path}: over {limit:,} bytes, too large for a {kind} of this family")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot read the {kind} ({getattr(error, 'strerror', error)})") from None
