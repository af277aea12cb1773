"""What a distillation has to offer. It lives in the student, beside the continual-learning method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.models.backbone import BlockPrompt
from cdl_deploy.training.shapes import Logits, Tokens


@dataclass
class Output:
    """What a learner computed for a batch."""

    class_logits: Logits
    """Of the class head, every class seen."""
    tokens: Tokens
    """After the last block, before the final norm: all of them for a distillation that `uses_tokens`, otherwise those
    that the heads read."""
    extra_logits: Logits | None = None
    """Of the distillation's own head, where it has one."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Losses of the prompt selection, by name."""


class Distillation(nn.Module):
    """No distillation: the student alone (the paper's first row of every table), and the base of all others.

    A subclass overrides what it needs and is registered in `distillation/__init__.py`.
    """

    needs_teacher: bool = False
    uses_tokens: bool = False
    """Whether `losses` looks at all `tokens` of student and teacher; otherwise the last block skips most of them."""
    reads: tuple[int, ...] = (0,)
    """Positions of the output tokens that the student's heads read: the class token first."""

    def begin_task(self, new_classes: int, generator: torch.Generator, known: Sequence[int] = ()) -> None:
        """Make room for the classes of one more task; `known`: earlier classes it brings new images of."""

    def append_token(self, tokens: Tokens) -> Float[Tensor, "B more D"]:
        """The tokens that enter the first prompted block."""
        return tokens

    def block_prompts(self) -> dict[int, BlockPrompt]:
        """Prompts of the distillation's own, by block; they carry no batch dimension of their own (b = 1)."""
        return {}

    def extra_logits(self, normalised_tokens: Tokens) -> Logits | None:
        """Logits of a head of its own, from the tokens after the final norm."""
        return None

    def shared_parameters(self) -> tuple[list[nn.Parameter], float]:
        """Parameters that go on learning in every task, and their share of the learning rate."""
        return [], 1.0

    def predict(self, class_logits: Logits, extra_logits: Logits | None) -> Logits:
        """The logits the student answers with."""
        return class_logits

    def losses(
        self, cross_entropy: Tensor, student: Output, teacher: Output | None, first_class: int
    ) -> dict[str, Tensor]:
        """The weighted terms of the student's loss, by name, without those of the prompt selection."""
        return {"cross_entropy": cross_entropy}
