"""DualPrompt (Wang et al., ECCV 2022, arXiv 2204.04799): prompts that all tasks share, and an entry for each task.

The first two prompted blocks have one shared prompt each. Each of the next three has, for every task, a key k_t and a
prompt E_t (method, section 3):

    training: E_t of the current task         otherwise: E_j with j = argmax_j cos(q, k_j), block by block

The pull loss, Σ over the three blocks of mean(1 − cos(q, k_t)), draws the task's keys towards its images.

Differs: a key can be chosen when its task has come, never before; the reference also chooses among keys that were drawn
for later tasks and never trained. Here they do not exist yet, unless `entries` ask for them.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.run.method_options import DualPromptConfig
from cdl_deploy.training.backbones.protocol import BlockPrompt, NetworkShape
from cdl_deploy.training.growing import GrowingRows, ResizableBuffers
from cdl_deploy.training.methods.folded import Attentions, Chosen, FixedSelection, FoldedSelection, fitted
from cdl_deploy.training.methods.protocol import ContinualMethod, Phase, PromptSelection, prompted_blocks
from cdl_deploy.training.shapes import Query, Similarities

SHARED_BLOCKS = 2
TASK_BLOCKS = 3


class DualPrompt(ContinualMethod):
    """Shared prompts [2, 2, r, D] (block; key, value) and the entries of three blocks, uniform in [0, 1)."""

    Config = DualPromptConfig

    def __init__(
        self,
        shape: NetworkShape,
        generator: torch.Generator,
        shared_rows: int = 3,
        prompt_length: int = 10,
        key_loss_weight: float = 1.0,
        entries: int = 0,
    ) -> None:
        """`entries`: those of so many tasks are drawn now, and can be chosen before the task has come."""
        super().__init__()
        blocks = prompted_blocks("DualPrompt", shape, SHARED_BLOCKS + TASK_BLOCKS)
        self.shared_blocks, self.key_loss_weight = blocks[:SHARED_BLOCKS], key_loss_weight
        self.shared = nn.Parameter(torch.rand(SHARED_BLOCKS, 2, shared_rows, shape.width, generator=generator))
        own = {str(b): TaskEntries(shape, prompt_length, entries, generator) for b in blocks[SHARED_BLOCKS:]}
        self.entries = nn.ModuleDict(own)

    @classmethod
    def build(cls, shape: NetworkShape, config: DualPromptConfig, generator: torch.Generator) -> DualPrompt:
        entries = (config.entries or 0) if config.unseen_keys == "chosen" else 0
        length, shared = config.prompt_length or 10, config.shared_prompt_length
        return cls(shape, generator, shared, length, config.key_loss_weight, entries)

    def own_entries(self) -> dict[int, TaskEntries]:
        """The tasks' entries by the index of the block they prompt."""
        return {int(index): cast(TaskEntries, entries) for index, entries in self.entries.items()}

    def shared_prompts(self) -> dict[int, BlockPrompt]:
        """Prompts that every image gets, [1, r, D] for keys and for values."""
        pairs = zip(self.shared_blocks, self.shared, strict=True)
        return {index: BlockPrompt(prefix=(pair[0:1], pair[1:2])) for index, pair in pairs}

    def begin_task(self, generator: torch.Generator) -> None:
        for entries in self.own_entries().values():
            entries.begin_task(generator)

    def forward(self, query: Query | None, phase: Phase) -> PromptSelection:
        assert query is not None
        prompts, pulls = self.shared_prompts(), []
        for index, entries in self.own_entries().items():
            rows: Tensor = entries.prompts.trainable if phase == "train" else entries.nearest(query)
            if phase == "train":
                pulls.append(1 - entries.similarity(query)[:, len(entries.keys) - 1].mean())
            prompts[index] = BlockPrompt(prefix=(rows[:, 0], rows[:, 1]))
        return PromptSelection(prompts, {"key_loss": self.key_loss_weight * torch.stack(pulls).sum()} if pulls else {})

    def fold(self, attentions: Attentions, tasks: int) -> FoldedSelection:
        return FoldedDualPrompt(self, attentions, tasks)

    def fix_selection(self, queries: Query, task: int | None, tasks: int) -> FixedSelection:
        """The entry of `task`, or in each block the one that is nearest to most queries."""
        prompts, shares = self.shared_prompts(), torch.zeros(1, tasks)
        entries, prompted = self.own_entries(), self.prompted_tasks
        task = task if task is None else min(task, prompted)  # later tasks have the features of the last one
        for index, block in entries.items():
            nearest_keys = block.similarity(queries).argmax(dim=1)
            chosen = task - 1 if task is not None else int(torch.bincount(nearest_keys, minlength=tasks).argmax())
            rows = block.all_prompts()[chosen]
            prompts[index] = BlockPrompt(prefix=(rows[0:1], rows[1:2]))
            if chosen < tasks:
                shares[0, chosen] += 1 / len(entries)
        return FixedSelection(prompts, shares if prompted == tasks == self.choices else None)

    @property
    def prompted_tasks(self) -> int:
        """Tasks that brought an entry."""
        return len(next(iter(self.own_entries().values())).keys)

    @property
    def choices(self) -> int:
        """Entries that an image may get."""
        return len(next(iter(self.own_entries().values())).all_keys())

    def similarities(self, query: Query) -> list[Similarities]:
        """cos(q, k_j) in each of the three blocks."""
        return [entries.similarity(query) for entries in self.own_entries().values()]


