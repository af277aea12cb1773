"""What a distillation has to offer. It lives in the student, beside the continual-learning method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.run.options import Options
from cdl_deploy.training.backbones.protocol import BlockPrompt, NetworkShape
from cdl_deploy.training.features import Feature
from cdl_deploy.training.heads import FoldedHead, Head
from cdl_deploy.training.shapes import Labels, Logits, Tokens


@dataclass
class LearnerOutput:
    """What a learner computed for a batch."""

    class_logits: Logits
    """Of the class head, every class seen."""
    extra_logits: Logits | None = None
    """Of the distillation's own head, where it has one."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Losses of the prompt selection, by name."""
    hidden: list[Tokens] = field(default_factory=list)
    """All tokens after each of the last blocks, before the final norm, in the order of the blocks; as many blocks as
    were asked for."""
    features: Float[Tensor, "B n D"] | None = None
    """What the heads read, [B, n, D]: see `cdl_deploy.training.features`."""


@dataclass(frozen=True)
class Networks:
    """What a distillation is built for."""

    student: NetworkShape
    teacher: NetworkShape | None
    """None where there is none to learn from."""
    class_token: Float[Tensor, "1 D"]
    """The student's, as it enters the first prompted block."""
    new_head: Callable[[int, tuple[Feature, ...]], Head]
    """An empty head of the student's kind, by its width and what it reads."""


class Distillation(nn.Module):
    """No distillation: the student alone (the paper's first row of every table), and the base of all others.

    A subclass overrides what it needs and is registered in `distillation/__init__.py`.
    """

    Config: ClassVar[type[Options]] = Options
    """What it can be told: options of its own, from `cdl_deploy.run.method_options` or beside the distillation."""
    needs_teacher: ClassVar[bool] = False
    """Whether a teacher is trained at all."""

    features: tuple[Feature, ...] = ()
    """What a head of its own reads."""
    hidden_blocks: int = 0
    """Of how many blocks, counted from the last, `losses` looks at the tokens: `LearnerOutput.hidden` of student and
    teacher. With 0 nothing is kept, and the last block computes no more than what the heads read."""
    used_in_prediction: bool = False
    """Whether the student's prediction needs it. Where it does not, it only serves training and is not exported."""

    training_only: tuple[str, ...] = ()
    """Names of its state that no prediction reads, where others are read."""

    @classmethod
    def build(cls, networks: Networks, config: Any, generator: torch.Generator) -> Distillation:
        """The distillation before any task, as its `Config` says; initial values are drawn from `generator`."""
        return cls()

    def notes(self) -> list[str]:
        """What one has to know of how it compares these two networks, a line each."""
        return []

    def check_learns(self) -> None:
        """Raise RunError where what a checkpoint has of it cannot be trained on."""

    def begin_task(self, new_classes: int, generator: torch.Generator, known: Sequence[int] = ()) -> None:
        """Make room for the classes of one more task; `known`: earlier classes it brings new images of."""

    def extra_tokens(self) -> Float[Tensor, "n D"] | None:
        """What is appended to the tokens before the first prompted block, for every image alike."""
        return None

    def append_token(self, tokens: Tokens) -> Float[Tensor, "B more D"]:
        """The tokens that enter the first prompted block."""
        extra = self.extra_tokens()
        return tokens if extra is None else torch.cat([tokens, extra.expand(tokens.shape[0], len(extra), -1)], dim=1)

    def block_prompts(self) -> dict[int, BlockPrompt]:
        """Prompts of the distillation's own, by block; they carry no batch dimension of their own (b = 1)."""
        return {}

    def extra_logits(self, computed: Float[Tensor, "B n D"]) -> Logits | None:
        """Logits of a head of its own, from the features that the learner has computed."""
        return None

    def shared_parameters(self) -> tuple[list[nn.Parameter], float]:
        """Parameters that go on learning in every task, and their share of the learning rate."""
        return [], 1.0

    def predict(self, class_logits: Logits, extra_logits: Logits | None) -> Logits:
        """The logits the student answers with."""
        return class_logits

    def fold(self, class_head: FoldedHead) -> FoldedHead:
        """`predict` as one matrix product, from that of the class head."""
        return class_head

    def losses(
        self,
        cross_entropy: Tensor,
        student: LearnerOutput,
        teacher: LearnerOutput | None,
        first_class: int,
        labels: Labels,
    ) -> dict[str, Tensor]:
        """The weighted terms of the student's loss, by name, without those of the prompt selection.

        The current task's classes begin at `first_class`; `labels` [B] count from the first class of all.
        """
        return {"cross_entropy": cross_entropy}
