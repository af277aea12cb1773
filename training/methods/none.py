"""No prompts: the frozen backbone as it is, the floor that every method has to beat."""

from __future__ import annotations

from typing import Any

import torch

from cdl_deploy.training.backbones.protocol import NetworkShape
from cdl_deploy.training.methods.protocol import ContinualMethod, Phase, PromptSelection
from cdl_deploy.training.shapes import Query


class NoPrompts(ContinualMethod):
    """Nothing is chosen and nothing trains; what learns is the head, and what a distillation brings."""

    uses_query = False

    @classmethod
    def build(cls, shape: NetworkShape, config: Any, generator: torch.Generator) -> NoPrompts:
        return cls()

    def begin_task(self, generator: torch.Generator) -> None:
        """Nothing: there is nothing to grow."""

    def forward(self, query: Query | None, phase: Phase) -> PromptSelection:
        return PromptSelection({})
