"""Image folders: which files are training images, which are test images, and of which class. Nothing is decoded.

A folder a class, or labels in a file beside the images (`labels_file.py`). Training and evaluation read folders through
this, so that both hold out the same images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cdl_deploy.data.class_names import composed, seen_as
from cdl_deploy.data.images import USUAL_SUFFIXES, is_image_name
from cdl_deploy.data.labels_file import USUAL_NAMES, match_labels, read_labels
from cdl_deploy.data.left_out import LeftOut, listed
from cdl_deploy.data.paths import is_ignored
from cdl_deploy.errors import CdlError, DataError, PassingError, is_passing
from cdl_deploy.seeds import derive_seed

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
"""Names of folders that hold a folder for each class, in lower case; of several the first one is taken."""
NO_CLASSES = ("images", "data", "imgs", "img")
"""What folders of images are called whose labels stand elsewhere."""

Files = dict[str, list[Path]]
"""Image files by class."""


def find_splits(
    root: Path, holdout: float | None, labels: str | None = None, left_out: LeftOut | None = None
) -> tuple[Files, Files]:
    """Training and test files of an image folder; nothing is decoded. Raises DataError where a split is missing.

    `labels`: a file that says of which class each image is, in place of folders. `left_out` is told of other files.
    """
    _check_folder(root)
    left_out = LeftOut() if left_out is None else left_out
    if labels is not None:
        train_files, test_files = _labelled_splits(root, labels, holdout, left_out)
        if not train_files or not test_files:
            missing, named = ("train", "test") if not train_files else ("test", "train")
            raise DataError(f"--labels {labels} names images to {named} with and none to {missing} with: add some")
        _check_same_classes(train_files, test_files, f"the training images of {labels}", f"the test images of {labels}")
        return train_files, test_files
    train_root = _split(root, TRAIN_FOLDERS)
    if train_root is None:
        found = find_images(root, left_out)
        if holdout is None:
            raise DataError(
                f"{root} has no train/ folder: add --holdout 0.2 to hold out a fifth of every class for testing"
            )
        return split_by_name(found, holdout, root)
    _refuse_holdout(root, holdout)
    test_root = _test_root(root)
    _refuse_labels_elsewhere(root, test_root)
    train_files, test_files = find_images(train_root, left_out), find_images(test_root, left_out)
    for folder in _folders(root):
        if folder not in (train_root, test_root) and (folder.name.lower() in TRAIN_FOLDERS + TEST_FOLDERS):
            left_out.unused[folder.name] += len(images_below(folder))
    _check_same_classes(train_files, test_files, str(train_root), str(test_root))
    return train_files, test_files


def find_test_images(
    root: Path, holdout: float | None, labels: str | None = None, left_out: LeftOut | None = None
) -> Files:
    """The images to test a model on: those of `test/` or `val/`, or the held-out share of one tree, or all of it.

    The held-out share is the one that `cdl train --holdout` with the same value left out. Classes may be few.
    `labels` and `left_out` as for `find_splits`. Raises DataError where there are none.
    """
    _check_folder(root)
    left_out = LeftOut() if left_out is None else left_out
    if labels is not None:
        train_files, test_files = _labelled_splits(root, labels, holdout, left_out, all_alike=True)
        return test_files or train_files
    only_splits = all(folder.name.lower() in TRAIN_FOLDERS + TEST_FOLDERS for folder in _folders(root))
    if _split(root, TRAIN_FOLDERS) is not None or (only_splits and _split(root, TEST_FOLDERS) is not None):
        _refuse_holdout(root, holdout)
        test_root = _test_root(root)
        _refuse_labels_elsewhere(root, test_root)
        return find_images(test_root, left_out)
    found = find_images(root, left_out)
    return found if holdout is None else split_by_name(found, holdout, root)[1]


def _check_folder(root: Path) -> None:
    for part in (root, *root.parents):
        _check_name(part.name, part)
    if not _is_folder(root):
        raise DataError(f"{root} is no folder: give an image folder, or 'digits' for the embedded data")


def _check_same_classes(train_files: Files, test_files: Files, train: str, test: str) -> None:
    for missing in sorted(set(train_files) - set(test_files)):
        raise DataError(f"class '{missing}' has images in {train} but none in {test}: add some test images")
    for missing in sorted(set(test_files) - set(train_files)):
        raise DataError(f"class '{missing}' has images in {test} but none in {train}: add some, or remove it")


def _labelled_splits(
    root: Path, labels: str, holdout: float | None, left_out: LeftOut, all_alike: bool = False
) -> tuple[Files, Files]:
    """Training and test files of a folder whose classes stand in a file.

    The split is the file's own column, or that of the folders with a file each (one may have a folder a class, as
    Tiny-ImageNet's train/ has), or that of the first folder in every path; otherwise `holdout` makes it, or, where
    `all_alike`, every image is one to test on.
    """
    train_root, test_root = _named_folder(root, TRAIN_FOLDERS), _named_folder(root, TEST_FOLDERS)
    file = next((path for path in (Path(labels), root / labels) if path.is_file()), None)
    if file is None:
        test_root = _named_folder(root, TEST_FOLDERS, labels) or test_root
        parts = [part for part in (train_root, test_root) if part is not None]
        if not any((part / labels).is_file() for part in parts):
            raise DataError(f"--labels {labels} does not exist, nor does {root / labels}: give the file's path")
        _refuse_holdout(root, holdout)
        found = {part: _labelled_or_by_folder(part, labels, left_out, all_alike) for part in parts}
        return (found.get(train_root, {}) if train_root else {}, found.get(test_root, {}) if test_root else {})
    splits = _labelled(root, file, left_out)
    known = {name: files for name, files in splits.items() if name in TRAIN_FOLDERS + TEST_FOLDERS}
    if not known or "" in splits:
        together = splits.get("", {})
        if set(splits) != {""}:
            odd = next(name for name in splits if name)
            raise DataError(f"--labels {file}: '{odd}' is no split, or not every image has one: expected train or test")
        if holdout is not None:
            return split_by_name(together, holdout, root)
        if all_alike:
            return {}, together
        raise DataError(f"{file} says nothing of train and test: add --holdout 0.2 to hold out a fifth of every class")
    if holdout is not None:
        raise DataError(f"{file} says what to train and to test with, so --holdout cannot apply: leave it out")
    train = next((name for name in TRAIN_FOLDERS if name in known), "")
    test = next((name for name in TEST_FOLDERS if name in known), "")
    for name in known.keys() - {train, test}:
        left_out.unused[name] += sum(map(len, known[name].values()))
    return known.get(train, {}), known.get(test, {})


def _labelled_or_by_folder(part: Path, labels: str, left_out: LeftOut, all_alike: bool) -> Files:
    """One split, by the labels file in it or else by its folders. `all_alike`: training is not asked for."""
    if (part / labels).is_file():
        return _labelled(part, part / labels, left_out)[""]
    wanted = _folders(part) and not (all_alike and part.name.lower() in TRAIN_FOLDERS)
    return find_images(part, left_out) if wanted else {}


def _labelled(root: Path, file: Path, left_out: LeftOut) -> dict[str, Files]:
    """Files by class, by what the labels file says of the split; images and others that it does not name are left out.

    Without a word of it the split is the first folder of every path, if those are splits.
    """
    others: list[str] = []
    try:
        images = sorted(_walk_images(root, others.append))
    except OSError as error:
        raise _cannot_read(root, error) from None
    matched, without = match_labels(file, read_labels(file), root, images)
    _check_names_below(root, [image for image, _ in matched])
    for _, label in matched:
        if "/" in label.name or label.name in (".", ".."):
            raise DataError(f"--labels {file}, line {label.line}: class '{label.name}' has a '/': leave it out")
    left_out.add("", [name for name in others if Path(name) != file])
    left_out.unlabelled += len(without)
    firsts = [image.relative_to(root).parts[0].lower() for image, _ in matched]
    by_folder = (
        not any(label.split for _, label in matched)
        and set(firsts) <= set(TRAIN_FOLDERS + TEST_FOLDERS)
        and set(firsts) & set(TRAIN_FOLDERS) != set()
        and set(firsts) & set(TEST_FOLDERS) != set()
    )
    found: dict[str, Files] = {}
    for first, (image, label) in zip(firsts, matched, strict=True):
        files = found.setdefault(first if by_folder else label.split, {})
        files.setdefault(label.name, []).append(image)
    if not found:
        raise DataError(f"--labels {file} gives no image a class")
    return {split: {name: sorted(files[name]) for name in sorted(files)} for split, files in found.items()}


def find_images(root: Path, left_out: LeftOut | None = None) -> Files:
    """Image files by class: the folders directly below `root`, each searched to any depth, in sorted order.

    Names of classes are in Unicode's composed form (NFC), however the file system spells them. Raises DataError where
    there are none, for a folder without images, and for names that differ in case or spaces alone.
    """
    found: Files = {}
    empty: dict[str, LeftOut] = {}
    try:
        for folder in _folders(root):
            others: list[str] = []
            files = sorted(_walk_images(folder, others.append))
            _check_name(folder.name, folder)
            _check_names_below(folder, files)
            name = composed(folder.name)
            own = LeftOut()
            own.add(name, others)
            if left_out is not None:
                left_out.merge(own)
            if files:
                found[name] = sorted(found.get(name, []) + files)
            else:
                empty[name] = own
        if left_out is not None:
            with os.scandir(root) as entries:
                beside = [entry.name for entry in entries if not entry.is_dir() and not is_ignored(entry.name)]
            left_out.beside += sum(is_image_name(name) for name in beside)
            left_out.add("", [name for name in beside if not is_image_name(name)])
    except OSError as error:
        raise _cannot_read(root, error) from None
    _check_found(root, found, empty)
    return found


def _check_found(root: Path, found: Files, empty: dict[str, LeftOut]) -> None:
    """Raise DataError for a folder without classes, a class without images, and two of one name."""
    hint = _labels_hint(root)
    splits = [folder for folder in _folders(root) if folder.name.lower() in TRAIN_FOLDERS + TEST_FOLDERS]
    if found and len(splits) == len(found) and any(_labels_hint(folder) for folder in splits):
        file = next(file for folder in splits if (file := _labels_file(folder)) is not None)
        raise DataError(
            f"{splits[0]} has no folder a class: if {file.name} in it says what they show, add --labels {file.name}"
        )
    if not found:
        wanted = f"expected folders named by class with files ending in {USUAL_SUFFIXES}"
        raise DataError(f"{root} has no images: {wanted}{hint and '; ' + hint}")
    if hint and not empty and set(map(str.lower, found)) <= {*NO_CLASSES, *TRAIN_FOLDERS, *TEST_FOLDERS}:
        raise DataError(f"{root} has no folder a class, only {', '.join(map(repr, found))}: {hint}")
    for name, own in empty.items():
        if name not in found:
            what = f"its files are {listed(own.counts[name])}" if own.counts else "it is empty"
            raise DataError(
                f"class '{name}' in {root} has no images ({what}): a folder here is a class, so add images that end in "
                ".jpg, .png or the like, or move it elsewhere"
            )
    seen: dict[str, str] = {}
    for name in found:
        other = seen.setdefault(seen_as(name), name)
        if other != name:
            raise DataError(
                f"classes '{other}' and '{name}' in {root} differ in case or spaces alone: rename one; where both are "
                "meant, say so in a file of labels (--labels FILE)"
            )


def _refuse_labels_elsewhere(root: Path, test_root: Path) -> None:
    """Raise DataError where the test images have no folder a class, but a split to test with has a labels file."""
    folders = [folder.name for folder in _folders(test_root)]
    if set(map(str.lower, folders)) <= set(NO_CLASSES):
        splits = (test_root, *(folder for folder in _folders(root) if folder.name.lower() in TEST_FOLDERS))
        file = next((file for folder in splits if (file := _labels_file(folder)) is not None), None)
        if file is not None:
            raise DataError(
                f"{test_root} has no folder a class, only {', '.join(map(repr, folders)) or 'files'}: "
                f"if {file.name} in {file.parent} says what its images show, add --labels {file.name}"
            )


def _labels_hint(root: Path) -> str:
    """What to do where labels lie beside the images."""
    known = _labels_file(root)
    return f"if {known.name} says what they show, add --labels {known}" if known is not None else ""


def _labels_file(root: Path) -> Path | None:
    """A file that is called as labels mostly are."""
    try:
        names = {path.name.lower(): path for path in root.iterdir() if path.is_file()}
    except OSError:
        return None
    return next((names[name] for name in USUAL_NAMES if name in names), None)


def _named_folder(root: Path, names: tuple[str, ...], with_file: str | None = None) -> Path | None:
    """The folder with one of these names, in upper or lower case, and with this file in it where one is asked for."""
    known = {path.name.lower(): path for path in _folders(root)}
    found = (known[name] for name in names if name in known)
    return next((path for path in found if with_file is None or (path / with_file).is_file()), None)


def _check_name(name: str, folder: Path) -> None:
    """Raise `DataError` for a name whose bytes are not UTF-8: no record or report could hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        parent = os.fsencode(folder.parent if name == folder.name else folder).decode("utf-8", "backslashreplace")
        raise DataError(f"the name {shown} in {parent} is not UTF-8: rename it") from None


