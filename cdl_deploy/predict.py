"""Images by the million: paths → decoding and inference in threads → rows, in order and in constant memory.

Each thread takes a batch of paths, decodes it and runs the model on it with that one thread, so that the decoding of
some batches overlaps the inference of others, no core waits for another, and none is taken twice. PIL and onnxruntime
release Python's lock while they work. Two batches a thread are under way at any time, however many paths there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from cdl_deploy.bench.machine import usable_cores
from cdl_deploy.classifier import Classifier, Prediction, Prepared, check_at_least_one
from cdl_deploy.errors import DataError


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

    `workers` is the number of threads, each of which decodes and runs the model; default: the cores that this process
    may use. Make the classifier with `threads=1`, or they compete. `paths` may be endless and is read no more than two
    batches a worker ahead; closing the generator ends the threads. Raises `OptionError` at once for a number below 1.
    """
    workers = workers if workers is not None else usable_cores()
    for name, value in (("batch_size", batch_size), ("top_k", top_k), ("workers", workers)):
        check_at_least_one(name, value)
    return _rows(classifier, iter(paths), batch_size, top_k, workers)


def classify_paths(classifier: Classifier, paths: Sequence[str | Path], top_k: int) -> list[Row]:
    """One `Row` a path, in order; those that can be read run as one batch."""
    prepared: list[Prepared] = []
    errors: list[str | None] = []
    for path in paths:
        try:
            prepared.append(classifier.prepare(path))
            errors.append(None)
        except DataError as error:
            errors.append(str(error))
    predictions = iter(classifier.classify(prepared, top_k) if prepared else [])
    return [
        Row(str(path), None, error) if error is not None else Row(str(path), next(predictions), None)
        for path, error in zip(paths, errors, strict=True)
    ]


def _rows(
    classifier: Classifier, paths: Iterator[str | Path], batch_size: int, top_k: int, workers: int
) -> Generator[Row, None, None]:
    first = list(islice(paths, workers * batch_size))
    if len(first) < workers * batch_size:  # a few images only: some for every thread
        batch_size = max(1, -(-len(first) // workers))
    paths = chain(first, paths)
    waiting: deque[Future[list[Row]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cdl-predict")
    try:
        while True:
            while len(waiting) < 2 * workers and (batch := list(islice(paths, batch_size))):
                waiting.append(pool.submit(classify_paths, classifier, batch, top_k))
            if not waiting:
                return
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