class TaskEntries(nn.Module):
    """One block's entries, one a task: keys [M, Q], prompts [M, 2, p, D] (key prompts, value prompts).

    `later`: `keys` [n, Q] and `prompts` [n, 2, p, D] of the next n tasks, which can be chosen as they were drawn until
    their task comes.
    """

    def __init__(self, shape: NetworkShape, prompt_length: int, entries: int, generator: torch.Generator) -> None:
        super().__init__()
        self.keys = GrowingRows(shape.query_width)
        self.prompts = GrowingRows(2, prompt_length, shape.width)
        drawn = {
            name: torch.rand(entries, *rows.shape, generator=generator) for name, rows in self.own_rows() if entries
        }
        self.later = ResizableBuffers(**drawn) if entries else None

    def begin_task(self, generator: torch.Generator) -> None:
        """One more entry."""
        for name, rows in self.own_rows():
            own = self.later_rows(name)
            if own is None:
                own = torch.rand(1, *rows.shape, generator=generator)
            else:
                setattr(self.later, name, own[1:].clone())
            rows.grow(own[:1].clone())

    def own_rows(self) -> tuple[tuple[str, GrowingRows], tuple[str, GrowingRows]]:
        """Keys and prompts by name."""
        return ("keys", self.keys), ("prompts", self.prompts)

    def later_rows(self, name: str) -> Tensor | None:
        """`keys` or `prompts` of tasks to come; None where there are none."""
        rows = None if self.later is None else self.later.get_buffer(name)
        return rows if rows is not None and len(rows) else None

    def all_keys(self) -> Float[Tensor, "M Q"]:
        """Those of the tasks seen so far, and any that can be chosen before."""
        return self._with_later("keys", self.keys.all())

    def all_prompts(self) -> Float[Tensor, "M 2 p D"]:
        """The entries of `all_keys`."""
        return self._with_later("prompts", self.prompts.all())

    def _with_later(self, name: str, rows: Tensor) -> Tensor:
        later = self.later_rows(name)
        return rows if later is None else torch.cat([rows, later])

    def similarity(self, query: Query) -> Similarities:
        """cos(q, k_j) for `all_keys`."""
        return F.normalize(query, dim=1) @ F.normalize(self.all_keys(), dim=1).T

    def nearest(self, query: Query) -> Float[Tensor, "B 2 p D"]:
        """The prompt of the task whose key is nearest."""
        return self.all_prompts()[self.similarity(query).argmax(dim=1)]


class FoldedDualPrompt(FoldedSelection):
    """The entry with the largest q · k̂ in each block, the keys of all blocks side by side; shared prompts are constant.

    The length of the query changes no order, so it is left out. A task's score is the share of the blocks in which its
    entry was chosen; where not every task brought one, or those of tasks to come can be chosen, they belong to none.
    """

    keys: Tensor
    numbers: Tensor

    def __init__(self, method: DualPrompt, attentions: Attentions, tasks: int) -> None:
        super().__init__(tasks)
        self.constants = method.shared_prompts()
        self.choices = method.choices
        self.by_task = method.prompted_tasks == tasks == self.choices
        entries = method.own_entries()
        self.indices = tuple(entries)
        keys = torch.cat([F.normalize(block.all_keys(), dim=1) for block in entries.values()])
        self.register_buffer("keys", keys.detach().T.contiguous())
        self.register_buffer("numbers", torch.arange(tasks))
        for index, block in entries.items():
            by_head = fitted(block.all_prompts().detach(), attentions[index])
            self.parts = by_head.shape[1:]
            self.register_buffer(f"prompts_{index}", by_head.flatten(1).contiguous())

    def forward(self, query: Tensor | None) -> Chosen:
        assert query is not None
        prompts = {}
        # Compared for all blocks at once, [B, blocks, T]: an argmax each would be as many small nodes.
        nearest = (query @ self.keys).unflatten(1, (len(self.indices), self.choices)).argmax(dim=2)
        for position, index in enumerate(self.indices):
            rows = F.embedding(nearest[:, position], self.get_buffer(f"prompts_{index}")).unflatten(1, self.parts)
            prompts[index] = (rows[:, 0], rows[:, 1])
        if not self.by_task:
            return Chosen(prompts, self.scores)
        return Chosen(prompts, (nearest.unsqueeze(2) == self.numbers).float().mean(dim=1))
