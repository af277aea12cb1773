"""What a model is fed with: values made up for whatever inputs it declares, and photographs as JPEG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cdl_deploy.data.folder import images_below
from cdl_deploy.data.images import load_image
from cdl_deploy.errors import BundleError, DataError

TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
CHANNELS = (1, 3, 4)
FOREIGN_SIZE = 224
"""Side in pixels of the image for a model that takes any size and does not say which one it likes."""
JPEG_QUALITY = 90
PHOTOS = 16
"""So many different photographs take turns."""


class Node(Protocol):
    """An input as onnxruntime describes it."""

    name: str
    type: str
    shape: Sequence[Any]


@dataclass(frozen=True)
class Declared:
    """One input with every free size but the batch filled in."""

    name: str
    """Its name."""
    kind: str
    """Its type, as onnxruntime writes it: `"tensor(float)"`."""
    shape: tuple[int, ...]
    """Its shape without the batch."""
    batch: int | None
    """The only batch size it takes; None if that is free."""
    batched: bool = True
    """Whether its first dimension is the batch."""

    def __str__(self) -> str:
        first = ("B" if self.batch is None else self.batch,) if self.batched else ()
        kind = self.kind.removeprefix("tensor(").removesuffix(")")
        return f"{self.name}: {kind} [{', '.join(map(str, (*first, *self.shape)))}]"


def declare(path: Path, nodes: Sequence[Node], size: tuple[int, int] | None) -> list[Declared]:
    """The inputs of a model, an image being (width, height) `size` where the model leaves that free.

    Raises BundleError, naming the input, for a type that cannot be made up, such as strings.
    """
    found = []
    for node in nodes:
        if node.type not in TYPES:
            raise BundleError(f"{path}: input {node.name} is {node.type}, expected numbers such as tensor(float)")
        sizes: list[Any] = list(node.shape)
        if not sizes:
            found.append(Declared(node.name, node.type, (), None, batched=False))
            continue
        batch = sizes[0] if isinstance(sizes[0], int) and sizes[0] > 0 else None
        found.append(
            Declared(node.name, node.type, _shape_without_batch(path, node, size or (FOREIGN_SIZE,) * 2), batch)
        )
    return found


def _shape_without_batch(path: Path, node: Node, size: tuple[int, int]) -> tuple[int, ...]:
    """Shape of an input without the batch: free dimensions of an image are its channels, height and width."""
    sizes = [value if isinstance(value, int) and value > 0 else None for value in node.shape]
    width, height = size
    if len(sizes) == 4:
        last = sizes[3] in CHANNELS and sizes[1] not in CHANNELS
        guess = (height, width, 3) if last else (3, height, width)
        return tuple(known or guessed for known, guessed in zip(sizes[1:], guess, strict=True))
    if None in sizes[1:]:
        raise BundleError(
            f"{path}: input {node.name} has shape {list(node.shape)}, expected an image or fixed sizes behind the batch"
        )
    return tuple(value for value in sizes[1:] if value is not None)


def make_feed(inputs: Sequence[Declared], batch: int, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Random values: the time of dense layers does not depend on what they multiply. Whole numbers are 0 (positions
    that are there in any table), but pixels, which are random.
    """
    feed = {}
    for item in inputs:
        shape = (batch, *item.shape) if item.batched else item.shape
        kind = TYPES[item.kind]
        if kind is np.uint8:
            feed[item.name] = random.integers(0, 256, shape, dtype=np.uint8)
        elif issubclass(kind, np.floating):
            feed[item.name] = np.asarray(random.standard_normal(shape), dtype=kind)
        else:
            feed[item.name] = np.zeros(shape, dtype=kind)
    return feed


def fixed_batch(inputs: Sequence[Declared]) -> int | None:
    """The only batch size that the inputs allow, or None where it is free."""
    return next((item.batch for item in inputs if item.batched and item.batch is not None), None)


def write_photos(folder: Path, size: tuple[int, int], seed: int, count: int = PHOTOS) -> list[Path]:
    """Fill a folder with JPEG files of (width, height) `size`: soft shapes with fine grain.

    At quality 90 they take about 2 bits a pixel, as photographs do, so decoding one costs about as much.
    """
    width, height = size
    random = np.random.default_rng(seed)
    files = []
    for number in range(count):
        coarse = random.integers(0, 256, (max(2, height // 64), max(2, width // 64), 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        grain = random.normal(0, 14, (height, width, 1))
        noisy = np.clip(np.asarray(image, dtype=np.float64) + grain, 0, 255).astype(np.uint8)
        files.append(folder / f"{number:02d}.jpg")
        Image.fromarray(noisy).filter(ImageFilter.GaussianBlur(0.7)).save(files[-1], quality=JPEG_QUALITY)
    return files


def photos_in(folder: Path, count: int = PHOTOS) -> list[Path]:
    """Up to `count` image files of a folder, spread evenly over their sorted names.

    Raises DataError for a folder without images, or where one of them cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"--images {folder} is no folder, expected one with photographs")
    files = images_below(folder)
    if not files:
        raise DataError(f"--images {folder}: no image in this folder, expected files such as photo.jpg")
    chosen = [files[i * len(files) // min(count, len(files))] for i in range(min(count, len(files)))]
    for file in chosen:
        load_image(file)  # one that is damaged is named now, not in the middle of a measurement
    return chosen
