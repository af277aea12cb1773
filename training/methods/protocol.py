"""What a continual-learning method has to offer, and what a learner hands to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from cdl_deploy.training.models.backbone import BlockPrompt
from cdl_deploy.training.shapes import Query

Phase = Literal["train", "test"]
"""`train`: the learner is learning the current task. `test`: evaluation, and the teacher while it distils."""


@dataclass
class Selection:
    """The prompts chosen for a batch, by block, and the losses their choice adds, by name."""

    prompts: dict[int, BlockPrompt]
    losses: dict[str, Tensor] = field(default_factory=dict)


class ContinualMethod(nn.Module, ABC):
    """Prompts, keys and their selection for one learner; subclasses are registered in `methods/__init__.py`."""

    uses_query: bool = True
    """Whether `forward` looks at the query; where it does not, no query pass is run."""

    @abstractmethod
    def begin_task(self, generator: torch.Generator) -> None:
        """Make room for one more task; parameters of earlier tasks must not move from here on."""

    @abstractmethod
    def forward(self, query: Query | None, phase: Phase) -> Selection:
        """Choose prompts for a batch from its query [B, Q]."""
