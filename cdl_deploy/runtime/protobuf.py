"""What every protobuf message is made of: numbers of variable length, and the kinds of values.

Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
"""Wire types: a number, 8 bytes, bytes with their length before them, 4 bytes."""


class MalformedMessageError(ValueError):
    """No protobuf message."""

    def __init__(self) -> None:
        super().__init__("no whole protobuf message")


def read_varint(content: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number that begins at `at`, as uint64, and where it ends. Raises `MalformedMessageError`."""
    value = shift = 0
    while at < len(content) and shift < 70:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise MalformedMessageError


def as_int64(value: int) -> int:
    """A uint64 as the signed number that it stands for."""
    return value - (1 << 64) if value >> 63 else value
