"""Images by the million: paths → decoding in threads → batches → rows, in order and in constant memory.

PIL and onnxruntime both release Python's lock while they work, so decoding in a few threads overlaps inference.
At most two batches of decoded images wait at any time, however many paths there are.
"""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from cdl_deploy.classifier import Classifier, Prediction, check_at_least_one
from cdl_deploy.errors import DataError
from cdl_deploy.images import SUFFIXES, ByteArray, FloatArray

STDIN = "-"


@dataclass(frozen=True)
class Row:
    """The result for one path: a prediction or an error."""

    path: str
    """The path as it was given or found."""
    prediction: Prediction | None
    """What the model says, if the image could be read."""
    error: str | None
    """Why it could not be read, on one line."""


def predict_rows(
    classifier: Classifier,
    paths: Iterable[str | Path],
    batch_size: int = 32,
    top_k: int = 5,
    workers: int | None = None,
) -> Generator[Row, None, None]:
    """One `Row` a path, in order; an image that cannot be read gives a row with its error and the rest go on.

    `workers` is the number of decoding threads; default: the cores of the machine. `paths` may be endless and is read
    no more than two batches ahead; closing the generator ends the threads. Raises `OptionError` at once for a number
    below 1.
    """
    workers = workers if workers is not None else os.cpu_count() or 1
    for name, value in (("batch_size", batch_size), ("top_k", top_k), ("workers", workers)):
        check_at_least_one(name, value)
    return _rows(classifier, iter(paths), batch_size, top_k, workers)


def _rows(
    classifier: Classifier, paths: Iterator[str | Path], batch_size: int, top_k: int, workers: int
) -> Generator[Row, None, None]:
    def decode(path: str | Path) -> FloatArray | ByteArray | str:
        try:
            return classifier.prepare(path)
        except DataError as error:
            return str(error)

    ahead = 2 * max(batch_size, workers)
    waiting: deque[tuple[str, Future[FloatArray | ByteArray | str]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cdl-decode")
    try:
        while True:
            for path in islice(paths, ahead - len(waiting)):
                waiting.append((str(path), pool.submit(decode, path)))
            if not waiting:
                return
            batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
            decoded = [(path, future.result()) for path, future in batch]
            # While this batch runs, the pool decodes the next: keep it supplied.
            for path in islice(paths, ahead - len(waiting)):
                waiting.append((str(path), pool.submit(decode, path)))
            tensors = [result for _, result in decoded if not isinstance(result, str)]
            predictions = iter(classifier.classify(np.stack(tensors), top_k) if tensors else [])
            for path, result in decoded:
                yield Row(path, None, result) if isinstance(result, str) else Row(path, next(predictions), None)
    finally:
        pool.shutdown(cancel_futures=True)


def expand_paths(sources: Iterable[str], stdin: Iterable[str] = ()) -> Iterator[str]:
    """Paths of the images that `sources` name, found as they are asked for.

    A source is a file (any suffix), a folder (searched recursively, in sorted order, for files with an image's suffix;
    hidden ones and links to folders are skipped), a pattern with `*`, `?` or `[` that the shell left alone, or `-` for
    one path a line from `stdin`. Raises `DataError` for a source that is not there, a folder without images, or a
    pattern without a match.
    """
    for source in sources:
        if source == STDIN:
            yield from (line.rstrip("\r\n") for line in stdin if line.strip())
        elif os.path.isdir(source):
            yield from _require(_walk(source), f"{source}: no images in this folder (looked for {_known_suffixes()})")
        elif os.path.lexists(source):
            yield source
        elif glob.has_magic(source):
            matches = sorted(glob.iglob(source, recursive=True))
            images = (path for match in matches for path in (_walk(match) if os.path.isdir(match) else [match]))
            yield from _require(images, f"{source}: no file matches this pattern")
        else:
            raise DataError(f"{source}: no such file or folder")


def check_sources(sources: Iterable[str]) -> None:
    """Raise `DataError` for the first source that names nothing, before any work is done."""
    for source in sources:
        if source != STDIN:
            next(expand_paths([source]), None)


def _require(paths: Iterator[str], otherwise: str) -> Iterator[str]:
    first = next(paths, None)
    if first is None:
        raise DataError(otherwise)
    yield first
    yield from paths


def _walk(folder: str) -> Iterator[str]:
    """Image files below `folder`, depth first, each level sorted by name; one level in memory at a time."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield entry.path


def _known_suffixes() -> str:
    return ", ".join(sorted(SUFFIXES))
