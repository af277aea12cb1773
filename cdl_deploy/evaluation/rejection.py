"""How well the distance of a model tells images of its classes from others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.data.folder import images_below
from cdl_deploy.data.labelled import Item, LabelledImages, known_images
from cdl_deploy.errors import DataError
from cdl_deploy.evaluation.outputs import model_outputs
from cdl_deploy.runtime.classifier import Classifier


@dataclass(frozen=True)
class Rejection:
    """Known images against unknown ones; shares in percent."""

    source: str
    """Where the unknown images are."""
    unknown_images: int
    """That could be read."""
    known_images: int
    auroc: float
    """Chance that an unknown image is further away than a known one; equal ones count half."""
    threshold: float
    """The model's."""
    false_alarms: float
    """Known images above the threshold."""
    found: float
    """Unknown images above the threshold."""


def check_unknown(classifier: Classifier, folder: Path) -> list[Path]:
    """The images below `folder`. Raises OptionError for a model without a distance, DataError without images."""
    classifier.unknown_threshold()
    files = images_below(folder) if folder.is_dir() else []
    if not files:
        what = "has no images" if folder.is_dir() else "is no folder"
        raise DataError(f"--unknown {folder} {what}: give a folder of images of none of the model's classes")
    return files


def measure_rejection(
    classifier: Classifier,
    images: LabelledImages,
    folder: Path,
    skip_unknown: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
) -> Rejection:
    """Known `images` against all below `folder`. Images that cannot be read take no part.

    Raises OptionError for a model without a distance, DataError where no image can be read.
    """
    files = check_unknown(classifier, folder)
    known = known_images(images, classifier.classes, skip_unknown, str(classifier.path))
    near = _distances(classifier, known.items, images.source, batch_size, workers)
    far = _distances(classifier, files, str(folder), batch_size, workers)
    threshold = classifier.unknown_threshold()
    return Rejection(
        source=str(folder),
        unknown_images=len(far),
        known_images=len(near),
        auroc=100 * auroc(near, far),
        threshold=threshold,
        false_alarms=100 * float((near > threshold).mean()),
        found=100 * float((far > threshold).mean()),
    )


def auroc(low: NDArray[np.floating], high: NDArray[np.floating]) -> float:
    """Chance that a number of `high` is above one of `low`, equal ones counted half: Mann and Whitney's U."""
    ordered = np.sort(low)
    below, up_to = (np.searchsorted(ordered, high, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(low))


def _distances(
    classifier: Classifier, items: Sequence[Item], source: str, batch_size: int, workers: int | None
) -> NDArray[np.floating]:
    def run(batch: NDArray[np.generic]) -> NDArray[np.float32]:
        return classifier.distances(batch)[:, None]

    outputs = model_outputs(classifier.prepare, run, items, batch_size, workers)
    found = [float(output.values[0]) for output in outputs if output.values is not None]
    if not found:
        raise DataError(f"{source} has no image that can be read")
    return np.array(found)
