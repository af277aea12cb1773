"""Images by the million: decoding and inference in threads, results in order and in constant memory.

Each thread takes a batch of images, decodes it and runs the model on it with that one thread, so that the decoding of
some batches overlaps the inference of others, no core waits for another, and none is taken twice. PIL and onnxruntime
release Python's lock while they work. Two batches a thread are under way at any time, however many images there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from threading import Event
from typing import TypeVar

from cdl_deploy.errors import DataError
from cdl_deploy.runtime.classifier import check_at_least_one
from cdl_deploy.runtime.cores import usable_cores

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """In place of a result: why an image could not be read, on one line."""

    error: str


def run_in_order(
    prepare: Callable[[Item], Ready],
    run: Callable[[list[Ready]], Iterable[Result]],
    items: Iterable[Item],
    batch_size: int,
    workers: int | None = None,
) -> Generator[tuple[Item, Result | Failure], None, None]:
    """Each item with its result, or with why `prepare` raised `DataError` for it, in order.

    `prepare` makes of an item what the model takes; `run` gives a result for each of a batch of those. Both are called
    in `workers` threads; default: the cores that this process may use. Let `run` use one thread, or they compete.
    `items` may be endless and is read no more than two batches a worker ahead. Closing the generator, or letting go of
    it, drops the batches that wait; each thread ends after the one it has under way, and nobody waits for it.
    Raises `OptionError` at once for a number below 1.
    """
    workers = workers if workers is not None else usable_cores()
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        check_at_least_one(name, value)
    closed = Event()

    def run_unless_closed(batch: list[Ready]) -> Iterable[Result]:
        """A graph may take for ever: none is begun for somebody who has gone."""
        if closed.is_set():
            raise CancelledError
        return run(batch)

    found = _in_order(lambda batch: run_batch(prepare, run_unless_closed, batch), iter(items), batch_size, workers)
    return _closing(found, closed)


def run_batch(
    prepare: Callable[[Item], Ready], run: Callable[[list[Ready]], Iterable[Result]], items: Sequence[Item]
) -> list[tuple[Item, Result | Failure]]:
    """Each item with its result, or with its failure; those that can be read run as one batch."""
    ready: list[Ready] = []
    errors: list[str | None] = []
    for item in items:
        try:
            ready.append(prepare(item))
            errors.append(None)
        except DataError as error:
            errors.append(str(error))
    results = iter(run(ready) if ready else ())
    return [
        (item, next(results) if error is None else Failure(error)) for item, error in zip(items, errors, strict=True)
    ]


def _closing(found: Generator[Result, None, None], closed: Event) -> Generator[Result, None, None]:
    try:
        yield from found
    finally:
        closed.set()


def _in_order(
    work: Callable[[list[Item]], list[tuple[Item, Result | Failure]]],
    items: Iterator[Item],
    batch_size: int,
    workers: int,
) -> Generator[tuple[Item, Result | Failure], None, None]:
    first = list(islice(items, workers * batch_size))
    if len(first) < workers * batch_size:  # a few images only: some for every thread
        batch_size = max(1, -(-len(first) // workers))
    items = chain(first, items)
    waiting: deque[Future[list[tuple[Item, Result | Failure]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cdl-images")
    try:
        while True:
            while len(waiting) < 2 * workers and (batch := list(islice(items, batch_size))):
                waiting.append(pool.submit(work, batch))
            if not waiting:
                return
            yield from waiting.popleft().result()
    finally:
        # No waiting: the collector may run this anywhere, also in a starting thread, which holds the lock of all.
        pool.shutdown(wait=False, cancel_futures=True)