def _check_names_below(folder: Path, files: list[Path]) -> None:
    """Raise `DataError` for a file, or a folder on the way to it, whose name is not UTF-8."""
    for file in files:
        try:
            os.fspath(file).encode()
        except UnicodeEncodeError:
            for part in (file, *file.parents):
                if part != folder:
                    _check_name(part.name, part.parent)
            raise


def images_below(folder: Path) -> list[Path]:
    """Image files at any depth, sorted, whatever the folders are called. Raises DataError where one may not be read."""
    try:
        return sorted(_walk_images(folder))
    except OSError as error:
        raise _cannot_read(folder, error) from None


def _walk_images(folder: Path, on_other: Callable[[str], object] = lambda path: None) -> Iterator[Path]:
    """Images at any depth; `on_other` is told of files that are none by their names, and of links to folders.

    Unlike `Path.rglob`, which passes over folders that may not be read, this raises OSError for them.

    Unlike `os.walk` before Python 3.12, it goes deeper than Python's calls. Links to folders are not followed.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                if is_ignored(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_dir():
                    on_other(entry.path + os.sep)
                elif is_image_name(entry.name):  # a link that leads nowhere too: it is damaged, not left out
                    yield Path(entry.path)
                else:
                    on_other(entry.path)


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
        return sorted(path for path in root.iterdir() if path.is_dir() and not is_ignored(path.name))
    except OSError as error:
        raise _cannot_read(root, error) from None


def _split(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder with one of these names, in upper or lower case, that holds classes.

    One that holds images and no folder is itself a class, whatever it is called: a train among cars and buses.
    """
    known = {path.name.lower(): path for path in _folders(root)}
    for folder in (known[name] for name in names if name in known):
        if _folders(folder) or not any(is_image_name(path.name) for path in folder.iterdir()):
            return folder
    return None


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
