"""Image folders: which files are training images, which are test images, and of which class. Nothing is decoded.

Training and evaluation read folders through this, so that both hold out the same images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cdl_deploy.data.images import SUFFIXES
from cdl_deploy.errors import DataError
from cdl_deploy.seeds import derive_seed

TEST_FOLDERS = ("test", "val")

Files = dict[str, list[Path]]
"""Image files by class."""


def find_splits(root: Path, holdout: float | None) -> tuple[Files, Files]:
    """Training and test files of an image folder; nothing is decoded. Raises DataError where a split is missing."""
    if not _is_folder(root):
        raise DataError(f"{root} is no folder: give an image folder, or 'digits' for the embedded data")
    if _is_folder(root / "train"):
        _refuse_holdout(root, holdout)
        test_root = _test_root(root)
        train_files, test_files = find_images(root / "train"), find_images(test_root)
        for missing in sorted(set(train_files) - set(test_files)):
            raise DataError(
                f"class '{missing}' has images in {root}/train but none in {test_root}: add some test images"
            )
        for missing in sorted(set(test_files) - set(train_files)):
            raise DataError(
                f"class '{missing}' has images in {test_root} but none in {root}/train: add some, or remove it"
            )
    else:
        found = find_images(root)
        if holdout is None:
            raise DataError(
                f"{root} has no train/ folder: add --holdout 0.2 to hold out a fifth of every class for testing"
            )
        train_files, test_files = split_by_name(found, holdout, root)
    return train_files, test_files


def find_test_images(root: Path, holdout: float | None) -> Files:
    """The images to test a model on: those of `test/` or `val/`, or the held-out share of one tree, or all of it.

    The held-out share is the one that `cdl train --holdout` with the same value left out. Classes may be few.
    Raises DataError where there are none.
    """
    if not _is_folder(root):
        raise DataError(f"{root} is no folder: give an image folder, or 'digits' for the embedded data")
    if _is_folder(root / "train"):
        _refuse_holdout(root, holdout)
        return find_images(_test_root(root))
    found = find_images(root)
    return found if holdout is None else split_by_name(found, holdout, root)[1]


def find_images(root: Path) -> Files:
    """Image files by class: the folders directly below `root`, each searched to any depth, in sorted order."""
    found: Files = {}
    try:
        for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
            files = sorted(_walk_images(folder))
            for name in (folder.name, *(file.name for file in files)):
                _check_name(name, folder)
            if files:
                found[folder.name] = files
    except OSError as error:
        raise _cannot_read(root, error) from None
    if not found:
        suffixes = " ".join(sorted(SUFFIXES))
        raise DataError(f"{root} has no images: expected folders named by class with files ending in {suffixes}")
    return found


def _check_name(name: str, folder: Path) -> None:
    """Raise `DataError` for a name whose bytes are not UTF-8: no record or report could hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        parent = os.fsencode(folder.parent if name == folder.name else folder).decode("utf-8", "backslashreplace")
        raise DataError(f"the name {shown} in {parent} is not UTF-8: rename it") from None


def images_below(folder: Path) -> list[Path]:
    """Image files at any depth, sorted, whatever the folders are called. Raises DataError where one may not be read."""
    try:
        return sorted(_walk_images(folder))
    except OSError as error:
        raise _cannot_read(folder, error) from None


def _walk_images(folder: Path) -> Iterator[Path]:
    """Unlike `Path.rglob`, which passes over folders that may not be read, this raises OSError for them."""

    def refuse(error: OSError) -> None:
        raise error

    for below, _, names in os.walk(folder, onerror=refuse):
        paths = (Path(below, name) for name in names)
        yield from filter(_is_image, paths)


def split_by_name(files: Files, share: float, root: Path) -> tuple[Files, Files]:
    """Split every class, at least one image on either side; the choice depends on the class's file names alone."""
    train: Files = {}
    test: Files = {}
    for name, paths in files.items():
        if len(paths) < 2:
            raise DataError(
                f"class '{name}' in {root} has one image, which cannot be both learned from and held out: add more"
            )
        order = sorted(paths, key=lambda path: derive_seed(0, "holdout", path.name))
        held = set(order[: min(len(order) - 1, max(1, round(share * len(order))))])
        train[name] = [path for path in paths if path not in held]
        test[name] = [path for path in paths if path in held]
    return train, test


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # the folder that it would be in may not be read
        raise _cannot_read(path, error) from None


def _cannot_read(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {error.filename or path}: {error.strerror or error}")


def _test_root(root: Path) -> Path:
    found = next((root / name for name in TEST_FOLDERS if _is_folder(root / name)), None)
    if found is None:
        raise DataError(
            f"{root} has train/ but neither test/ nor val/: add one, or give {root}/train with --holdout 0.2"
        )
    return found


def _refuse_holdout(root: Path, holdout: float | None) -> None:
    if holdout is not None:
        raise DataError(f"{root} has its own train/ folder, so --holdout cannot apply: leave it out")
