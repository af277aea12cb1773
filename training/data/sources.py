"""Where labelled images come from: the embedded digits, or an image folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from cdl_deploy.data.folder import Files, find_splits
from cdl_deploy.errors import DataError

DIGITS_TEST_SHARE = 0.2

Item = Path | npt.NDArray[np.uint8]
"""An image file, or grey pixels [height, width] uint8."""
OnCheck = Callable[[int, int], None]
"""Called with (images checked, images in all)."""


@dataclass(frozen=True)
class LabelledImages:
    """One split of a data set. `labels` index the data set's class names."""

    items: Sequence[Item]
    labels: npt.NDArray[np.int64]

    def of_class(self, label: int) -> list[Item]:
        """The items of one class, in order."""
        return [self.items[i] for i in np.flatnonzero(self.labels == label).tolist()]


@dataclass(frozen=True)
class ImageSource:
    """A data set: class names in alphabetical order, and a training and a test split."""

    name: str
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    photographs: bool
    """Whether flips and strong crops leave the class of an image as it is."""
    skipped: tuple[str, ...] = ()
    """Unreadable images that were left out."""


def load_image(item: Item) -> Image.Image:
    """The image as RGB, upright (EXIF rotation applied). Raises DataError naming the file."""
    if isinstance(item, np.ndarray):
        return Image.fromarray(item).convert("RGB")
    try:
        with Image.open(item) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{item} has vanished since the run began: restore it and continue with --resume") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read image {item}: {error}") from None


def fingerprint(items: Sequence[Item]) -> str:
    """SHA-256 over names and sizes of files, or over pixels: tells whether two runs saw the same images."""
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item, np.ndarray):
            digest.update(item.tobytes())
        else:
            digest.update(f"{item.parent.name}/{item.name}:{item.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def open_source(data: str, holdout: float | None, skip_bad: bool, on_check: OnCheck | None = None) -> ImageSource:
    """`digits`, or the image folder at `data`. Raises DataError for anything that cannot be trained on."""
    if data == "digits":
        return digits()
    return image_folder(Path(data), holdout, skip_bad, on_check)


def digits() -> ImageSource:
    """scikit-learn's handwritten digits: 1,797 real 8x8 scans, every fifth image of each class held out."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise DataError("--data digits needs scikit-learn: pip install 'cdl-deploy[train]'") from None
    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    rank = np.zeros(len(labels), dtype=np.int64)  # position of an image among those of its class
    for label in range(10):
        rank[labels == label] = np.arange(np.sum(labels == label))
    held_out = rank % round(1 / DIGITS_TEST_SHARE) == 0

    def split(chosen: npt.NDArray[np.bool_]) -> LabelledImages:
        return LabelledImages(list(pixels[chosen]), labels[chosen])

    return ImageSource("digits", tuple(str(d) for d in range(10)), split(~held_out), split(held_out), photographs=False)


def image_folder(
    root: Path, holdout: float | None = None, skip_bad: bool = False, on_check: OnCheck | None = None
) -> ImageSource:
    """`root/train/<class>/…` with `test/` or `val/`, or one tree `root/<class>/…` split by `holdout`.

    Every image is decoded once, here, so that a damaged one is found before hours of training and not after.
    """
    skipped: list[str] = []
    train_files, test_files = find_splits(root, holdout)
    classes = tuple(sorted(train_files))
    bad = unreadable(
        [path for files in (train_files, test_files) for name in classes for path in files[name]], on_check
    )
    if bad:
        first, reason = next(iter(bad.items()))
        if not skip_bad:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise DataError(f"{reason}{more}: repair or remove it, or go on without with --skip-bad")
        skipped = [str(path) for path in bad]
        for files in (train_files, test_files):
            for name in classes:
                files[name] = [path for path in files[name] if path not in bad]
                if not files[name]:
                    raise DataError(f"class '{name}' has no readable image left ({first} was the first unreadable one)")
    return ImageSource(
        str(root), classes, _split(train_files), _split(test_files), photographs=True, skipped=tuple(skipped)
    )


def unreadable(paths: Sequence[Path], on_check: OnCheck | None = None) -> dict[Path, str]:
    """Decode every image in a pool of threads; returns the reason for each that cannot be read."""

    def reason(path: Path) -> str | None:
        try:
            load_image(path)
        except DataError as error:
            return str(error)
        return None

    bad: dict[Path, str] = {}
    with ThreadPoolExecutor() as pool:
        for count, (path, problem) in enumerate(zip(paths, pool.map(reason, paths), strict=True), start=1):
            if problem is not None:
                bad[path] = problem
            if on_check is not None and (count % 100 == 0 or count == len(paths)):
                on_check(count, len(paths))
    return bad


def _split(files: Files) -> LabelledImages:
    items = [path for name in sorted(files) for path in files[name]]
    labels = [label for label, name in enumerate(sorted(files)) for _ in files[name]]
    return LabelledImages(items, np.array(labels, dtype=np.int64))
