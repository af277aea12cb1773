"""Folders that appear at once, and scratch folders that a killed command does not leave for ever.

What is in a folder belongs together: a model, the file that describes it, the weights beside it. Whoever looks into the
folder finds the old files or the new ones, never some of each, whatever interrupts the writer.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from cdl_deploy.files import claimed, lock_open_file

AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2
"""Of Linux's renameat2 and macOS's renamex_np."""


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new folder in `parent`, by default where temporary files belong; it is gone afterwards.

    Those that killed processes left there, of the same prefix, are removed first: their locks are free.
    """
    private, parent = parent is None, parent or Path(tempfile.gettempdir())
    for folder in parent.glob(f"{prefix}*"):
        if re.fullmatch(r"\d+-[0-9a-f]{12}", folder.name.removeprefix(prefix)) and not folder.is_symlink():
            with claimed(folder) as ours:
                if ours:
                    shutil.rmtree(folder, ignore_errors=True)
    folder, held = _new_folder(parent, prefix, 0o700 if private else 0o777)
    try:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if held is not None:
            os.close(held)


def _new_folder(parent: Path, prefix: str, mode: int) -> tuple[Path, int | None]:
    """A folder that is ours alone, and what holds its lock until it is closed."""
    while True:
        folder = parent / f"{prefix}{os.getpid()}-{secrets.token_hex(6)}"
        folder.mkdir(mode)
        if sys.platform == "win32":  # where a folder cannot be locked
            return folder, None
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if lock_open_file(held) and folder.exists():
            return folder, held
        os.close(held)  # somebody took it for abandoned before it was locked


def place_for(out: Path) -> Path:
    """Where to prepare what is to be published as `out`, which is resolved: beside it, or in it where it must stay."""
    return out.parent if not out.exists() or _may_move(out) else out


def publish(
    staging: Path, out: Path, stale: Collection[Path] = (), last: Callable[[Path], object] = lambda name: False
) -> None:
    """Let the files in `staging`, a folder in `place_for(out)`, take the place of those in `out`, all at once.

    `stale`: what else of `out` goes, relative to it. All other files there stay. Where the system cannot exchange two
    folders in one step, or `out` must stay the folder that it is (a mount, somebody's working directory), the old files
    go before the new ones come: then there are some, or none, but never old and new together. `last` is true of those
    that come at the end.
    """
    new = files_in(staging)
    for name in new:
        _flush(staging / name)
    if not out.exists():
        staging.rename(out)
        return
    for folder in {parent for name in new for parent in name.parents}:
        if (out / folder).is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, "a link where a folder is expected", str(out / folder))
    gone = {*new, *stale}
    others = [name for name in files_in(out) if name not in gone and staging not in (out / name).parents]
    if staging.parent == out.parent and _take_along(out, staging, others, {name.parent for name in new}):
        if _exchange(staging, out):
            _keep_newer(staging, out, others, gone)
            return
        for name in others:
            (staging / name).unlink()
    for name in gone:
        if (out / name).is_file() or (out / name).is_symlink():
            (out / name).unlink()
    for name in sorted(new, key=lambda name: (bool(last(name)), name)):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(out / name)


def files_in(folder: Path) -> list[Path]:
    """Every file in a folder, at any depth, relative to it, sorted. A link counts as a file, wherever it leads."""
    found = []
    for below, folders, names in os.walk(folder):
        found += [Path(below, name) for name in names]
        found += [Path(below, name) for name in folders if Path(below, name).is_symlink()]
    return sorted(path.relative_to(folder) for path in found)


def _may_move(out: Path) -> bool:
    """Whether another folder may take its place: nobody stands in it, nothing hangs on its being this one."""
    if sys.platform == "win32" or out.is_symlink() or os.path.ismount(out) or not os.access(out.parent, os.W_OK):
        return False
    own = out.stat()
    return own.st_uid == os.geteuid() and own.st_dev == out.parent.stat().st_dev and not _within(Path.cwd(), out)


def _within(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def _take_along(out: Path, staging: Path, others: list[Path], folders: Collection[Path]) -> bool:
    """Give the `others` in `out` a second name in `staging`, whose own `folders` these are. False where it cannot be:
    folders that are not ours may be at work in."""
    if any(name.parent not in folders or not stat.S_ISREG((out / name).lstat().st_mode) for name in others):
        return False
    if any(path.is_dir() and path.relative_to(out) not in folders for path in out.rglob("*")):
        return False
    own, made = out.stat(), []
    try:
        for name in others:
            os.link(out / name, staging / name)
            made.append(name)
        if staging.stat().st_gid != own.st_gid:
            os.chown(staging, -1, own.st_gid)
        staging.chmod(stat.S_IMODE(own.st_mode))
    except OSError:
        for name in made:
            (staging / name).unlink()
        return False
    return True


def _keep_newer(old: Path, out: Path, others: Collection[Path], gone: Collection[Path]) -> None:
    """Bring along what somebody wrote into the folder after it was looked at: it is in `old` now."""
    for name in files_in(old):
        changed = name in others and not ((out / name).exists() and (out / name).samefile(old / name))
        if changed or (name not in others and name not in gone and (out / name).parent.is_dir()):
            (old / name).replace(out / name)


def _exchange(one: Path, other: Path) -> bool:
    """Two folders change places in one step; False where the system cannot do that."""
    names = os.fsencode(one), os.fsencode(other)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(*names, RENAME_SWAP) == 0)
        return bool(libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0)
    except (OSError, AttributeError, TypeError):
        return False


def _flush(path: Path) -> None:
    """To the disk, so that a power cut finds it there."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
