"""Bounds-checked access to a flatbuffer, whose tables point at their fields by offset.

Every offset and length is checked before it is followed. Nothing is copied.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.convert.graph import DamagedError


def read_scalar(data: bytes, position: int, code: str) -> Any:
    """Reads one little-endian number.

    Args:
        data: The file.
        position: Of the number's first byte.
        code: Type of the number, as in `struct`.

    Raises:
        DamagedError: It lies outside the data.
    """
    try:
        if position >= 0:  # struct counts a negative position from the end
            return struct.unpack_from("<" + code, data, position)[0]
    except struct.error:
        pass
    raise DamagedError(f"points at byte {position}, but there are {len(data)}")


class Table:
    """One flatbuffer table; its fields are numbered from 0 in the order of the schema.

    Args:
        data: The file.
        position: Of the table in it.
    """

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position
        self.vtable = position - read_scalar(data, position, "i")
        self.vtable_size = read_scalar(data, self.vtable, "H")

    def field_position(self, number: int) -> int:
        """Position of a field's value in the file, 0 if the table leaves the field out."""
        slot = 4 + 2 * number
        offset = read_scalar(self.data, self.vtable + slot, "H") if slot + 2 <= self.vtable_size else 0
        return self.position + offset if offset else 0

    def target(self, number: int) -> int:
        """Position that a field points at, 0 if the table leaves the field out."""
        position = self.field_position(number)
        return position + read_scalar(self.data, position, "I") if position else 0

    def scalar(self, number: int, code: str, default: float = 0) -> Any:
        """A field that is a number, ``default`` if the table leaves it out."""
        position = self.field_position(number)
        return read_scalar(self.data, position, code) if position else default

    def table(self, number: int) -> Table | None:
        """A field that is a table, None if this table leaves it out."""
        position = self.target(number)
        return Table(self.data, position) if position else None

    def vector(self, number: int, dtype: str) -> NDArray[Any]:
        """A view of a field that is a list of numbers, empty if the table leaves it out."""
        position = self.target(number)
        if not position:
            return np.zeros(0, dtype)
        count = read_scalar(self.data, position, "I")
        if position + 4 + count * np.dtype(dtype).itemsize > len(self.data):
            raise DamagedError(f"a vector of {count} elements at byte {position} runs past the end at {len(self.data)}")
        return np.frombuffer(self.data, dtype, count, position + 4) if count else np.zeros(0, dtype)

    def tables(self, number: int, limit: int) -> list[Table]:
        """The tables of a field that is a list of at most ``limit`` tables."""
        return [Table(self.data, position) for position in self.table_positions(number, limit)]

    def table_positions(self, number: int, limit: int) -> list[int]:
        """As `tables`, but only where they begin."""
        offsets = self.vector(number, "<u4")
        if len(offsets) > limit:
            raise DamagedError(f"{len(offsets)} tables in one vector, at most {limit} are believable")
        start = self.target(number) + 4
        return [start + 4 * index + int(offset) for index, offset in enumerate(offsets)]
