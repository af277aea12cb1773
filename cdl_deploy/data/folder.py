"""Image folders: which files are training images, which are test images, and of which class. Nothing is decoded.

Training and evaluation read folders through this, so that both hold out the same images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cdl_deploy.data.images import SUFFIXES
from cdl_deploy.errors import CdlError, DataError, PassingError, is_passing
from cdl_deploy.seeds import derive_seed

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
"""Names of folders that hold a folder for each class, in lower case; of several the first one is taken."""
IGNORED_FOLDERS = ("__MACOSX",)
"""What archives carry beside the images. What is hidden, such as `.ipynb_checkpoints`, is ignored as well."""

Files = dict[str, list[Path]]
"""Image files by class."""


def find_splits(root: Path, holdout: float | None) -> tuple[Files, Files]:
    """Training and test files of an image folder; nothing is decoded. Raises DataError where a split is missing."""
    if not _is_folder(root):
        raise DataError(f"{root} is no folder: give an image folder, or 'digits' for the embedded data")
    train_root = _split(root, TRAIN_FOLDERS)
    if train_root is not None:
        _refuse_holdout(root, holdout)
        test_root = _test_root(root)
        train_files, test_files = find_images(train_root), find_images(test_root)
        for missing in sorted(set(train_files) - set(test_files)):
            raise DataError(
                f"class '{missing}' has images in {train_root} but none in {test_root}: add some test images"
            )
        for missing in sorted(set(test_files) - set(train_files)):
            raise DataError(
                f"class '{missing}' has images in {test_root} but none in {train_root}: add some, or remove it"
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
    only_splits = all(folder.name.lower() in TRAIN_FOLDERS + TEST_FOLDERS for folder in _folders(root))
    if _split(root, TRAIN_FOLDERS) is not None or (only_splits and _split(root, TEST_FOLDERS) is not None):
        _refuse_holdout(root, holdout)
        return find_images(_test_root(root))
    found = find_images(root)
    return found if holdout is None else split_by_name(found, holdout, root)[1]


def find_images(root: Path) -> Files:
    """Image files by class: the folders directly below `root`, each searched to any depth, in sorted order."""
    found: Files = {}
    try:
        for folder in _folders(root):
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
    """Unlike `Path.rglob`, which passes over folders that may not be read, this raises OSError for them.

    Unlike `os.walk` before Python 3.12, it goes deeper than Python's calls. Links to folders are not followed.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                if _is_ignored(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif _is_image(path := Path(entry.path)):
                    yield path


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


def _folders(root: Path) -> list[Path]:
    """The folders directly below, sorted by name, without those that are ignored."""
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not _is_ignored(path.name))
    except OSError as error:
        raise _cannot_read(root, error) from None


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in IGNORED_FOLDERS


def _split(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder with one of these names, in upper or lower case, that holds classes.

    One that holds images and no folder is itself a class, whatever it is called: a train among cars and buses.
    """
    known = {path.name.lower(): path for path in _folders(root)}
    for folder in (known[name] for name in names if name in known):
        if _folders(folder) or not any(_is_image(path) for path in folder.iterdir()):
            return folder
    return None


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # the folder that it would be in may not be read
        raise _cannot_read(path, error) from None


def _cannot_read(path: Path, error: OSError) -> CdlError:
    kind = PassingError if is_passing(error) else DataError
    return kind(f"cannot read {error.filename or path}: {error.strerror or error}")


def _test_root(root: Path) -> Path:
    found = _split(root, TEST_FOLDERS)
    if found is None:
        raise DataError(
            f"{root} has train/ but neither test/ nor val/: add one, or give {root}/train with --holdout 0.2"
        )
    return found


def _refuse_holdout(root: Path, holdout: float | None) -> None:
    if holdout is not None:
        raise DataError(f"{root} has its own train/ folder, so --holdout cannot apply: leave it out")
