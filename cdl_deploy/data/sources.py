"""Data sets: an image folder, or one that is known by name, such as the embedded digits.

Training, `--add`, `cdl evaluate` and `cdl inspect` all open their data here. Another package adds a data set by an
entry point in the group `cdl_deploy.data`: its name is the word to give as `--data`, and its object is a function
without arguments that returns an `ImageSource`.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cdl_deploy.counted import counted
from cdl_deploy.data.folder import find_splits
from cdl_deploy.data.images import HIGHEST, PAGES, load_image
from cdl_deploy.data.labelled import Item, LabelledImages, from_files, labelled_folder
from cdl_deploy.data.left_out import LeftOut
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
    others: LeftOut = field(default_factory=LeftOut, compare=False)
    """Files that were left out, no images by their names, or without a label."""
    notes: tuple[str, ...] = ()
    """What one has to know of its images, a line each."""


def open_source(
    data: str,
    holdout: float | None,
    skip_bad: bool,
    labels: str | None = None,
    on_check: OnCheck | None = None,
    checked: Collection[str] | None = None,
) -> ImageSource:
    """The data set called `data`, or the image folder there. Raises DataError for anything that cannot be trained on.

    `labels`: a file that says of which class each image of the folder is, in place of folders a class. Every image of
    a folder is decoded once, or those of the classes `checked` alone.
    """
    if is_named(data):
        _refuse_labels(data, labels)
        return open_named(data)
    return image_folder(Path(data), holdout, skip_bad, labels, on_check, checked)


def open_test_images(option: str, data: str, holdout: float | None, labels: str | None = None) -> LabelledImages:
    """The images to test a model on: those of the data set called `data`, or of the folder there, not yet decoded.

    `option`: where `data` was given, for messages. Raises DataError.
    """
    if not is_named(data):
        return labelled_folder(Path(data), holdout, labels)
    _refuse_labels(data, labels)
    if holdout is not None:
        raise DataError(f"{option} {data} has a fixed test split, so --holdout cannot apply: leave it out")
    return open_named(data).test


def _refuse_labels(data: str, labels: str | None) -> None:
    if labels is not None:
        raise DataError(f"--labels {labels} is about an image folder, and {data} is a data set by name: leave it out")


def located(data: str) -> str:
    """`data` as a run records it: the name of a data set as it is, a folder's path from the root of the file system."""
    return data if is_named(data) else os.path.abspath(data)


def located_labels(labels: str | None) -> str | None:
    """The labels file likewise; a name that stands for a file within the image folder stays what it is."""
    return os.path.abspath(labels) if labels is not None and os.path.isfile(labels) else labels


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
    return _found_on(tuple(sys.path))


@cache
def _found_on(path: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    """Those of all packages on Python's `path`: looking at every one takes some 10 ms."""
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
    labels: str | None = None,
    on_check: OnCheck | None = None,
    checked: Collection[str] | None = None,
) -> ImageSource:
    """`root/train/<class>/…` with `test/` or `val/`, or one tree `root/<class>/…` split by `holdout`.

    Every image, or every one of the classes `checked`, is decoded once, here, so that a damaged one is found before
    hours of training and not after.
    """
    skipped: list[str] = []
    others = LeftOut()
    train_files, test_files = find_splits(root, holdout, labels, others)
    classes = tuple(sorted(train_files))
    names = [name for name in classes if checked is None or name in checked]
    known: list[dict[str, Any]] = []
    images = [path for files in (train_files, test_files) for name in names for path in files[name]]
    bad = unreadable(images, on_check, known)
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
    return ImageSource(
        str(root),
        classes,
        train,
        test,
        photographs=True,
        skipped=tuple(skipped),
        others=others,
        notes=(
            *_of_lower_bits([info[HIGHEST] for info in known if HIGHEST in info]),
            *_of_pages(sum(PAGES in info for info in known), len(images)),
        ),
    )


def _of_lower_bits(highest: Sequence[int]) -> tuple[str, ...]:
    """What to say of images of 16 bits, by their largest values, where a camera of 10, 12 or 14 bits wrote them."""
    bits = 14 if highest and 4095 < max(highest) < 1 << 14 else 12
    dark = sum(value < 1 << bits for value in highest)
    if not dark:
        return ()
    return (
        f"{dark:,} of {counted(len(highest), 'image')} of 16 bits use{'s' * (dark == 1)} the lower {bits} alone "
        f"(values below {1 << bits:,}), and 65,535 is white, so they become dark: where a camera of "
        f"{bits} bits wrote them, multiply by {1 << 16 - bits} first",
    )


def _of_pages(several: int, images: int) -> tuple[str, ...]:
    """What to say of TIFF files that hold several pages, such as the planes of a stack."""
    if not several:
        return ()
    return (
        f"{several:,} of {counted(images, 'image')} {'is a TIFF file' if several == 1 else 'are TIFF files'} of "
        "several pages, of which the first alone is looked at: save each page that matters as a file of its own",
    )


def unreadable(
    paths: Sequence[Path], on_check: OnCheck | None = None, known: list[dict[str, Any]] | None = None
) -> dict[Path, str]:
    """Decode every image in a pool of threads; returns the reason for each that cannot be read.

    `known` gets, of every image of which there is something to know, `HIGHEST` and `PAGES`.
    """

    def reason(path: Path) -> str | None:
        try:
            image = load_image(path)
        except DataError as error:
            return str(error)
        if known is not None and (said := {key: image.info[key] for key in (HIGHEST, PAGES) if key in image.info}):
            known.append(said)
        return None

    bad: dict[Path, str] = {}
    with ThreadPoolExecutor() as pool:
        for count, (path, problem) in enumerate(zip(paths, pool.map(reason, paths), strict=True), start=1):
            if problem is not None:
                bad[path] = problem
            if on_check is not None and (count % 100 == 0 or count == len(paths)):
                on_check(count, len(paths))
    return bad


def planned_fingerprint(source: ImageSource, classes: Sequence[str]) -> str:
    """SHA-256 over class, name and size of every image of these classes, wherever their folder lies.

    Tells, when a run goes on, whether the tasks that are still to be learned have the images they had.
    """
    digest = hashlib.sha256()
    for images in (source.train, source.test):
        for name in classes:
            for item in images.of_class(name):
                pixels = isinstance(item, np.ndarray)
                what = item.tobytes() if isinstance(item, np.ndarray) else _name_and_size(item)
                digest.update(f"{name}/{pixels}:".encode() + what + b"\n")
        digest.update(b"--\n")
    return digest.hexdigest()[:16]


def _name_and_size(path: Path) -> bytes:
    return f"{path.name}:{path.stat().st_size}".encode()


def fingerprint(items: Sequence[Item]) -> str:
    """SHA-256 over names and sizes of files, or over pixels: tells whether two runs saw the same images."""
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item, np.ndarray):
            digest.update(item.tobytes())
        else:
            digest.update(f"{item.parent.name}/{item.name}:{item.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]
