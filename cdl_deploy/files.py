"""Atomic writes: a reader finds the old file or the new one, never half of either, whatever interrupts the writer."""

from __future__ import annotations

import glob
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

TEMPORARY = ".*.tmp*"
"""Pattern of the names that half-written files have."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    The content is flushed to disk before the rename, so that a power cut leaves the old file or the new one. No other
    process, on this machine or another, has a temporary file of the same name, and while this one lives its file is
    locked, so that `discard_abandoned` leaves it alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(6)}.tmp{path.suffix}")
    held = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if sys.platform == "win32":  # where a locked file cannot be written by another handle, or an open one moved
            os.close(held)
        else:
            _try_lock(held)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        if sys.platform != "win32":
            os.close(held)


def discard_abandoned(path: Path) -> None:
    """Remove the temporary files beside `path` of processes that are gone: killed, or ended by a power cut.

    A process that does not run here may run in another container on the same volume; its lock says so.
    """
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp{glob.escape(path.suffix)}"):
        owner = re.match(r"(\d+)(-[0-9a-f]+)?\.tmp", temporary.name.removeprefix(f".{path.name}."))
        if owner and not _is_running(int(owner[1])) and not _is_locked(temporary):
            temporary.unlink(missing_ok=True)


@contextmanager
def one_writer(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Let one process at a time, of those that ask for it here, replace the file at `path`.

    The lock is a hidden file beside `path`, which is gone afterwards. Raises `BlockingIOError` where another process
    holds it for longer than `wait` seconds. Where a file system has no locks, or the folder cannot be written, nothing
    is locked: what is written there is whole all the same.
    """
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=wait)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BlockingIOError(f"{path} is being written by another process") from None
    except OSError:
        yield
        return
    try:
        yield
    finally:
        # Whoever opened this file meanwhile finds that it has no name any more, and makes a new one.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def lock_open_file(descriptor: int) -> bool:
    """Lock a file that is open, until it is closed; whether nobody else had. True where a file system has no locks."""
    held = _try_lock(descriptor)
    return held is None or held


def _try_lock(descriptor: int) -> bool | None:
    """Whether the lock is ours now; None where there are no locks."""
    try:
        return filelock.lock_descriptor(descriptor, blocking=False)
    except OSError:
        return None


def _is_locked(path: Path) -> bool:
    """Whether a process has locked the file, or may have."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return True
    try:
        return _try_lock(descriptor) is not True
    finally:
        os.close(descriptor)


def _is_running(process: int) -> bool:
    if sys.platform == "win32":  # where asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then move it to `path`."""
    with atomic_path(path) as temporary:
        write(temporary)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
