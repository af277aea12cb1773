"""What a model puts out for many images, one after another."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.errors import DataError
from cdl_deploy.evaluation.labelled_images import Item
from cdl_deploy.images import FloatArray

Prepare = Callable[[Item], NDArray[Any]]
"""An image → what the graph takes, without the batch dimension. Raises DataError where it cannot be read."""
Run = Callable[[NDArray[Any]], FloatArray]
"""A batch of those → one row [B, n] an image."""


@dataclass(frozen=True)
class Output:
    """What came out for one image, or why it could not be read."""

    path: str
    """The file; for pixels their place, such as `image 7`."""
    values: FloatArray | None
    """[n]; None where the image could not be read."""
    error: str | None = None
    """On one line."""


def model_outputs(
    prepare: Prepare, run: Run, items: Iterable[Item], batch_size: int = 32, workers: int | None = None
) -> Generator[Output, None, None]:
    """One `Output` an item, in order; decoding in `workers` threads overlaps the model, two batches ahead at most."""
    return _outputs(prepare, run, iter(items), batch_size, workers or os.cpu_count() or 1)


def _outputs(
    prepare: Prepare, run: Run, items: Iterator[Item], batch_size: int, workers: int
) -> Generator[Output, None, None]:
    def decode(item: Item) -> NDArray[Any] | str:
        try:
            return prepare(item)
        except DataError as error:
            return str(error)

    waiting: deque[tuple[str, Future[NDArray[Any] | str]]] = deque()
    numbered = enumerate(items, 1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cdl-decode")

    def supply() -> None:
        for number, item in islice(numbered, 2 * batch_size - len(waiting)):
            name = str(item) if isinstance(item, Path) else f"image {number}"
            waiting.append((name, pool.submit(decode, item)))

    try:
        supply()
        while waiting:
            batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
            decoded = [(name, future.result()) for name, future in batch]
            supply()  # while this batch runs, the pool decodes the next
            arrays = [result for _, result in decoded if not isinstance(result, str)]
            rows: Iterator[FloatArray] = iter(run(np.stack(arrays)) if arrays else ())
            for name, result in decoded:
                yield Output(name, None, result) if isinstance(result, str) else Output(name, next(rows))
    finally:
        pool.shutdown(cancel_futures=True)
