"""Batches of pixels. What an image looks like in a batch depends on the seed and its scope, not on who loads it."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast, overload

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cdl_deploy.data.images import load_image
from cdl_deploy.data.labelled import Item
from cdl_deploy.errors import CdlError, DataError, PassingError, RunError
from cdl_deploy.training.data.transforms import PixelTransform
from cdl_deploy.training.seeds import derive_seed, generator
from cdl_deploy.typed_json import short

Key = tuple[int, int]
"""Index of an image, and the seed of its augmentation."""
Share = Callable[[Sequence[Key]], Sequence[Key]]
Rows = Mapping[str, Tensor]
"""What was computed of a batch before, by name, each [B, …]: see `cdl_deploy.training.frozen.as_rows`."""
Batch = Tensor | Rows
"""Pixels [B, 3, height, width] uint8, or what was computed of them."""


class PixelDataset(Dataset[tuple[Tensor, int]]):
    """Images with labels; indexed by (index, seed), so that worker processes need no state."""

    def __init__(self, items: Sequence[Item], labels: Sequence[int], transform: PixelTransform) -> None:
        self.items, self.labels, self.transform = items, labels, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, seed = key
        # torchvision's transforms draw from the global generators; nothing else here does. `torch.manual_seed` would
        # seed those of every accelerator too, which takes longer than the image.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        return self.transform(load_known(self.items[index])), self.labels[index]


def load_known(item: Item) -> Image.Image:
    """An image that could be read when the run began."""
    try:
        return load_image(item)
    except DataError as error:
        if isinstance(item, Path) and not item.exists():
            raise DataError(f"{item} has vanished since the run began: restore it and continue with --resume") from None
        raise DataError(f"cannot read image {error}") from None
    except PassingError as error:
        raise PassingError(f"{error}, and continue with --resume") from None


class SeededBatches(Sampler[list[Key]]):
    """Every image once, in an order and with augmentations drawn from `seed` and `scope`.

    The last batch may be smaller.
    Differs: the reference drops the last partial batch, so a task with fewer images than a batch trains on nothing.
    With `drop_last` so does this one; such a task is refused by `cdl_deploy.training.data.shape`.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        scope: tuple[str | int, ...],
        shuffle: bool,
        skip: int = 0,
        share: Share = lambda keys: keys,
        drop_last: bool = False,
    ) -> None:
        """`skip`: batches to leave out at the beginning, because they were learned from before an interruption.
        `share`: the part of each batch to yield, where several processes divide it among them."""
        self.count, self.batch_size, self.seed, self.scope, self.shuffle = count, batch_size, seed, scope, shuffle
        self.skip, self.share, self.drop_last = skip, share, drop_last

    def __len__(self) -> int:
        return steps_of(self.count, self.batch_size, self.drop_last) - self.skip

    def __iter__(self) -> Iterator[list[Key]]:
        order = list(range(self.count))
        if self.shuffle:
            order = torch.randperm(self.count, generator=generator(self.seed, "order", *self.scope)).tolist()
        first = derive_seed(self.seed, "augmentation", *self.scope)
        for number in range(self.skip, self.skip + len(self)):
            start = number * self.batch_size
            keys = [(index, (first + index) % 2**63) for index in order[start : start + self.batch_size]]
            # A process without a share runs one image that counts for nothing, so that all take the same steps.
            yield list(self.share(keys)) or keys[:1]


def steps_of(images: int, batch_size: int, drop_last: bool = False) -> int:
    """Batches of an epoch."""
    return images // batch_size if drop_last else -(-images // batch_size)


class PassAfterPass(Sampler[list[Key]]):
    """The batches of the `order` that is set before each pass."""

    def __init__(self, order: SeededBatches) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.order)


