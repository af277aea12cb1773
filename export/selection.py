"""Prompts selected at export time, once for all images: a graph of one pass that asks no query.

    --select task:K       what the method selects for images of task K
    --select images:DIR   what it selects for the images in DIR: they say what the model will be shown

Where every image has its own weights (CODA-Prompt) the mean of them is taken, where it has its own choice (L2P,
DualPrompt) the one that most of them make, block by block. The images of `task:K` are those the run keeps of task K.
DualPrompt needs none: each task has an entry of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from cdl_deploy.data.folder import images_below
from cdl_deploy.data.images import load_image
from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.errors import DataError, OptionError, nearest
from cdl_deploy.training.data.transforms import evaluation_transform
from cdl_deploy.training.methods import ContinualMethod
from cdl_deploy.training.methods.folded import FixedSelection
from cdl_deploy.training.models.learner import Learner, QueryEncoder
from cdl_deploy.training.shapes import Pixels, Query

BATCH = 64
MODES = ("in-graph", "task:K", "images:DIR")


@dataclass(frozen=True)
class Select:
    """What `--select` says."""

    task: int | None = None
    """K of `task:K`, counted from 1."""
    images: Path | None = None
    """DIR of `images:DIR`."""

    @property
    def in_graph(self) -> bool:
        """Whether each image selects for itself."""
        return self.task is None and self.images is None

    @property
    def name(self) -> str:
        """As the bundle calls it."""
        return "in-graph" if self.in_graph else "images" if self.task is None else f"task:{self.task}"

    @classmethod
    def parse(cls, text: str) -> Select:
        """From the option's value. Raises OptionError for an unknown mode."""
        mode, _, value = text.partition(":")
        if text == "in-graph":
            return cls()
        if mode == "images" and value:
            return cls(images=Path(value))
        if mode == "task" and re.fullmatch("[0-9]+", value):
            return cls(task=int(value))
        close = nearest(mode, [name.partition(":")[0] for name in MODES])
        raise OptionError(f"unknown --select '{text}', expected {MODES[0]}, {MODES[1]} or {MODES[2]}{close}")


def check_select(select: Select, method: type[ContinualMethod], name: str, tasks: int) -> None:
    """Raise OptionError where `select` does not fit a run of the method `name` with `tasks` tasks."""
    if select.in_graph:
        return
    if not method.uses_query:
        raise OptionError(f"--select {select.name} has no meaning with {name}, which selects nothing: leave it out")
    if not method.can_fix_selection():
        raise OptionError(f"--select {select.name} is not known for {name}: export it with --select in-graph")
    if select.task is not None and not 1 <= select.task <= tasks:
        raise OptionError(f"--select task:{select.task}: the run has tasks 1 to {tasks}")
    if select.images is not None:
        next(_find(select.images))


@torch.no_grad()
def fix_selection(learner: Learner, encoder: QueryEncoder, task: int | None, images: list[Pixels]) -> FixedSelection:
    """The learner's choice for `images` (batches of [B, 3, height, width]), or for task `task`."""
    queries = torch.cat([_query(encoder, batch) for batch in images])
    return learner.method.fix_selection(queries, task, len(learner.tasks))


def load_images(folder: Path, preprocessing: ResizeCrop) -> list[Pixels]:
    """Every image below `folder`, as evaluation sees it, in batches. Raises OptionError where there is none."""
    transform = evaluation_transform(preprocessing)
    pixels = torch.stack([transform(_load(path)) for path in _find(folder)])
    return list(pixels.split(BATCH))


def _load(path: Path) -> Image.Image:
    try:
        return load_image(path)
    except DataError as error:
        raise DataError(f"cannot read image {error}") from None


def _find(folder: Path) -> Iterator[Path]:
    """Paths of images in sorted order, at least one."""
    found = images_below(folder) if folder.is_dir() else []
    if not found:
        what = "has no images" if folder.is_dir() else "is no folder"
        raise OptionError(f"--select images:{folder} {what}: give a folder of images like those it will be shown")
    yield from found


def _query(encoder: QueryEncoder, images: Pixels) -> Query:
    query = encoder(images).query
    assert query is not None
    return query
