"""Atomic writes: a reader finds the old file or the new one, never half of either, whatever interrupts the writer."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

TEMPORARY = ".*.tmp*"
"""Pattern of the names that half-written files have."""


class NoFilesHereError(OSError):
    """A folder that is there says of a file to be made in it that there is no such file: /proc, /sys, some mounts."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    The content is flushed to disk before the rename, so that a power cut leaves the old file or the new one. No other
    process, on this machine or another, has a temporary file of the same name, and while this one lives its file is
    locked, so that `discard_abandoned` leaves it alone. An `OSError` names `path`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, held = _new_temporary(path)
        try:
            discard_abandoned(path)  # now, not before: that there is one may mean something
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            if held is not None:
                os.close(held)
    except OSError as error:
        if error.filename is None or os.fspath(path) in os.fsdecode(error.filename) or ".tmp" in str(error.filename):
            error.filename, error.filename2 = os.fspath(path), None
        raise


def _new_temporary(path: Path) -> tuple[Path, int | None]:
    """A temporary file that is ours alone, and what holds its lock until it is closed."""
    while True:
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(6)}.tmp{path.suffix}")
        held = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if sys.platform == "win32":  # where a locked file cannot be written by another handle, or an open one moved
            os.close(held)
            return temporary, None
        if _try_lock(held) is not False and temporary.exists():
            return temporary, held
        os.close(held)  # somebody took it for abandoned before it was locked


def discard_abandoned(path: Path) -> None:
    """Remove the temporary files beside `path` of processes that are gone: killed, or ended by a power cut.

    The lock says so: a process's number says nothing of another container's on the same volume, or of an earlier one's.
    """
    for temporary in leftovers(path):
        dashed = re.match(r"(\d+)(-[0-9a-f]+)?\.tmp", temporary.name.removeprefix(f".{path.name}."))
        if dashed is None or (dashed[2] is None and is_running(int(dashed[1]))):  # earlier versions did not lock
            continue
        with claimed(temporary) as ours:
            if ours:
                temporary.unlink(missing_ok=True)


def begun_in(folder: Path) -> set[Path]:
    """What the temporary files in `folder` were to become, finished before or not."""
    named = (re.fullmatch(r"\.(.+)\.\d+(?:-[0-9a-f]+)?\.tmp(\.[^.]*)?", path.name) for path in folder.glob(TEMPORARY))
    return {folder / found[1] for found in named if found}


def leftovers(path: Path) -> list[Path]:
    """The temporary files beside `path`, abandoned or not."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.*.tmp{glob.escape(path.suffix)}"))


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether nobody has locked the file or folder at `path`; nobody can while this lasts."""
    if sys.platform == "win32":  # where temporary files are not locked
        yield False
        return
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        yield False
        return
    try:
        yield _try_lock(descriptor) is True
    finally:
        os.close(descriptor)


@contextmanager
def one_writer(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Let one process at a time, of those that ask for it here, replace the file at `path`.

    The lock is a hidden file beside `path`, which is gone afterwards. Raises `BlockingIOError` where another process
    holds it for longer than `wait` seconds, and `NoFilesHereError` at once where there can be no files, as in /proc.
    Where a file system has no locks, or the folder cannot be written, nothing is locked: what is written there is whole
    all the same.
    """
    _refuse_folder_without_files(path.parent)
    # Whoever may replace the file may lock it, whatever umask the first one has: the lock file is empty.
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=wait, mode=0o666)
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
        try:
            # Whoever opened this file meanwhile finds that it has no name any more, and makes a new one.
            Path(lock.lock_file).unlink(missing_ok=True)
        finally:
            lock.release()


def _refuse_folder_without_files(folder: Path) -> None:
    """Raise `NoFilesHereError` for a folder that is there but makes no files; filelock takes it for contention."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileNotFoundError:
        if folder.is_dir():
            raise NoFilesHereError(errno.EROFS, "no files can be made in this folder", str(folder)) from None
    except OSError:  # the writing says why
        pass


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


def is_running(process: int) -> bool:
    """Whether a process of this number runs here; where that cannot be asked, it does."""
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
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
