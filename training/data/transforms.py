"""From a PIL image to the pixels [3, height, width] uint8 both models see; each model normalises for itself.

Where they see an image at sizes of their own, the pixels of both stand behind each other, flat, the student's first:
whatever handles batches need not know of it, and `Backbone.own_pixels` takes its part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from cdl_deploy.data.images import ByteArray, to_crop
from cdl_deploy.data.preprocessing import ResizeCrop, Views

PixelTransform = Callable[[Image.Image], UInt8[Tensor, "*seen"]]


CROPS = {"photo": ((0.08, 1.0), (3 / 4, 4 / 3), True), "gentle": ((0.75, 1.0), (0.85, 1.18), False)}
"""Of the area and of width to height, the range of a crop; and whether one image in two is flipped. By augmentation."""


def evaluation_transform(preprocessing: Views) -> PixelTransform:
    """Shorter edge to `resize`, centre crop to `height` × `width`: the pixels that the runtime sees."""
    if isinstance(preprocessing, tuple):
        views = preprocessing
        return lambda image: side_by_side([_to_pixels(to_crop(image, view)) for view in views])
    return lambda image: _to_pixels(to_crop(image, preprocessing))


def training_transform(preprocessing: Views, augmentation: str) -> PixelTransform:
    """`photo`: RandomResizedCrop and flip (method, section 6); `gentle`: small crops, no flip; `none`: as evaluated.

    Two views are of the same part of the image, flipped or not alike; the first is what it would be alone.
    """
    if augmentation == "none":
        return evaluation_transform(preprocessing)
    area, ratio, flips = CROPS[augmentation]
    if isinstance(preprocessing, tuple):
        views = preprocessing
        draws = v2.RandomResizedCrop([1, 1], area, ratio)

        def crop_both(image: Image.Image) -> Tensor:
            part = draws.make_params([image])
            flip = flips and bool(torch.rand(1) < 0.5)
            return side_by_side([_to_pixels(_crop(image, part, view, flip)) for view in views])

        return crop_both
    size = [preprocessing.height, preprocessing.width]
    crop = v2.RandomResizedCrop(size, area, ratio, InterpolationMode(preprocessing.interpolation))
    transform = v2.Compose([crop, v2.RandomHorizontalFlip()]) if flips else crop
    return lambda image: _to_pixels(np.asarray(transform(image)))


def _crop(image: Image.Image, part: dict[str, Any], view: ResizeCrop, flip: bool) -> ByteArray:
    """A part of the image, resized to what a network sees."""
    size, filter_ = [view.height, view.width], InterpolationMode(view.interpolation)
    cropped = v2.functional.resized_crop(image, **part, size=size, interpolation=filter_, antialias=True)
    return np.asarray(v2.functional.horizontal_flip(cropped) if flip else cropped)


def side_by_side(views: Sequence[Tensor]) -> UInt8[Tensor, " both"]:
    """Pixels [3, height, width] of several views, flat and one behind the other."""
    return torch.cat([view.flatten() for view in views])


def in_views(pixels: Tensor, preprocessing: Views) -> list[Tensor]:
    """Pixels [n, 3, height, width] of each view, from what a transform made of n images."""
    if not isinstance(preprocessing, tuple):
        return [pixels]
    counts = [3 * view.height * view.width for view in preprocessing]
    parts = pixels.split(counts, dim=1)
    return [part.unflatten(1, (3, it.height, it.width)) for part, it in zip(parts, preprocessing, strict=True)]


def _to_pixels(image: ByteArray) -> UInt8[Tensor, "3 height width"]:
    """[height, width, 3] → a tensor of its own: PIL's pixels cannot be written to."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)
