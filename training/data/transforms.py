"""From a PIL image to the pixels [3, height, width] uint8 both models see; each model normalises for itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from cdl_deploy.run import record

PixelTransform = Callable[[Image.Image], UInt8[Tensor, "3 height width"]]


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation transform, which export carries into the bundle."""

    size: int
    """Side of the square crop, in pixels."""
    resize: int
    """Length of the shorter edge before the crop."""
    interpolation: str
    """PIL's name: `bicubic`, `bilinear`, …; always antialiased."""

    @classmethod
    def from_record(cls, preprocessing: record.Preprocessing) -> Preprocessing:
        """What a run's record has under `preprocessing`, which names the augmentation as well."""
        return cls(preprocessing.size, preprocessing.resize, preprocessing.interpolation)


CROPS = {"photo": ((0.08, 1.0), (3 / 4, 4 / 3), True), "gentle": ((0.75, 1.0), (0.85, 1.18), False)}
"""Of the area and of width to height, the range of a crop; and whether one image in two is flipped. By augmentation."""


def evaluation_transform(preprocessing: Preprocessing) -> PixelTransform:
    """Shorter edge to `resize`, centre crop to `size`."""
    interpolation = InterpolationMode(preprocessing.interpolation)
    return _to_pixels(
        v2.Compose([v2.Resize(preprocessing.resize, interpolation), v2.CenterCrop([preprocessing.size] * 2)])
    )


def training_transform(preprocessing: Preprocessing, augmentation: str) -> PixelTransform:
    """`photo`: RandomResizedCrop and flip (method, section 6); `gentle`: small crops, no flip; `none`: as evaluated."""
    if augmentation == "none":
        return evaluation_transform(preprocessing)
    area, ratio, flips = CROPS[augmentation]
    crop = v2.RandomResizedCrop(preprocessing.size, area, ratio, InterpolationMode(preprocessing.interpolation))
    return _to_pixels(v2.Compose([crop, v2.RandomHorizontalFlip()]) if flips else crop)


def _to_pixels(transform: Callable[[Image.Image], Any]) -> PixelTransform:
    def apply(image: Image.Image) -> Tensor:
        pixels: torch.Tensor = functional.pil_to_tensor(transform(image))
        return pixels

    return apply
