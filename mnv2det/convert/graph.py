"""The list that every reader of a foreign file gives: operators in execution order, weights in torch's layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


class DamagedError(Exception):
    """An offset, length or value that no sound file has."""


@dataclass(frozen=True)
class TensorInfo:
    """What the file says of one tensor.

    Attributes:
        index: In the file; operators are connected by it.
        name: As in the file, at most 80 printable characters.
        shape: (N, H, W, C) for feature maps; -1 or 1 where the file leaves a size open, empty
            where the reader does not know.
        kind: ``FLOAT32``, ``INT8`` ... or ``TYPE_<n>``.
        dtype: NumPy's name of it, empty for one this reader cannot decode.
        scale: float32 (1,) or (channels,), None if not quantised.
        zero_point: int64 of the same length, None if not quantised.
        axis: The axis of per-channel scales.
        buffer: Of its data in the file.
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
    """One step of the network.

    Attributes:
        index: In the file's execution order; steps that only unpack a constant are left out.
        kind: TFLite's name, whichever the file; for one that TFLite lacks the file's own name in
            capitals, or ``OP_<n>``.
        inputs: Tensors it computes from (constants excluded).
        outputs: Tensors it computes.
        weight: float32 in torch's layout: (out, in, kh, kw), depthwise (channels, 1, kh, kw),
            fully connected (out, in); None for operators without.
        bias: float32 (out,), or None.
        attributes: ``stride``, ``dilation``, ``filter`` as (vertical, horizontal) ints; ``padding``
            and ``activation`` as names (``SAME``, ``RELU6``, ``NONE`` ...); others as the reader says.
        name: The file's own of this step, at most 80 printable characters; empty where it has none.
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
    def place(self) -> str:
        """Number, and name if it has one, for messages."""
        return f"operator {self.index} '{self.name}'" if self.name else f"operator {self.index}"


@dataclass
class Graph:
    """A network: its operators in execution order, what it takes and what it gives.

    Attributes:
        sha256: Of the file.
        parts: Further files it was read from, to their sha256.
    """

    operators: list[Operator]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    sha256: str
    parts: dict[str, str] = field(default_factory=dict)


def printable(text: str) -> str:
    """A name from a file, fit to be shown: at most 80 characters, none of them a control character."""
    text = text[:80]
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)
