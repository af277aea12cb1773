"""Images whose classes are known, by name: what a model learns from, and what it is tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.data.folder import Files, find_test_images
from cdl_deploy.data.left_out import LeftOut
from cdl_deploy.errors import DataError, nearest

Item = Path | NDArray[Any]
"""An image file, or uint8 pixels [H, W] or [H, W, 3]."""


@dataclass(frozen=True)
class LabelledImages:
    """Images and the name of the class that each shows."""

    source: str
    """Where they come from: a folder, or the name of a data set."""
    items: Sequence[Item]
    names: Sequence[str]
    left_out: tuple[str, ...] = ()
    """Classes whose images were left out because a model does not know them."""
    others: LeftOut = field(default_factory=LeftOut, compare=False)
    """Files that were left out, no images by their names, or without a label."""

    @property
    def classes(self) -> list[str]:
        """The classes that have images, in the order of their first."""
        return list(dict.fromkeys(self.names))

    @property
    def labels(self) -> NDArray[np.int64]:
        """For each image the position of its class among all that have images, in alphabetical order."""
        positions = {name: position for position, name in enumerate(sorted(self._of_class))}
        return np.array([positions[name] for name in self.names], dtype=np.int64)

    def of_class(self, name: str) -> list[Item]:
        """The images of one class, in order."""
        return self._of_class.get(name, [])

    @cached_property
    def _of_class(self) -> dict[str, list[Item]]:
        found: dict[str, list[Item]] = {}
        for item, name in zip(self.items, self.names, strict=True):
            found.setdefault(name, []).append(item)
        return found

    def restricted(self, keep: Callable[[str], bool]) -> LabelledImages:
        """The images of the classes that `keep` approves of; the others' names are added to `left_out`."""
        kept = [(item, name) for item, name in zip(self.items, self.names, strict=True) if keep(name)]
        out = tuple(name for name in self.classes if not keep(name))
        items, names = [item for item, _ in kept], [name for _, name in kept]
        return LabelledImages(self.source, items, names, self.left_out + out, self.others)


def labelled_folder(root: Path, holdout: float | None = None, labels: str | None = None) -> LabelledImages:
    """The test images of a folder laid out as for `cdl train --data`: `test/<class>/…` or `val/`, or one tree.

    `labels`: a file that says of which class each image is, in place of folders.

    Of one tree every image is taken, or with `holdout` the share that training with the same value left out.
    Raises DataError.
    """
    others = LeftOut()
    return from_files(str(root), find_test_images(root, holdout, labels, others), others)


def from_files(source: str, files: Files, others: LeftOut | None = None) -> LabelledImages:
    """Image files by class, one class after the other in alphabetical order."""
    pairs = [(path, name) for name in sorted(files) for path in files[name]]
    paths, names = [path for path, _ in pairs], [name for _, name in pairs]
    return LabelledImages(source, paths, names, others=others or LeftOut())


def known_images(images: LabelledImages, classes: Sequence[str], skip_unknown: bool, model: str) -> LabelledImages:
    """Those of `images` whose class is among a model's `classes`.

    Raises DataError where a class is not, unless `skip_unknown` says to leave its images out, and where none is left.
    """
    known = set(classes)
    unknown = [name for name in images.classes if name not in known]
    if len(unknown) == len(images.classes):
        raise DataError(
            f"{model} knows none of the {len(unknown)} classes in {images.source} ({_some(unknown)}): "
            f"it knows {_some(classes)}"
        )
    if unknown and not skip_unknown:
        counts = Counter(images.names)
        images_of = sum(counts[name] for name in unknown)
        raise DataError(
            f"{model} does not know {_some(unknown)} in {images.source}{nearest(unknown[0], classes)}: "
            f"name folders by the model's classes, or leave {images_of} image{'s' if images_of > 1 else ''} out "
            "with --skip-unknown"
        )
    return images.restricted(lambda name: name in known)


def _some(names: Sequence[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
