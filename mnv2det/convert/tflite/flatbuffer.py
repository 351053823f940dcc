"""Bounds-checked access to a flatbuffer: tables that point at their fields by offset.

Every offset and length is checked before it is followed. Nothing is copied.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.convert.graph import DamagedError


def scalar(data: bytes, at: int, code: str) -> Any:
    """Reads one little-endian number.

    Args:
        data: The file.
        at: Position of its first byte.
        code: Its type, as in `struct`.

    Raises:
        DamagedError: It lies outside the data.
    """
    try:
        if at >= 0:  # struct takes a negative position for one from the end
            return struct.unpack_from("<" + code, data, at)[0]
    except struct.error:
        pass
    raise DamagedError(f"points at byte {at}, but there are {len(data)}")


class Table:
    """One flatbuffer table. Fields are counted from 0 in the order of the schema."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self.fields = at - scalar(data, at, "i")  # where the offsets of the fields stand
        self.size = scalar(data, self.fields, "H")

    def place(self, number: int) -> int:
        """Position of a field's value, 0 if the table leaves it out."""
        slot = 4 + 2 * number
        offset = scalar(self.data, self.fields + slot, "H") if slot + 2 <= self.size else 0
        return self.at + offset if offset else 0

    def scalar(self, number: int, code: str, default: float = 0) -> Any:
        """A field that is a number, ``default`` if the table leaves it out."""
        at = self.place(number)
        return scalar(self.data, at, code) if at else default

    def table(self, number: int) -> Table | None:
        """A field that is a table, None if this one leaves it out."""
        at = self.place(number)
        return Table(self.data, at + scalar(self.data, at, "I")) if at else None

    def vector(self, number: int, dtype: str) -> NDArray[Any]:
        """A view of a field's numbers, empty if the table leaves it out."""
        at = self.place(number)
        if not at:
            return np.zeros(0, dtype)
        at += scalar(self.data, at, "I")
        count = scalar(self.data, at, "I")
        if at + 4 + count * np.dtype(dtype).itemsize > len(self.data):
            raise DamagedError(f"a vector of {count} elements at byte {at} runs past the end at {len(self.data)}")
        return np.frombuffer(self.data, dtype, count, at + 4) if count else np.zeros(0, dtype)

    def places(self, number: int, most: int) -> list[int]:
        """Positions of the tables in a vector of tables."""
        offsets = self.vector(number, "<u4")
        if len(offsets) > most:
            raise DamagedError(f"{len(offsets)} tables in one vector, at most {most} are believable")
        at = self.place(number)
        start = at + scalar(self.data, at, "I") + 4 if at else 0
        return [start + 4 * number + int(offset) for number, offset in enumerate(offsets)]
