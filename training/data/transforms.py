"""From a PIL image to the pixels [3, height, width] uint8 both models see; each model normalises for itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from cdl_deploy.data.images import ByteArray, to_crop
from cdl_deploy.data.preprocessing import ResizeCrop

PixelTransform = Callable[[Image.Image], UInt8[Tensor, "3 height width"]]


CROPS = {"photo": ((0.08, 1.0), (3 / 4, 4 / 3), True), "gentle": ((0.75, 1.0), (0.85, 1.18), False)}
"""Of the area and of width to height, the range of a crop; and whether one image in two is flipped. By augmentation."""


def evaluation_transform(preprocessing: ResizeCrop) -> PixelTransform:
    """Shorter edge to `resize`, centre crop to `height` × `width`: the pixels that the runtime sees."""
    return lambda image: _to_pixels(to_crop(image, preprocessing))


def training_transform(preprocessing: ResizeCrop, augmentation: str) -> PixelTransform:
    """`photo`: RandomResizedCrop and flip (method, section 6); `gentle`: small crops, no flip; `none`: as evaluated."""
    if augmentation == "none":
        return evaluation_transform(preprocessing)
    area, ratio, flips = CROPS[augmentation]
    size = [preprocessing.height, preprocessing.width]
    crop = v2.RandomResizedCrop(size, area, ratio, InterpolationMode(preprocessing.interpolation))
    transform = v2.Compose([crop, v2.RandomHorizontalFlip()]) if flips else crop
    return lambda image: _to_pixels(np.asarray(transform(image)))


def _to_pixels(image: ByteArray) -> UInt8[Tensor, "3 height width"]:
    """[height, width, 3] → a tensor of its own: PIL's pixels cannot be written to."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)
