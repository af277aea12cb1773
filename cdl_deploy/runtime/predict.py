"""Paths → rows: what a model says about each image, or why it cannot be read. `pipeline.py` does the work."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cdl_deploy.runtime.classifier import Classifier, Prediction, check_at_least_one
from cdl_deploy.runtime.pipeline import Failure, run_in_order


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
    check_at_least_one("top_k", top_k)
    found = run_in_order(classifier.prepare, partial(classifier.predictions, top_k=top_k), paths, batch_size, workers)
    return _rows(found)


def classify_paths(classifier: Classifier, paths: Sequence[str | Path], top_k: int) -> list[Row]:
    """One `Row` a path, in order; those that can be read run as one batch."""
    # In a thread, as all others: while one waits for it, Ctrl-C comes through.
    run = partial(classifier.predictions, top_k=top_k)
    with closing(run_in_order(classifier.prepare, run, paths, max(1, len(paths)), workers=1)) as found:
        return [_row(path, result) for path, result in found]


def _rows(
    found: Generator[tuple[str | Path, Prediction | Failure | None], None, None],
) -> Generator[Row, None, None]:
    with closing(found):
        for path, result in found:
            yield _row(path, result)


def _row(path: str | Path, result: Prediction | Failure | None) -> Row:
    if isinstance(result, Failure):
        return Row(str(path), None, result.error)
    if result is None:
        return Row(str(path), None, f"{path}: the model's answer is no number (NaN)")
    return Row(str(path), result, None)
