"""What a run's options ask of its images beside what every run does: checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cdl_deploy.data.labelled import Item
from cdl_deploy.data.sources import ImageSource
from cdl_deploy.errors import DataError, OptionError
from cdl_deploy.run.config import DataConfig, MethodConfig, OptimConfig, default_batch_size
from cdl_deploy.run.presets import BENCHMARKS
from cdl_deploy.training.data.loading import load_known


def check_benchmark(data: DataConfig, source: ImageSource) -> None:
    """Raise DataError unless the data set has as many classes as the benchmark."""
    if data.benchmark is None:
        return
    wanted = BENCHMARKS[data.benchmark].classes
    if len(source.classes) != wanted:
        raise DataError(
            f"--benchmark {data.benchmark} has {wanted} classes, and {data.data} has {len(source.classes)}: "
            "give its image folder with --data DIR"
        )


def check_whole(crop: str, source: ImageSource, classes: Sequence[str], advice: str = "give --crop centre") -> None:
    """Raise DataError for an image of these classes that is not square, where none is cropped."""
    if crop != "none":
        return
    items = [item for images in (source.train, source.test) for name in classes for item in images.of_class(name)]
    with ThreadPoolExecutor() as pool:
        for item, (width, height) in zip(items, pool.map(_size, items), strict=True):
            if width != height:
                name = "an image" if not isinstance(item, Path) else str(item)
                raise DataError(
                    f"{name} has {width}×{height} pixels, and --crop none sees square images only: {advice}"
                )


def _size(item: Item) -> tuple[int, int]:
    return load_known(item).size


def check_last_batch(
    number: int, classes: Sequence[str], source: ImageSource, method: MethodConfig, optim: OptimConfig
) -> None:
    """Raise OptionError where an epoch of task `number` would have no whole batch, and nothing would be learned."""
    if not optim.drop_last or not method.trains_in(number):
        return
    counts = [len(source.train.of_class(name)) for name in classes]
    left = sum(count - int(method.alpha_holdout * count) for count in counts)
    size = optim.batch_size or default_batch_size(sum(counts))
    if left < size:
        raise OptionError(
            f"--last-batch drop: task {number} has {left} images to learn from, fewer than a batch of {size}, and "
            f"would learn nothing: give --batch-size {max(1, left)} or less, or --last-batch keep"
        )
