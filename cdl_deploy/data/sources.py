"""Data sets: an image folder, or one that is known by name, such as the embedded digits.

Training, `--add`, `cdl evaluate` and `cdl inspect` all open their data here. Another package adds a data set by an
entry point in the group `cdl_deploy.data`: its name is the word to give as `--data`, and its object is a function
without arguments that returns an `ImageSource`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cdl_deploy.data.folder import find_splits
from cdl_deploy.data.images import load_image
from cdl_deploy.data.labelled import Item, LabelledImages, from_files, labelled_folder
from cdl_deploy.errors import DataError

DIGITS_TEST_SHARE = 0.2
GROUP = "cdl_deploy.data"
"""Entry points of other packages' data sets."""

OnCheck = Callable[[int, int], None]
"""Called with (images checked, images in all)."""


@dataclass(frozen=True)
class ImageSource:
    """A data set: class names in alphabetical order, and a training and a test split."""

    name: str
    """The folder, or the name of the data set."""
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    photographs: bool
    """Whether flips and strong crops leave the class of an image as it is."""
    skipped: tuple[str, ...] = ()
    """Unreadable images that were left out."""


def open_source(
    data: str,
    holdout: float | None,
    skip_bad: bool,
    on_check: OnCheck | None = None,
    checked: Collection[str] | None = None,
) -> ImageSource:
    """The data set called `data`, or the image folder there. Raises DataError for anything that cannot be trained on.

    Every image of a folder is decoded once, or those of the classes `checked` alone.
    """
    if is_named(data):
        return open_named(data)
    return image_folder(Path(data), holdout, skip_bad, on_check, checked)


def open_test_images(option: str, data: str, holdout: float | None) -> LabelledImages:
    """The images to test a model on: those of the data set called `data`, or of the folder there, not yet decoded.

    `option`: where `data` was given, for messages. Raises DataError.
    """
    if not is_named(data):
        return labelled_folder(Path(data), holdout)
    if holdout is not None:
        raise DataError(f"{option} {data} has a fixed test split, so --holdout cannot apply: leave it out")
    return open_named(data).test


def is_named(data: str) -> bool:
    """Whether `data` is the name of a data set; a folder that is called so is given as `./NAME`."""
    return data in NAMED or data in _others()


def open_named(name: str) -> ImageSource:
    """The data set of a name; `is_named` has said that there is one."""
    if name in NAMED:
        return NAMED[name]()
    source = _others()[name].load()()
    if not isinstance(source, ImageSource):
        raise DataError(f"data set {name!r} of another package gives a {type(source).__name__}, expected ImageSource")
    return source


def _others() -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


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
        return LabelledImages("digits", list(pixels[chosen]), [str(label) for label in labels[chosen]])

    return ImageSource("digits", tuple(str(d) for d in range(10)), split(~held_out), split(held_out), photographs=False)


NAMED: dict[str, Callable[[], ImageSource]] = {"digits": digits}
"""The data sets that come with this package, by name."""


def image_folder(
    root: Path,
    holdout: float | None = None,
    skip_bad: bool = False,
    on_check: OnCheck | None = None,
    checked: Collection[str] | None = None,
) -> ImageSource:
    """`root/train/<class>/…` with `test/` or `val/`, or one tree `root/<class>/…` split by `holdout`.

    Every image, or every one of the classes `checked`, is decoded once, here, so that a damaged one is found before
    hours of training and not after.
    """
    skipped: list[str] = []
    train_files, test_files = find_splits(root, holdout)
    classes = tuple(sorted(train_files))
    names = [name for name in classes if checked is None or name in checked]
    bad = unreadable([path for files in (train_files, test_files) for name in names for path in files[name]], on_check)
    if bad:
        first, reason = next(iter(bad.items()))
        if not skip_bad:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise DataError(f"cannot read image {reason}{more}: repair or remove it, or go on without with --skip-bad")
        skipped = [str(path) for path in bad]
        for files in (train_files, test_files):
            for name in classes:
                files[name] = [path for path in files[name] if path not in bad]
                if not files[name]:
                    raise DataError(f"class '{name}' has no readable image left ({first} was the first unreadable one)")
    train, test = (from_files(str(root), files) for files in (train_files, test_files))
    return ImageSource(str(root), classes, train, test, photographs=True, skipped=tuple(skipped))


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


def fingerprint(items: Sequence[Item]) -> str:
    """SHA-256 over names and sizes of files, or over pixels: tells whether two runs saw the same images."""
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item, np.ndarray):
            digest.update(item.tobytes())
        else:
            digest.update(f"{item.parent.name}/{item.name}:{item.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]
