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

from cdl_deploy.errors import DataError
from cdl_deploy.training.seeds import derive_seed

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
TEST_FOLDERS = ("test", "val")
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


Files = dict[str, list[Path]]
"""Image files by class."""


def find_splits(root: Path, holdout: float | None) -> tuple[Files, Files]:
    """Training and test files of an image folder; nothing is decoded. Raises DataError where a split is missing."""
    if not root.is_dir():
        raise DataError(f"{root} is no folder: give an image folder, or 'digits' for the embedded data")
    if (root / "train").is_dir():
        if holdout is not None:
            raise DataError(f"{root} has its own train/ folder, so --holdout cannot apply: leave it out")
        test_root = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
        if test_root is None:
            raise DataError(
                f"{root} has train/ but neither test/ nor val/: add one, or give {root}/train with --holdout 0.2"
            )
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
        train_files, test_files = hold_out(found, holdout, root)
    return train_files, test_files


def find_images(root: Path) -> Files:
    """Image files by class: the folders directly below `root`, each searched to any depth, in sorted order."""
    found: Files = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if files:
            found[folder.name] = files
    if not found:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{root} has no images: expected folders named by class with files ending in {suffixes}")
    return found


def hold_out(files: Files, share: float, root: Path) -> tuple[Files, Files]:
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
