"""A kill before a certain change to a file, without a process that dies: from there on nothing reaches the disk.

Python tells an audit hook of every change before it is made. The hook raises, there and for every later change, so that
what cleans up after an error cannot do so either. benchmarks/attack does the same with SIGKILL, for every command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHANGES = frozenset(
    ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown")
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Killed(BaseException):
    """What ends a process here, in place of SIGKILL."""


class _Hook:
    """There is one: an audit hook cannot be taken away."""

    def __init__(self) -> None:
        self.folder, self.left, self.seen = "", 0, 0
        self.installed = False

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.folder or (event not in CHANGES and event != "open"):
            return
        if event == "open" and not (isinstance(given[2], int) and given[2] & WRITING):
            return
        path = given[0]
        if isinstance(path, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(path)).startswith(self.folder):
            self.seen += 1
            if self.seen >= self.left > 0:
                raise Killed


_hook = _Hook()


def changes(folder: Path, action: Callable[[], object], die_before: int = 0) -> int:
    """How many changes below `folder` an action makes, or tries to. It dies before one of them, where that is said."""
    if not _hook.installed:
        sys.addaudithook(_hook)
        _hook.installed = True
    _hook.folder, _hook.left, _hook.seen = str(folder), die_before, 0
    try:
        action()
    except Killed:
        pass
    finally:
        _hook.folder = ""
    return _hook.seen


def every_kill(folder: Path, prepare: Callable[[], object], action: Callable[[], object]) -> Iterator[int]:
    """After each: the action was killed before its first change, its second one, and so on."""
    number = 1
    while True:
        prepare()
        if changes(folder, action, number) < number:
            return
        yield number
        number += 1
