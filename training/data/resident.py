"""Images that stay on the device, decoded once, and are augmented there: a small model would wait for anything else.

What is cropped is the image as evaluation sees it, not the file: for images not much larger than the model takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cdl_deploy.data.labelled import Item, LabelledImages
from cdl_deploy.data.preprocessing import Views
from cdl_deploy.run.config import OptimConfig
from cdl_deploy.training.data.loading import LoadedImages, SeededBatches, Share, TrainingImages, load_known
from cdl_deploy.training.data.task_data import TaskImages
from cdl_deploy.training.data.transforms import CROPS, evaluation_transform, in_views, training_transform
from cdl_deploy.training.seeds import derive_seed


class ResidentImages(TrainingImages):
    """`pixels` [n, 3, height, width] uint8 and `labels` [n] on the device."""

    def __init__(
        self,
        images: TaskImages | LabelledImages,
        preprocessing: Views,
        device: torch.device,
        augmentation: str = "none",
    ) -> None:
        """`augmentation`: what `batches` does to them."""
        transform = evaluation_transform(preprocessing)

        def decode(item: Item) -> Tensor:
            return transform(load_known(item))

        self.items, self.augmentation, self.preprocessing = images.items, augmentation, preprocessing
        with ThreadPoolExecutor() as pool:
            self.pixels = torch.stack(list(pool.map(decode, images.items))).to(device)
        self.labels = torch.as_tensor(images.labels, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self,
        batch_size: int,
        seed: int,
        scope: tuple[str | int, ...],
        skip: int = 0,
        share: Share = lambda keys: keys,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, as `TrainingImages` says.

        An image's crop depends on the seed, the scope and the image, not on the batch or the process it is in.
        """
        count = len(self.labels)
        order = SeededBatches(count, batch_size, seed, scope, True, skip, share, drop_last)
        draws = torch.Generator().manual_seed(derive_seed(seed, "resident", *scope))
        chance = torch.rand(count, 5, generator=draws).to(self.pixels.device)
        for keys in order:
            chosen = torch.tensor([index for index, _ in keys], device=self.pixels.device)
            pixels = self.pixels[chosen]
            if self.augmentation != "none":
                seen = [augment(it, chance[chosen], self.augmentation) for it in in_views(pixels, self.preprocessing)]
                pixels = seen[0] if len(seen) == 1 else torch.cat([it.flatten(1) for it in seen], dim=1)
            yield pixels, self.labels[chosen]

    def as_task_images(self) -> TaskImages:
        """The same as evaluation takes them."""
        return TaskImages(self.items, self.labels.tolist(), self.pixels)


def training_images(
    images: TaskImages, preprocessing: Views, augmentation: str, optim: OptimConfig, device: torch.device
) -> TrainingImages:
    """A task's images where `optim`, which is resolved, wants them: on the device, or loaded when they are due."""
    if optim.resident:
        return ResidentImages(images, preprocessing, device, augmentation)
    assert optim.workers is not None
    transform = training_transform(preprocessing, augmentation)
    return LoadedImages(images.items, images.labels, transform, optim.workers)


def augment(pixels: Tensor, chance: Float[Tensor, "B 5"], augmentation: str) -> Tensor:
    """Another crop of each image, and a flip of one in two where the augmentation flips; uint8 as before.

    `chance` is uniform in [0, 1): share of the area, ratio, position across, position down, flip.
    """
    area, ratio, flips = CROPS[augmentation]
    share = area[0] + (area[1] - area[0]) * chance[:, 0]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    stretch = (low + (high - low) * chance[:, 1]).exp()
    flip = torch.where(chance[:, 4] < 0.5, -1.0, 1.0) if flips else torch.ones_like(share)
    cropped = crop(pixels.float(), share, stretch, 2 * chance[:, 2] - 1, 2 * chance[:, 3] - 1, flip)
    return cropped.round().clamp(0, 255).to(torch.uint8)


def crop(
    images: Float[Tensor, "B 3 height width"],
    share: Tensor,
    stretch: Tensor,
    across: Tensor,
    down: Tensor,
    flip: Tensor,
) -> Float[Tensor, "B 3 height width"]:
    """One crop of each image, resampled bilinearly to the old size; every argument [B].

    `share` of the area, `stretch` width to height, `across` and `down` from −1 to 1 where the crop lies in what is left
    over, `flip` −1 to mirror and 1 not to.
    """
    width, height = (share * stretch).sqrt().clamp_max(1), (share / stretch).sqrt().clamp_max(1)
    matrix = torch.zeros(len(images), 2, 3, device=images.device)
    matrix[:, 0, 0], matrix[:, 0, 2] = width * flip, across * (1 - width)
    matrix[:, 1, 1], matrix[:, 1, 2] = height, down * (1 - height)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
