"""Reads protocol buffers field by field, without their schema (protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from mnv2det.convert.graph import DamagedError

LONGEST_VARINT = 10  # bytes
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types

Value = int | memoryview


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of a message, in the order of the file.

    Args:
        data: The message.

    Yields:
        An int for a varint, and a view of the bytes for all else: 4 or 8 of them, or as many as the field has.

    Raises:
        DamagedError: It is no message.
    """
    position, end = 0, len(data)
    while position < end:
        key, position = varint(data, position)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise DamagedError(f"field 0 at byte {position}")
        if kind == VARINT:
            value, position = varint(data, position)
            yield number, value
            continue
        if kind == BYTES:
            length, position = varint(data, position)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise DamagedError(f"wire type {kind} at byte {position}")
        if length > end - position:
            raise DamagedError(f"field {number} of {length} bytes, but {end - position} are left")
        yield number, data[position : position + length]
        position += length


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """A whole number of up to 64 bits, and the position behind it.

    Raises:
        DamagedError: The message ends in it, or it is longer than any.
    """
    value = 0
    for count in range(LONGEST_VARINT):
        if position >= len(data):
            raise DamagedError("the message ends in a number")
        byte = data[position]
        position += 1
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return value & (2**64 - 1), position
    raise DamagedError(f"a number of more than {LONGEST_VARINT} bytes")


def varints(data: memoryview) -> list[int]:
    """A packed list of whole numbers, signed ones of 64 bits.

    Raises:
        DamagedError: The list ends in a number.
    """
    position, values = 0, []
    while position < len(data):
        value, position = varint(data, position)
        values.append(number(value))
    return values


def message(value: Value) -> memoryview:
    """A field that must be a message, text or packed numbers.

    Raises:
        DamagedError: It is a number.
    """
    if isinstance(value, int):
        raise DamagedError("a number where a message is expected")
    return value


def number(value: Value) -> int:
    """A field that must be a varint, as a signed number of 64 bits.

    Raises:
        DamagedError: It is none.
    """
    if not isinstance(value, int):
        raise DamagedError("a message where a number is expected")
    return value - 2**64 if value >= 2**63 else value


def text(value: Value) -> str:
    """A field that must be text; what is no UTF-8 is replaced.

    Raises:
        DamagedError: It is a number.
    """
    return bytes(message(value)).decode("utf-8", "replace")


def real(value: Value) -> float:
    """A field that must be a float32.

    Raises:
        DamagedError: It is none.
    """
    view = message(value)
    if len(view) != 4:
        raise DamagedError(f"{len(view)} bytes where a float is expected")
    result: float = struct.unpack("<f", view)[0]
    return result
