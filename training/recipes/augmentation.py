"""Augmentation of whole batches on the device that holds them, as DeiT trains (Touvron et al., arXiv 2012.12877).

Every function takes pixels [B, 3, height, width] and a generator on their device; nothing is drawn elsewhere, except by
torchvision's transforms, which draw from torch's global generators.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms import v2

from cdl_deploy.training.data.resident import crop

GROUPS = 16
"""RandAugment gives one policy to a whole tensor, so a batch is cut into this many."""


def random_resized_crop(
    images: Float[Tensor, "B 3 height width"],
    generator: torch.Generator,
    area: tuple[float, float] = (0.35, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Float[Tensor, "B 3 height width"]:
    """Another crop and, for one image in two, a flip for each image, resampled bilinearly to the old size.

    `area` and `ratio` are the ranges of a crop's share of the image and of width to height, as in torchvision.
    """
    count, device = len(images), images.device
    share = _uniform(count, *area, generator, device)
    stretch = _uniform(count, math.log(ratio[0]), math.log(ratio[1]), generator, device).exp()
    across, down = (_uniform(count, -1, 1, generator, device) for _ in range(2))
    flip = torch.randint(0, 2, (count,), generator=generator, device=device) * 2 - 1
    return crop(images, share, stretch, across, down, flip)


def rand_augment(images: UInt8[Tensor, "B 3 height width"]) -> UInt8[Tensor, "B 3 height width"]:
    """RandAugment (Cubuk et al., arXiv 1909.13719), two operations of strength 9, `GROUPS` policies a batch."""
    policy = v2.RandAugment(num_ops=2, magnitude=9)
    return torch.cat([policy(part) for part in images.chunk(min(GROUPS, len(images)))])


def mix(
    images: Float[Tensor, "B 3 height width"], labels: Int[Tensor, "B"], classes: int
) -> tuple[Float[Tensor, "B 3 height width"], Float[Tensor, "B classes"]]:
    """Mixup with α = 0.8 or CutMix with α = 1, each for one batch in two; soft labels."""
    choice = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=classes), v2.CutMix(alpha=1.0, num_classes=classes)])
    mixed, soft = choice(images, labels)
    return mixed, soft


def erase(
    images: Float[Tensor, "B 3 height width"], generator: torch.Generator, share: float = 0.25
) -> Float[Tensor, "B 3 height width"]:
    """Random erasing (Zhong et al., arXiv 1708.04896): noise in a box of 2 to 33 % of the area, for `share` of them."""
    count, _, height, width = images.shape
    device = images.device
    area = _uniform(count, 0.02, 0.33, generator, device)
    stretch = _uniform(count, math.log(0.3), math.log(1 / 0.3), generator, device).exp()
    box_width, box_height = (area * stretch).sqrt().clamp_max(1) * width, (area / stretch).sqrt().clamp_max(1) * height
    left = _uniform(count, 0, 1, generator, device) * (width - box_width)
    top = _uniform(count, 0, 1, generator, device) * (height - box_height)
    x, y = torch.arange(width, device=device) + 0.5, torch.arange(height, device=device) + 0.5
    inside_x = (x >= left[:, None]) & (x < (left + box_width)[:, None])
    inside_y = (y >= top[:, None]) & (y < (top + box_height)[:, None])
    chosen = torch.rand(count, generator=generator, device=device) < share
    box = inside_y[:, None, :, None] & inside_x[:, None, None, :] & chosen[:, None, None, None]
    noise = torch.randn(images.shape, generator=generator, device=device)
    return torch.where(box, noise, images)


def _uniform(
    count: int, low: float, high: float, generator: torch.Generator, device: torch.device
) -> Float[Tensor, "count"]:
    return torch.rand(count, generator=generator, device=device) * (high - low) + low
