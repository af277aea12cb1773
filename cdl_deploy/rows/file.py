"""Where rows go: standard output, or a file that an interruption cannot spoil.

While rows come, they are in `rows.jsonl.part`, which is moved to its place at the end. Whatever ends the program
(SIGKILL, a full disk, a power cut), what was written stays, and a row may be torn at its end. `resume` finds the last
whole row, checks that those before it are for the same paths and from the same model, and goes on behind it. Parquet
cannot be continued, so its `.part` is JSON Lines.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from cdl_deploy.errors import DataError, OptionError
from cdl_deploy.files import lock_open_file
from cdl_deploy.printable import printable
from cdl_deploy.rows.formats import row_format
from cdl_deploy.runtime.classifier import UNKNOWN, Classifier
from cdl_deploy.runtime.predict import Row, classify_paths

FLUSH_SECONDS = 1.0
"""Rows are handed to the operating system at least this often, if any come."""
FLUSH_BYTES = 64 * 1024
CHECKED_ROWS = 8
"""Rows that are predicted again when a file is continued, to see that the model is the one that wrote it."""
TOLERANCE = 0.01
"""By how much a probability may differ then: int8 kernels differ between machines, and between batches."""


class RowStream:
    """Rows to standard output, in batches."""

    kept = ""
    """An interruption leaves nothing to continue."""

    def __init__(self, kind: str, top_k: int) -> None:
        self.done = self.failed = 0
        self._format = row_format(kind, top_k)
        self._flushed = time.monotonic()
        self._shown = kind == "csv" and sys.stdout.isatty()  # a format for files, which escapes nothing

    def remaining(self, paths: Iterable[str], classifier: Classifier) -> Iterator[str]:
        """All paths."""
        self._put(self._format.header())
        return iter(paths)

    def write(self, row: Row) -> None:
        """Add a row. Raises `OptionError` when the disk is full, and `BrokenPipeError` when nobody reads any more."""
        self._put(self._format.encode(row))
        self.done, self.failed = self.done + 1, self.failed + (row.error is not None)
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    def __enter__(self) -> RowStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, OSError | OptionError):
            self._flush()

    def _put(self, data: bytes) -> None:
        if self._shown:
            data = printable(data.decode("utf-8", "surrogateescape"), lines=True).encode("utf-8", "surrogateescape")
        with _stdout_named():
            sys.stdout.buffer.write(data)

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        with _stdout_named():
            sys.stdout.flush()


@contextmanager
def _stdout_named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is still in the buffer can never be written; at exit, Python would try and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OptionError(f"standard output: {error.strerror or error}") from error


class RowFile:
    """Rows on their way into `path`. Use it in a `with` statement: if that ends without an error, all is there."""

    def __init__(self, path: Path, kind: str, top_k: int, resume: bool = False) -> None:
        """Open `path` for rows of `kind` (`"table"`, `"jsonl"`, `"csv"` or `"parquet"`) with `top_k` classes each.

        `resume` continues its `.part`, or else `path` itself. Raises `OptionError` where it cannot be written or
        continued, where another program is writing it, or where a `.part` is there and `resume` is false.
        """
        self.path, self.kind, self.top_k = path, kind, top_k
        self.done = self.failed = 0
        self.part = path.with_name(path.name + ".part")
        self._format = row_format(kind, top_k)
        self._waiting: list[bytes] = []
        self._bytes, self._flushed = 0, time.monotonic()
        self._direct = path.exists() and not path.is_file()
        """A pipe or a device is written as it is: nothing can be moved there, or continued."""
        self._whole = path if resume and path.exists() and not self.part.exists() else None
        """A file that is continued though it has its name already; it keeps it until its rows have been checked."""
        if self._direct and (resume or kind == "parquet"):
            wish = "continued" if resume else "Parquet"
            raise OptionError(f"--output {path} is a device or a folder, so it cannot be {wish}: name a file")
        with self._named():
            self._created = not self._direct and not (self.part.exists() and self.part.stat().st_size > 0)
            if not (resume or self._direct or self._created):
                self._file = _opened(self.part, create=True)
                self._lock(self.part)  # whoever is writing it now is not interrupted
                self._file.close()
                raise OptionError(
                    f"{self.part} holds the rows of an interrupted run: add --resume to continue it, or delete it"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            continued = self._whole if kind != "parquet" else None
            self._file = _opened(path if self._direct else continued or self.part, create=not self._direct)
        if not self._direct:
            self._lock(continued or self.part)

    def remaining(self, paths: Iterable[str], classifier: Classifier) -> Iterator[str]:
        """The paths without a row yet: all, or those behind the last whole row of the file that is continued.

        Raises `DataError` where the rows are not those of the first paths, or not of this model.
        """
        source, end = iter(paths), 0
        if not self._direct:
            with self._named():
                if self._whole is not None and self.kind == "parquet":
                    self._unpack(self._whole)
                end = self._check(source, classifier)
                self._file.truncate(end)
                self._file.seek(end)
                if self._whole is not None and self.kind != "parquet":
                    self._whole.replace(self.part)
            self._created = self._created and self.done == 0
        if end == 0:
            self._put(self._format.header())
        return source

    def write(self, row: Row) -> None:
        """Add a row. Raises `OptionError` when the disk is full."""
        self._put(self._format.encode(row))
        self.done, self.failed = self.done + 1, self.failed + (row.error is not None)
        if self._bytes >= FLUSH_BYTES or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand all rows to the operating system."""
        rest = memoryview(b"".join(self._waiting))
        self._waiting, self._bytes, self._flushed = [], 0, time.monotonic()
        with self._named():
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
                self._created = False

    @property
    def kept(self) -> str:
        """What an error or an interruption leaves, for the end of a message; empty where it leaves nothing."""
        if self._direct or self.done == 0:
            return ""
        goes_on = "" if self.kind == "table" else ", and --resume continues them"
        return f"; the rows so far are in {self.part}{goes_on}"

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        complete = False
        try:
            if kind is None:
                self._finish()
                complete = True
            elif self.done and not isinstance(error, OptionError):  # such an error is about this very file
                self.flush()
        finally:
            self._file.close()
            if not complete and self._created:
                self.part.unlink(missing_ok=True)

    def _finish(self) -> None:
        self.flush()
        if self._direct:
            return
        with self._named():
            os.fsync(self._file.fileno())
            if self.kind == "parquet":
                from cdl_deploy.rows.parquet import write_parquet

                with self._reader() as file:
                    write_parquet((stored.row for stored in self._format.decode(file)), self.path)
                self.part.unlink()
            else:
                self.part.replace(self.path)

    def _unpack(self, path: Path) -> None:
        """Bring the rows of a Parquet file into the part: they cannot be continued where they are."""
        from cdl_deploy.rows.parquet import read_parquet

        for row in read_parquet(path):
            self._put(self._format.encode(row))
            if self._bytes >= FLUSH_BYTES:
                self.flush()
        self.flush()
        self._created = True  # nothing is lost with it until rows are added

    def _check(self, source: Iterator[str], classifier: Classifier) -> int:
        """Offset behind the last whole row; those before it are counted, and their paths taken from `source`."""
        end, recent = 0, deque[Row](maxlen=CHECKED_ROWS)
        try:
            with self._reader() as file:
                for stored in self._format.decode(file):
                    self._compare(stored.row, next(source, None), classifier)
                    end, self.done = stored.end, self.done + 1
                    self.failed += stored.row.error is not None
                    if stored.row.prediction is not None:
                        recent.append(stored.row)
            self._check_model(list(recent), classifier)
        except DataError as error:
            self.done = 0
            raise DataError(f"{self._whole or self.part}: {error}") from error
        return end

    def _lock(self, name: Path) -> None:
        """Raise `OptionError` where another program writes the file, or has finished it since it was opened here."""
        held = lock_open_file(self._file.fileno())
        if not (held and name.exists() and os.path.samestat(os.fstat(self._file.fileno()), name.stat())):
            self._file.close()
            raise OptionError(f"another program is writing {self.part}: choose another --output")

    def _compare(self, row: Row, path: str | None, classifier: Classifier) -> None:
        """Raise `DataError` unless `row` can be what this run would write for `path`."""
        number = self.done + 1
        if path is None:
            raise DataError(f"has more rows than there are images now (row {number} is {row.path}): give the same ones")
        if row.path != path:
            raise DataError(
                f"row {number} is {row.path}, but image {number} is now {path}: give the same images, or start anew"
            )
        p = row.prediction
        if p is None:
            return
        if len(p.top_k) != self.top_k:
            raise DataError(f"has {len(p.top_k)} classes a row, expected {self.top_k}: give the same --top-k")
        rejected = classifier.reject and p.label == UNKNOWN
        if not 0 <= p.index < len(classifier.classes) or not (rejected or classifier.classes[p.index] == p.label):
            raise DataError(f"row {number} names class {p.index} {p.label!r}, which {classifier.path} does not")

    def _check_model(self, rows: list[Row], classifier: Classifier) -> None:
        """Predict the last rows again; one of another model differs. An image that is gone says nothing."""
        bundle = classifier.interface.bundle
        if bundle is not None and bundle.quantization is not None and not bundle.quantization.batch_invariant:
            return  # what an image gives depends on its neighbours, so this says nothing
        again = classify_paths(classifier, [row.path for row in rows], top_k=len(classifier.classes))
        for old, new in zip(rows, again, strict=True):
            if old.prediction is None or new.prediction is None:
                continue
            before, now = dict(old.prediction.top_k), dict(new.prediction.top_k)
            if UNKNOWN in before and UNKNOWN not in now:  # CSV keeps the best class of a rejected image by its index
                before[classifier.classes[old.prediction.index]] = before.pop(UNKNOWN)
            turned = UNKNOWN in (old.prediction.label, new.prediction.label) and (
                old.prediction.label != new.prediction.label
            )
            if turned or any(abs(value - now[name]) > TOLERANCE for name, value in before.items()):
                raise DataError(
                    f"its row for {old.path} says {old.prediction.label} {old.prediction.probability:.4f}, and "
                    f"{classifier.path} now says {new.prediction.label} {new.prediction.probability:.4f}: "
                    "give the same model and images, or start anew"
                )

    def _reader(self) -> BinaryIO:
        """All that was written so far, from its beginning."""
        file = open(self._file.fileno(), "rb", closefd=False)  # noqa: SIM115  closed by the caller
        file.seek(0)
        return file

    def _put(self, data: bytes) -> None:
        self._waiting.append(data)
        self._bytes += len(data)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turns an `OSError` into one line that names the output and says what is left."""
        try:
            yield
        except OSError as error:
            kept = "" if self._created else self.kept  # a part without a row goes with this error
            raise OptionError(f"--output {self.path}: {error.strerror or error}{kept}") from error


def _opened(path: Path, create: bool) -> FileIO:
    """Unbuffered, for writing; also for reading where it is an ordinary file, which is made if it is not there."""
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_WRONLY, 0o666), "r+" if create else "w")
