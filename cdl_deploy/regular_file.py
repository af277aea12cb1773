"""Files that somebody else wrote, opened with care: regular files alone, up to a size.

A named pipe would wait for ever, a device has no end. Errors are `OSError`, with a `strerror` that can be shown.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """Open `path` for reading. Raises `OSError` for what is no regular file, or has more than `most` bytes."""
    _check(path, os.stat(path), most)  # before it is opened: a device may do something then
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check(path, os.fstat(descriptor), most)  # whoever put a pipe there meanwhile gains nothing
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises `OSError`."""
    with open_regular(path, most) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size)  # no more, whatever comes meanwhile: memory for it is taken first
    if size > most:
        raise _too_large(path, size, most)
    return content


def _check(path: Path, status: os.stat_result, most: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        what = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {what}, expected a regular file", str(path))
    if most is not None and status.st_size > most:
        raise _too_large(path, status.st_size, most)


def _too_large(path: Path, size: int, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it has {size:,} bytes, expected at most {most:,}", str(path))
