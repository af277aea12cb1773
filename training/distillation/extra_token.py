"""An extra token, read by a KD head that learns from the teacher: what KDP and DeiT share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.config import MethodConfig
from cdl_deploy.training.distillation.protocol import Distillation, Output
from cdl_deploy.training.losses import distillation_loss
from cdl_deploy.training.methods import build_head
from cdl_deploy.training.shapes import Labels, Logits, Tokens


class ExtraToken(Distillation):
    """One token [1, D], appended at the end of the sequence before the first prompted block, and the KD head.

    Both are created once and carried through all tasks. The token learns at `kd_lr_scale` of the learning rate.
    """

    needs_teacher = True
    answers = True
    reads = (0, -1)

    def __init__(self, token: Float[Tensor, "1 D"], config: MethodConfig) -> None:
        super().__init__()
        self.alpha, self.temperature, self.lr_scale = config.alpha, config.temperature, config.kd_lr_scale
        self.token = nn.Parameter(token)
        self.head = build_head(token.shape[1], config)

    def begin_task(self, new_classes: int, generator: torch.Generator, known: Sequence[int] = ()) -> None:
        self.head.begin_task(new_classes, generator, known)

    def append_token(self, tokens: Tokens) -> Float[Tensor, "B N+1 D"]:
        return torch.cat([tokens, self.token.expand(tokens.shape[0], 1, -1)], dim=1)

    def extra_logits(self, normalised_tokens: Tokens) -> Logits:
        return self.head(normalised_tokens[:, -1])

    def shared_parameters(self) -> tuple[list[nn.Parameter], float]:
        return [self.token], self.lr_scale

    def predict(self, class_logits: Logits, extra_logits: Logits | None) -> Logits:
        """(1 − α)·z_class + α·z_kd, raw logits."""
        assert extra_logits is not None
        return (1 - self.alpha) * class_logits + self.alpha * extra_logits

    def losses(
        self, cross_entropy: Tensor, student: Output, teacher: Output | None, first_class: int, labels: Labels
    ) -> dict[str, Tensor]:
        """(1 − α)·CE on the class head, α·KD on the KD head over the current task's classes (method, section 5)."""
        assert teacher is not None and student.extra_logits is not None
        soft = distillation_loss(
            student.extra_logits[:, first_class:], teacher.class_logits[:, first_class:], self.temperature
        )
        return {"cross_entropy": (1 - self.alpha) * cross_entropy, "distillation": self.alpha * soft}
