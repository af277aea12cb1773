"""Protobuf messages as their fields, without the package that knows what the fields mean.

A field is a tag (number and wire type), and a value. A file is read field by field: of a value that is not looked at
only the length is read, so that hundreds of megabytes of weights cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cdl_deploy.errors import BundleError
from cdl_deploy.runtime.protobuf import BYTES, EIGHT, FOUR, VARINT, MalformedMessageError, as_int64, read_varint

_FIXED = {EIGHT: 8, FOUR: 4}
_LONGEST_TAG = 20
"""Bytes of a tag and a length, at most."""


@dataclass(frozen=True)
class Span:
    """Some bytes of the old file that stay what they are."""

    start: int
    size: int


Piece = bytes | Span
"""Of a new file."""


@dataclass(frozen=True)
class Field:
    """One field, as it lies in a file or in bytes."""

    number: int
    wire: int
    start: int
    """Where its tag begins."""
    at: int
    """Where its value begins."""
    end: int

    @property
    def whole(self) -> Span:
        """With its tag."""
        return Span(self.start, self.end - self.start)


def fields_in(file: BinaryIO, start: int, end: int) -> Iterator[Field]:
    """The fields between two places of a file. Raises `BundleError` for what is no protobuf message."""
    at = start
    while at < end:
        file.seek(at)
        field = _field(file.read(min(_LONGEST_TAG, end - at)), 0, end - at)
        yield Field(field.number, field.wire, at, at + field.at, at + field.end)
        at += field.end


def fields_of(content: bytes) -> Iterator[tuple[Field, bytes]]:
    """The fields of a message with their values; of a number, the bytes of its varint."""
    at = 0
    while at < len(content):
        found = _field(content, at, len(content))
        yield found, content[found.at : found.end]
        at = found.end


def number_of(value: bytes) -> int:
    """What the bytes of a varint say, as int64."""
    return as_int64(_varint(value, 0)[0])


def size_of(pieces: Iterable[Piece]) -> int:
    """Bytes of all pieces."""
    return sum(len(piece) if isinstance(piece, bytes) else piece.size for piece in pieces)


def varint(value: int) -> bytes:
    """A whole number, from −2⁶³ on."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A field with a whole number."""
    return varint(field << 3 | VARINT) + varint(value)


def text(field: int, value: bytes | str) -> bytes:
    """A field with bytes, a text or a message."""
    content = value.encode() if isinstance(value, str) else value
    return head(field, len(content)) + content


def head(field: int, size: int) -> bytes:
    """What stands before `size` bytes of a field."""
    return varint(field << 3 | BYTES) + varint(size)


def _field(content: bytes, start: int, end: int) -> Field:
    """The field that begins at `start` of `content`, of which there may be more behind, up to `end`."""
    tag, at = _varint(content, start)
    wire = tag & 7
    if wire == VARINT:
        _, after = _varint(content, at)
    elif wire == BYTES:
        size, at = _varint(content, at)
        after = at + size
    elif wire in _FIXED:
        after = at + _FIXED[wire]
    else:
        raise _no_message()
    if tag >> 3 == 0 or after > end:
        raise _no_message()
    return Field(tag >> 3, wire, start, at, after)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    try:
        return read_varint(content, at)
    except MalformedMessageError:
        raise _no_message() from None


def _no_message() -> BundleError:
    return BundleError("the file is no whole ONNX model: copy or export it again")
