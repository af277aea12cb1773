"""What every protobuf message is made of: numbers of variable length, and the kinds of values.

Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

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


def fields(content: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Number, wire type and value of every field. Raises `MalformedMessageError`."""
    at, end = 0, len(content)
    while at < end:
        tag, at = read_varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = read_varint(content, at)
            yield number, wire, as_int64(value)
            continue
        if wire == BYTES:
            size, at = read_varint(content, at)
        elif wire in (EIGHT, FOUR):
            size = 8 if wire == EIGHT else 4
        else:  # groups, which ONNX never had
            raise MalformedMessageError
        if number == 0 or size > end - at:
            raise MalformedMessageError
        yield number, wire, content[at : at + size]
        at += size


def packed_numbers(content: memoryview) -> list[int]:
    """The numbers of a packed repeated field, as int64. Raises `MalformedMessageError`."""
    numbers, at = [], 0
    while at < len(content):
        value, at = read_varint(content, at)
        numbers.append(as_int64(value))
    return numbers
