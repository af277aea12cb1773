"""A file that must never describe another one than it lies beside: it is away while that one is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdl_deploy.files import atomic_path, write_atomic


@contextmanager
def withdrawn(path: Path, text: str) -> Iterator[None]:
    """While this lasts, there is no file at `path`, and after it one with `text`; after an error, what was there."""
    before = path.read_bytes() if path.is_file() else None
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
            path.unlink(missing_ok=True)
            yield
    except BaseException:
        if before is not None:
            write_atomic(path, lambda file: file.write_bytes(before))
        raise
