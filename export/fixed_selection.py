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
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cdl_deploy.data.folder import images_below
from cdl_deploy.data.images import load_image
from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.errors import DataError, OptionError, nearest
from cdl_deploy.run.config import MethodConfig
from cdl_deploy.training.backbones.protocol import BlockPrompt, NetworkShape
from cdl_deploy.training.data.transforms import evaluation_transform
from cdl_deploy.training.methods import ContinualMethod, Phase, PromptSelection
from cdl_deploy.training.methods.coda import CodaPrompt
from cdl_deploy.training.methods.dualprompt import DualPrompt
from cdl_deploy.training.methods.l2p import L2P
from cdl_deploy.training.models.learner import Learner, QueryEncoder
from cdl_deploy.training.shapes import Pixels, Query, Similarities

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


class FixedPrompts(ContinualMethod):
    """A method whose choice has been made: the same prompts for every image."""

    uses_query = False

    def __init__(self, prompts: dict[int, BlockPrompt], task_scores: Float[Tensor, "1 T"] | None) -> None:
        """`task_scores`: None where prompts belong to no task."""
        super().__init__()
        self.block_indices = tuple(prompts)
        for index, prompt in prompts.items():
            assert prompt.prefix is not None
            self.register_buffer(f"rows_{index}", torch.stack(prompt.prefix).detach())
        self.task_scores = task_scores

    @classmethod
    def build(cls, shape: NetworkShape, config: MethodConfig, generator: torch.Generator) -> FixedPrompts:
        raise NotImplementedError("made of a trained method, see fix_selection")

    def begin_task(self, generator: torch.Generator) -> None:
        raise NotImplementedError("nothing is learned any more")

    def forward(self, query: Query | None, phase: Phase) -> PromptSelection:
        pairs = {index: self.get_buffer(f"rows_{index}") for index in self.block_indices}
        return PromptSelection({index: BlockPrompt(prefix=(pair[0], pair[1])) for index, pair in pairs.items()})


def check_select(select: Select, method: type[ContinualMethod], name: str, tasks: int) -> None:
    """Raise OptionError where `select` does not fit a run of the method `name` with `tasks` tasks."""
    if select.in_graph:
        return
    if not method.uses_query:
        raise OptionError(f"--select {select.name} has no meaning with {name}, which selects nothing: leave it out")
    if not issubclass(method, (CodaPrompt, L2P, DualPrompt)):
        raise OptionError(f"--select {select.name} is not known for {name}: export it with --select in-graph")
    if select.task is not None and not 1 <= select.task <= tasks:
        raise OptionError(f"--select task:{select.task}: the run has tasks 1 to {tasks}")
    if select.images is not None:
        next(_find(select.images))


@torch.no_grad()
def fix_selection(learner: Learner, encoder: QueryEncoder, task: int | None, images: list[Pixels]) -> Learner:
    """The learner with its choice for `images` (batches of [B, 3, height, width]), or for task `task`, made."""
    method = learner.method
    queries = torch.cat([_query(encoder, batch) for batch in images])
    if isinstance(method, CodaPrompt):
        fixed = _mean_of_coda(method, queries, len(learner.tasks))
    elif isinstance(method, DualPrompt):
        fixed = _entries_of_dualprompt(method, queries, task, len(learner.tasks))
    else:
        assert isinstance(method, L2P)
        fixed = _majority_of_l2p(method, queries)
    made = Learner(learner.role, learner.backbone, fixed, learner.distillation, learner.class_head, learner.first_block)
    made.tasks, made.known = learner.tasks, learner.known
    return made.eval()


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


def _mean_of_coda(method: CodaPrompt, queries: Query, tasks: int) -> FixedPrompts:
    """Mean weights of all components; a task's score is its share of Σ |w|."""
    prompts, strengths = {}, torch.zeros(tasks)
    for index, block in method.own_blocks().items():
        weights = block.weights(queries).mean(dim=0)
        rows = (weights @ block.prompts.all().flatten(1)).view(1, *block.prompts.shape)
        key_prompts, value_prompts = rows.chunk(2, dim=1)
        prompts[index] = BlockPrompt(prefix=(key_prompts, value_prompts))
        strengths += weights.abs().view(tasks, -1).sum(dim=1)
    return FixedPrompts(prompts, (strengths / strengths.sum())[None])


def _entries_of_dualprompt(method: DualPrompt, queries: Query, task: int | None, tasks: int) -> FixedPrompts:
    """The entry of `task`, or in each block the one that is nearest to most queries."""
    prompts, shares = method.shared_prompts(), torch.zeros(1, tasks)
    entries = method.own_entries()
    for index, block in entries.items():
        nearest_keys = block.similarity(queries).argmax(dim=1)
        chosen = task - 1 if task is not None else int(torch.bincount(nearest_keys, minlength=tasks).argmax())
        rows = block.prompts.all()[chosen]
        prompts[index] = BlockPrompt(prefix=(rows[0:1], rows[1:2]))
        shares[0, chosen] += 1 / len(entries)
    return FixedPrompts(prompts, shares)


def _majority_of_l2p(method: L2P, queries: Query) -> FixedPrompts:
    """The `top_k` prompts that most queries choose; of equally many the nearer one."""
    similarity: Similarities = method.similarities(queries)[0]
    chosen = similarity.topk(method.top_k, dim=1).indices
    votes = torch.bincount(chosen.flatten(), minlength=similarity.shape[1]).tolist()
    mean = similarity.mean(dim=0).tolist()
    best = sorted(range(len(votes)), key=lambda i: (-votes[i], -mean[i]))[: method.top_k]
    key_prompts, value_prompts = method.prompts[best].transpose(0, 1).flatten(1, 2).unsqueeze(1)
    return FixedPrompts({method.block: BlockPrompt(prefix=(key_prompts, value_prompts))}, None)
