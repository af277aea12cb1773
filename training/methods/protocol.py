"""What a continual-learning method has to offer, and what a learner hands to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cdl_deploy.errors import OptionError
from cdl_deploy.run.options import Options
from cdl_deploy.training.backbones.protocol import BlockPrompt, NetworkShape
from cdl_deploy.training.heads import Head
from cdl_deploy.training.heads.linear import LinearHead
from cdl_deploy.training.methods.folded import (
    Attentions,
    ConstantSelection,
    FixedSelection,
    FoldedSelection,
    MethodItself,
)
from cdl_deploy.training.shapes import Query, Similarities

Phase = Literal["train", "distil", "test"]
"""`train`: the learner is learning the current task. `distil`: the teacher, just trained, while it distils. `test`:
evaluation. Prompts are chosen in the same way in the last two."""


@dataclass
class PromptSelection:
    """The prompts chosen for a batch, by block, and the losses their choice adds, by name."""

    prompts: dict[int, BlockPrompt]
    losses: dict[str, Tensor] = field(default_factory=dict)


class ContinualMethod(nn.Module, ABC):
    """Prompts, keys and their selection for one learner; subclasses are registered in `methods/__init__.py`.

    Parameters that all tasks share are plain parameters. What belongs to one task is `GrowingRows`, which hold still
    what earlier tasks learned.
    """

    Config: ClassVar[type[Options]] = Options
    """What it can be told: options of its own, from `cdl_deploy.run.method_options` or beside the method."""
    uses_query: ClassVar[bool] = True
    """Whether `forward` looks at the query; where it does not, no query pass is run."""
    head: ClassVar[type[Head]] = LinearHead
    """The kind of head, for the classes and for the distillation's own."""
    training_only: ClassVar[tuple[str, ...]] = ()
    """Names of its state that no prediction reads."""

    @classmethod
    @abstractmethod
    def build(cls, shape: NetworkShape, config: Any, generator: torch.Generator) -> ContinualMethod:
        """The method before any task, as its `Config` says; what all tasks share is drawn from `generator`."""

    @abstractmethod
    def begin_task(self, generator: torch.Generator) -> None:
        """Make room for one more task; parameters of earlier tasks must not move from here on."""

    def end_task(self) -> None:
        """The learner has learned the current task, and everything this leaves is about to be saved."""

    @abstractmethod
    def forward(self, query: Query | None, phase: Phase) -> PromptSelection:
        """Choose prompts for a batch from its query [B, Q]."""

    def fold(self, attentions: Attentions, tasks: int) -> FoldedSelection:
        """Its selection after `tasks` tasks as export wants it. Unless a method says better, it runs as it is."""
        if self.uses_query:
            return MethodItself(self, attentions, tasks)
        return ConstantSelection(FixedSelection(self(None, "test").prompts, None), tasks)

    def fix_selection(self, queries: Query, task: int | None, tasks: int) -> FixedSelection:
        """For `cdl export --select`: one choice for all images, from the queries [n, Q] of some, or for task `task`.

        `tasks` have been learned; `task` counts from 1. Raises OptionError where the method has no such choice.
        """
        raise OptionError(f"{type(self).__name__} cannot select once for all images: export it with --select in-graph")

    @classmethod
    def can_fix_selection(cls) -> bool:
        """Whether it has a `fix_selection` of its own."""
        return cls.fix_selection is not ContinualMethod.fix_selection

    def similarities(self, query: Query) -> list[Similarities]:
        """For each block that chooses, how near the query is to each key: what `--query-regulariser` compares."""
        raise NotImplementedError(f"{type(self).__name__} says nothing about similarities")


def prompted_blocks(name: str, shape: NetworkShape, count: int) -> range:
    """The first `count` blocks that may be prompted. Raises OptionError where the model ends before them."""
    blocks = range(shape.first_block, shape.first_block + count)
    if blocks.stop > shape.depth:
        where = f"blocks {blocks.start} to {blocks.stop - 1}" if count > 1 else f"block {blocks.start}"
        raise OptionError(
            f"{name} prompts {where} (counted from 0), but the model has {shape.depth} blocks: choose a deeper "
            f"model{shape.remedies(count)}"
        )
    return blocks