class TrainingImages(ABC):
    """Images to learn from, wherever they are."""

    @abstractmethod
    def __len__(self) -> int:
        """How many."""

    @abstractmethod
    def batches(
        self,
        batch_size: int,
        seed: int,
        scope: tuple[str | int, ...],
        skip: int = 0,
        share: Share = lambda keys: keys,
        drop_last: bool = False,
    ) -> Iterable[tuple[Batch, Tensor]]:
        """Every image once, with its label [B], in the order of `SeededBatches`; `drop_last`: without a smaller one."""


class LoadedImages(TrainingImages):
    """Read, decoded and augmented whenever they are due."""

    def __init__(self, items: Sequence[Item], labels: Sequence[int], transform: PixelTransform, workers: int) -> None:
        self.items, self.labels, self.transform, self.workers = items, labels, transform, workers
        self.passes: PassAfterPass | None = None
        self.loader: DataLoader[tuple[Tensor, Tensor]] | None = None
        """Where worker processes load: they are started once and serve every pass."""

    def __len__(self) -> int:
        return len(self.items)

    def batches(
        self,
        batch_size: int,
        seed: int,
        scope: tuple[str | int, ...],
        skip: int = 0,
        share: Share = lambda keys: keys,
        drop_last: bool = False,
    ) -> Iterable[tuple[Tensor, Tensor]]:
        order = SeededBatches(len(self.items), batch_size, seed, scope, True, skip, share, drop_last)
        if not self.workers:
            return make_loader(self.items, self.labels, self.transform, order)
        if self.loader is None or self.passes is None:
            self.passes = PassAfterPass(order)
            self.loader = make_loader(self.items, self.labels, self.transform, self.passes, self.workers)
        self.passes.order = order
        return self.loader


def batches(
    items: Sequence[Item],
    labels: Sequence[int],
    transform: PixelTransform,
    batch_size: int,
    *,
    workers: int = 0,
    seed: int = 0,
    scope: tuple[str | int, ...] = (),
    shuffle: bool = False,
    skip: int = 0,
    share: Share = lambda keys: keys,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """A loader of (pixels [B, 3, height, width] uint8, labels [B] int64)."""
    order = SeededBatches(len(items), batch_size, seed, scope, shuffle, skip, share)
    return make_loader(items, labels, transform, order, workers)


class OneLineLoader(DataLoader[tuple[Tensor, Tensor]]):
    """Tells in one line what went wrong in the processes that load."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except CdlError as error:  # from another process it comes with the traceback that it had there
            text = str(error).strip()
            raise type(error)(text.rpartition(f"{type(error).__name__}: ")[2] if "\n" in text else text) from None
        except (RuntimeError, OSError) as error:
            if not self.num_workers:
                raise
            reason = short((error.strerror if isinstance(error, OSError) else None) or str(error))
            raise RunError(
                f"the processes that load images have failed ({reason}): continue with --resume, and more room in "
                "/dev/shm where that is too small; --workers 0 starts none"
            ) from None


def make_loader(
    items: Sequence[Item],
    labels: Sequence[int],
    transform: PixelTransform,
    order: SeededBatches | PassAfterPass,
    workers: int = 0,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """A loader of the batches in `order`."""
    # A batch's labels, ints in the dataset, are collated into one tensor.
    dataset = cast(Dataset[tuple[Tensor, Tensor]], PixelDataset(items, labels, transform))
    again = isinstance(order, PassAfterPass) and workers > 0
    pin = torch.cuda.is_available()
    return OneLineLoader(dataset, batch_sampler=order, num_workers=workers, pin_memory=pin, persistent_workers=again)


@overload
def to_device(batch: Tensor, device: torch.device) -> Tensor: ...
@overload
def to_device(batch: Batch, device: torch.device) -> Batch: ...
def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copied while the host goes on, where the loader has pinned the batch."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def split(batch: Batch, size: int) -> list[Batch]:
    """Pieces of `size` images; the last may be smaller."""
    if isinstance(batch, Tensor):
        return list(batch.split(size))
    pieces = zip(*(value.split(size) for value in batch.values()), strict=True)
    return [dict(zip(batch, values, strict=True)) for values in pieces]
