"""The `.cdlup` file: what turns one model file into the next, and how it is known to be whole.

    magic          8 bytes, `MAGIC`
    header length  4 bytes, unsigned, little-endian
    header         UTF-8 JSON, see `Header`
    payload        one zstd frame, made with the whole base file as prefix
    digest         32 bytes, SHA-256 of everything before

There is no place in it for a file name: an update cannot say where to read or write. The digest finds damage (any bit,
any missing or added byte), not malice: anyone can compute it. What a malicious file could still do is bounded by
`check_bounds`, and by `cdl_deploy.update`, which never believes the payload over the header.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from cdl_deploy.documents import parse_json
from cdl_deploy.errors import BundleError, UpdateError
from cdl_deploy.regular_file import open_regular
from cdl_deploy.typed_json import short, typed
from cdl_deploy.version import Producer, __version__

FORMAT_VERSION = 1
SUFFIX = ".cdlup"
# As PNG's: the byte above 127 and the two kinds of line end show a transfer that took the file for text.
MAGIC = b"\x93CDL\r\n\x1a\n"
MAX_HEADER = 4096
DIGEST_BYTES = 32
CHUNK = 1 << 20
MAX_FILE = (1 << 31) - 1
"""Bytes that a model file may have: ONNX is one protobuf message, which ends there."""


@dataclass(frozen=True)
class FileIdentity:
    """Which file is meant: nothing else has this size and hash."""

    bytes: int
    """Size."""
    sha256: str
    """SHA-256 in lower-case hexadecimal digits."""

    def __post_init__(self) -> None:
        if not 0 <= self.bytes <= MAX_FILE:
            raise BundleError(f"bytes is {self.bytes}, expected 0 to {MAX_FILE}")
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise BundleError(f"sha256 is {short(self.sha256)!r}, expected 64 hexadecimal digits")


@dataclass(frozen=True)
class Header:
    """What an update is for and what it makes. All of this is checked; unknown fields are refused."""

    format_version: int
    """`FORMAT_VERSION`; a reader refuses a newer one."""
    base: FileIdentity
    """The only file it can be applied to."""
    result: FileIdentity
    """The file it makes."""
    payload_bytes: int
    """Size of the zstd frame."""
    producer: Producer = field(default_factory=Producer)
    """The program that wrote it."""


@dataclass(frozen=True)
class UpdateFile:
    """A `.cdlup` file whose header and digest have been checked."""

    path: Path
    header: Header
    payload_at: int
    """Position of the payload's first byte."""

    def payload(self) -> Iterator[bytes]:
        """The zstd frame, in pieces of at most `CHUNK` bytes."""
        with open_regular(self.path, MAX_FILE) as file:
            file.seek(self.payload_at)
            yield from _pieces(file, self.header.payload_bytes)


def identify(content: bytes) -> FileIdentity:
    """The identity of a file with this content."""
    return FileIdentity(len(content), hashlib.sha256(content).hexdigest())


def check_model_size(path: Path, size: int) -> None:
    """Raise `UpdateError` for a model file of more bytes than an update handles."""
    if size > MAX_FILE:
        raise UpdateError(f"{path} has {size:,} bytes, an update handles up to {MAX_FILE:,}: send the whole model")


def write_update(file: BinaryIO, base: FileIdentity, result: FileIdentity, payload: bytes) -> None:
    """Write an update to `file`: the same arguments give the same bytes."""
    header = Header(FORMAT_VERSION, base, result, len(payload))
    text = json.dumps(dataclasses.asdict(header), sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256()
    for part in (MAGIC, len(text).to_bytes(4, "little"), text, payload):
        digest.update(part)
        file.write(part)
    file.write(digest.digest())


def read_update(path: Path) -> UpdateFile:
    """Open the update at `path` and check that every byte is as it was written.

    Raises `UpdateError` for a file that cannot be read, is no update, is damaged, or is of a newer format. Reads the
    whole file, holding at most `CHUNK` bytes of it.
    """
    try:
        with open_regular(path) as file:
            return _checked(path, file)
    except OSError as error:
        raise UpdateError(f"{path}: {error.strerror or error}; expected a {SUFFIX} file") from error


def _checked(path: Path, file: BinaryIO) -> UpdateFile:
    """Digest first: what is read after it is as somebody meant it, though not necessarily well."""
    size = os.fstat(file.fileno()).st_size
    magic = file.read(len(MAGIC))
    if magic != MAGIC and not MAGIC.startswith(magic):
        raise UpdateError(
            f"{path} is no update: expected a {SUFFIX} file, as cdl export RUN --onnx --update-from OLD.onnx writes"
        )
    if size < len(MAGIC) + 4 + DIGEST_BYTES or size > MAX_FILE:
        raise UpdateError(f"{path} has {size:,} bytes, expected a whole {SUFFIX} file: fetch it again")
    digest = hashlib.sha256(magic)
    for piece in _pieces(file, size - len(MAGIC) - DIGEST_BYTES):
        digest.update(piece)
    if file.read(DIGEST_BYTES + 1) != digest.digest():
        raise UpdateError(
            f"{path} is damaged or not complete: its {size:,} bytes do not fit its digest; fetch it again"
        )
    file.seek(len(MAGIC))
    count = int.from_bytes(file.read(4), "little")
    if count > MAX_HEADER:
        raise _unusable(path, f"its header has {count:,} bytes, at most {MAX_HEADER:,} expected")
    header = _header(path, file.read(count))
    payload_at = len(MAGIC) + 4 + count
    expected = payload_at + header.payload_bytes + DIGEST_BYTES
    if size != expected:
        raise _unusable(path, f"it has {size:,} bytes, expected {expected:,}")
    return UpdateFile(path, header, payload_at)


def _header(path: Path, text: bytes) -> Header:
    """The header, strictly; that it is of a newer format is said before anything else is read from it."""
    try:
        values = parse_json(text)
    except ValueError as error:
        raise _unusable(path, "its header is not JSON") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise UpdateError(
            f"{path} has update format {version}, this cdl-deploy {__version__} reads up to {FORMAT_VERSION}: "
            "pip install -U cdl-deploy"
        )
    try:
        header: Header = typed(Header, values, "header")
    except BundleError as error:
        raise _unusable(path, str(error).removesuffix("; export the model again")) from error
    known = dataclasses.asdict(header)
    odd = [key for key in values if values[key] != known.get(key)]  # a field we do not know, here or further down
    odd += [key for key in ("format_version", "payload_bytes") if known[key] < 0 or not known["format_version"]]
    if odd:
        raise _unusable(path, f"header.{odd[0]} is {short(values[odd[0]])}")
    return header


def _unusable(path: Path, why: str) -> UpdateError:
    """For a file that is whole, but not as this program writes it."""
    return UpdateError(f"{path} is no update that can be used: {why}; get it again from where it is made")


def _pieces(file: BinaryIO, count: int) -> Iterator[bytes]:
    """The next `count` bytes of `file`, or as many as there are."""
    while count > 0 and (piece := file.read(min(CHUNK, count))):
        yield piece
        count -= len(piece)


def check_bounds(path: Path, header: Header) -> None:
    """Refuse a result out of proportion: it is more likely a bomb than the next version of the same model."""
    most = 2 * header.base.bytes + (64 << 20)
    if header.result.bytes > most:
        raise UpdateError(
            f"{path} would make {header.result.bytes:,} bytes from {header.base.bytes:,}, more than the {most:,} that "
            "an update may: fetch the whole model"
        )
