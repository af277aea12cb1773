"""One model file into the next: an update is made where models are made, and applied where they run.

The payload is what zstd's patch-from mode gives: the new file, compressed with the old one as what came before it. A
backbone that does not change costs a few bytes then, wherever its tensors have moved.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from cdl_deploy.errors import UpdateError
from cdl_deploy.files import NoFilesHereError, atomic_path, discard_abandoned, one_writer, write_text
from cdl_deploy.regular_file import open_regular
from cdl_deploy.typed_json import short
from cdl_deploy.update.file import (
    CHUNK,
    MAX_FILE,
    FileIdentity,
    UpdateFile,
    check_bounds,
    check_model_size,
    identify,
    read_update,
    write_update,
)
from cdl_deploy.update.withdrawn import withdrawn

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Higher levels are worse, not only slower: from 16 on zstd's optimal parser finds little of what lies
# far back, and an update of a ViT-S has 60 to 90 % of its size (benchmarks/update_size.py --level 16).
LEVEL = 9
LOCK_SECONDS = 60.0
"""So long an update waits for another one of the same file."""
_SHORTEST_PREFIX = 8
"""Bytes below which zstd takes no prefix."""


@dataclass(frozen=True)
class Applied:
    """What `apply_updates` has done."""

    path: Path
    """The file that is now there."""
    identity: FileIdentity
    """Its size and hash."""
    updates: tuple[Path, ...]
    """The updates that were needed, in the order they were applied; none if the model was up to date."""


def make_update(base: Path, result: Path, out: Path, level: int = LEVEL) -> UpdateFile:
    """Write to `out`, atomically, the update that makes `result` from `base`.

    It is applied once in memory before it is kept. Deterministic: the same files give the same bytes (with one version
    of zstd). Holds both files in memory and about as much again. Raises `UpdateError` for a file that cannot be read,
    or a result too large for an update.
    """
    old, new = _model_content(base), _model_content(result)
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.window_log: _window_log(len(new)),
        zstd.CompressionParameter.enable_long_distance_matching: 1,
    }
    payload = zstd.compress(new, options=options, zstd_dict=_prefix(old))
    identities = identify(old), identify(new)
    del new
    try:
        with atomic_path(out) as temporary:
            with temporary.open("wb") as file:
                write_update(file, *identities, payload=payload)
            update = read_update(temporary)
            check_bounds(out, update.header)
            for _ in rebuilt(old, update):
                pass
    except OSError as error:
        raise UpdateError(f"{out}: {error.strerror or error}; the update was not written") from error
    return UpdateFile(out, update.header, update.payload_at)


def apply_updates(
    base: Path,
    updates: Sequence[Path],
    out: Path,
    check: Callable[[Path], object] = lambda path: None,
    describe: Callable[[Path], tuple[Path, str] | None] = lambda path: None,
) -> Applied:
    """Write to `out`, atomically, what `updates` make of the model at `base`; `out` may be `base`.

    The updates may be given in any order, and may begin before `base`: a device that missed some gets them all. Before
    the file appears, its size and hash are compared with what the update says, and `check` may look at it and raise.
    `describe` may give the file that belongs beside it, and its text: what an older one says of the old model is gone
    before the new model appears, so that whatever interrupts this, no model is beside the description of another.

    One process at a time does this to `out`; another one waits for it.

    Raises `UpdateError`, and leaves `out` as it was, for an update that is damaged, is for another model, or would make
    anything but the file it names; and where the disk is too full. Memory: base and result, at most.
    """
    out = out.resolve()  # a link stays a link
    for path in updates:
        if path.resolve() == out:
            raise UpdateError(f"the result cannot be written over the update {path}: choose another name")
    if out.is_dir():
        raise UpdateError(f"{out} is a folder, expected the name of a file: give {out / base.name}")
    opened = [read_update(path) for path in updates]
    if not out.parent.is_dir():  # nobody can be writing there
        return _apply(base, opened, out, check, describe)
    try:
        with one_writer(out, wait=LOCK_SECONDS):  # from before the old model is read, which may be the file to replace
            return _apply(base, opened, out, check, describe)
    except BlockingIOError:
        raise UpdateError(f"{out} is being updated by another process; nothing was changed, try again later") from None
    except NoFilesHereError as error:
        raise UpdateError(f"{out}: {error.strerror}; nothing was changed: choose another folder") from None


def _apply(
    base: Path,
    opened: Sequence[UpdateFile],
    out: Path,
    check: Callable[[Path], object],
    describe: Callable[[Path], tuple[Path, str] | None],
) -> Applied:
    """`out` is resolved, and nobody else updates it."""
    content = _model_content(base, opened)
    start = identify(content)
    steps = in_order(base, start, opened)
    for update in steps:
        check_bounds(update.path, update.header)
    applied = tuple(update.path for update in steps)
    try:
        if not steps and out == base.resolve():
            told = describe(out)  # an earlier update may have been killed before it came to that
            if told is not None and not _says(*told):
                write_text(*told)
            return Applied(out, start, applied)
        end = steps[-1].header.result if steps else start
        _check_room(out, end.bytes)
        mode = out.stat().st_mode if out.exists() else None
        with ExitStack() as beside, atomic_path(out) as temporary:
            if not steps:
                temporary.write_bytes(content)
            for number, update in enumerate(steps):
                if number:
                    content = temporary.read_bytes()
                pieces = rebuilt(content, update)
                content = b""
                with temporary.open("wb") as file:
                    file.writelines(pieces)
            _check_written(temporary, out, end)
            check(temporary)
            if mode is not None:
                temporary.chmod(mode)
            told = describe(temporary)
            if told is not None:
                beside.enter_context(withdrawn(*told))
    except OSError as error:
        raise UpdateError(f"{error.filename or out}: {error.strerror or error}; nothing was changed") from error
    return Applied(out, end, applied)


def _says(path: Path, text: str) -> bool:
    """Whether that is what stands in the file."""
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


def _check_written(temporary: Path, out: Path, wanted: FileIdentity) -> None:
    """Raise `UpdateError` unless the file on the disk, not the stream that went there, is the one that is wanted."""
    with temporary.open("rb") as file:
        found = FileIdentity(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())
    if found != wanted:
        raise UpdateError(
            f"{out}: what was written ({found.bytes:,} bytes, SHA-256 {found.sha256[:16]}…) is not what the update "
            f"makes ({wanted.bytes:,} bytes, {wanted.sha256[:16]}…); nothing was changed, try again"
        )


def in_order(base: Path, start: FileIdentity, updates: Sequence[UpdateFile]) -> list[UpdateFile]:
    """Those of `updates` that lead on from `start`, each from the result of the one before.

    Those that lead to `start` are left out: they have been applied already. Raises `UpdateError` for one that does
    neither.
    """
    steps: list[UpdateFile] = []
    current, left = start, list(updates)
    while found := next((update for update in left if update.header.base == current), None):
        steps.append(found)
        left = [update for update in left if update.header != found.header]
        current = found.header.result
    current = start
    while found := next((update for update in left if update.header.result == current), None):
        left.remove(found)
        current = found.header.base
    if left:
        raise _wrong_base(base, left[0], f"SHA-256 {start.sha256[:16]}… ({start.bytes:,} bytes)")
    return steps


def rebuilt(base: bytes, update: UpdateFile) -> Iterator[bytes]:
    """The pieces of the result of at most `CHUNK` bytes, made from the content of the base file.

    Never yields more bytes than the header says. Raises `UpdateError`, at the end at the latest, unless they are the
    file that the header names.
    """
    header = update.header
    digest, left = hashlib.sha256(), header.result.bytes
    try:
        # The decoder keeps its window in memory: never more than the result has bytes.
        pieces = update.payload()
        first = next(pieces, b"")
        if zstd.get_frame_info(first).decompressed_size != left:
            raise _untrue(update, "its payload is of another size than its header says")
        limit: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _window_log(left)}
        decoder = zstd.ZstdDecompressor(_prefix(base), limit)
        del base
        for piece in chain([first], pieces):
            if decoder.eof:
                raise _untrue(update, "there is more behind its payload")
            while True:
                new = decoder.decompress(piece, max_length=min(CHUNK, left + 1))
                piece, left = b"", left - len(new)
                if left < 0:
                    raise _untrue(update, f"it makes more than the {header.result.bytes:,} bytes of its header")
                digest.update(new)
                yield new
                if decoder.eof or decoder.needs_input:
                    break
    except zstd.ZstdError as error:
        raise _untrue(update, short(str(error))) from error
    if not decoder.eof or decoder.unused_data or left:
        raise _untrue(update, "its payload ends too early or too late")
    if digest.hexdigest() != header.result.sha256:
        raise _untrue(update, "it does not make the file of its header")


def _model_content(path: Path, updates: Sequence[UpdateFile] | None = None) -> bytes:
    """The content of a model file; with `updates`, only if one of them may be for a file of this size."""
    try:
        size = path.stat().st_size
        check_model_size(path, size)
        with open_regular(path, MAX_FILE) as file:  # what is no file says so now, not by its size
            if updates and not any(size in (u.header.base.bytes, u.header.result.bytes) for u in updates):
                raise _wrong_base(path, updates[0], f"{size:,} bytes")
            return file.read()
    except OSError as error:
        raise UpdateError(f"{path}: {error.strerror or error}; expected a model file") from error


def _prefix(content: bytes) -> tuple[zstd.ZstdDict, int] | None:
    return zstd.ZstdDict(content, is_raw=True).as_prefix if len(content) >= _SHORTEST_PREFIX else None


def _window_log(size: int) -> int:
    """Binary logarithm of the smallest window that holds a whole result: then all of the base stays in reach."""
    low, high = zstd.DecompressionParameter.window_log_max.bounds()
    return min(max(low, (size - 1).bit_length()), high)


def _check_room(out: Path, needed: int) -> None:
    """Raise `UpdateError` before anything is written if the disk has no room; make room from earlier failures first."""
    folder = next(parent for parent in out.parents if parent.exists())
    discard_abandoned(out)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UpdateError(f"{out} needs {needed:,} bytes beside the old model, {free:,} are free on the disk")


def _wrong_base(path: Path, update: UpdateFile, found: str) -> UpdateError:
    base = update.header.base
    return UpdateError(
        f"{path} is not the model that {update.path} is for: it has {found}, expected SHA-256 {base.sha256[:16]}… "
        f"({base.bytes:,} bytes); get the update for this model, or the whole new one"
    )


def _untrue(update: UpdateFile, why: str) -> UpdateError:
    return UpdateError(
        f"{update.path} cannot be applied: {why}; nothing was changed, get it again from where it is made"
    )
