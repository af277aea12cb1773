"""What a model puts out for many images, one after another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.data.images import FloatArray
from cdl_deploy.data.labelled import Item
from cdl_deploy.runtime.pipeline import Failure, run_in_order

Prepare = Callable[[Item], NDArray[Any]]
"""An image → what the graph takes, without the batch dimension. Raises DataError where it cannot be read."""
Run = Callable[[NDArray[Any]], FloatArray]
"""A batch of those → one row [B, n] an image."""


@dataclass(frozen=True)
class ImageOutput:
    """What came out for one image, or why it could not be read."""

    path: str
    """The file; for pixels their number, such as `image 7`."""
    values: FloatArray | None
    """[n]; None where the image could not be read."""
    error: str | None = None
    """On one line."""


def model_outputs(
    prepare: Prepare, run: Run, items: Iterable[Item], batch_size: int = 32, workers: int | None = None
) -> Generator[ImageOutput, None, None]:
    """One `ImageOutput` an item, in order; see `run_in_order`, which does the work in `workers` threads."""
    with closing(run_in_order(prepare, lambda batch: run(np.stack(batch)), items, batch_size, workers)) as found:
        for number, (item, result) in enumerate(found, 1):
            name = str(item) if isinstance(item, Path) else f"image {number}"
            if isinstance(result, Failure):
                yield ImageOutput(name, None, result.error)
            elif not np.isfinite(result).all():
                yield ImageOutput(name, None, f"{name}: the model's answer is no number (NaN)")
            else:
                yield ImageOutput(name, result)
