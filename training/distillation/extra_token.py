"""An extra token, read by a KD head that learns from the teacher: what KDP and DeiT share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.run.method_options import DeiTConfig
from cdl_deploy.training.distillation.protocol import Distillation, LearnerOutput, Networks
from cdl_deploy.training.features import side_by_side
from cdl_deploy.training.growing import ResizableBuffers
from cdl_deploy.training.heads import FoldedHead
from cdl_deploy.training.losses import distillation_loss, masked_cross_entropy
from cdl_deploy.training.shapes import Labels, Logits


class ChosenAlpha(ResizableBuffers):
    """α of the prediction by class [C], where every task chooses its own."""

    alpha: Tensor


class ExtraToken(Distillation):
    """One token [1, D], appended at the end of the sequence before the first prompted block, and the KD head.

    Both are created once and carried through all tasks. The token learns at `kd_lr_scale` of the learning rate. Without
    a token the KD head reads the class token.
    """

    needs_teacher = True
    used_in_prediction = True

    def __init__(self, token: Float[Tensor, "1 D"] | None, networks: Networks, config: DeiTConfig) -> None:
        super().__init__()
        self.alpha, self.temperature, self.lr_scale = config.alpha, config.temperature, config.kd_lr_scale
        self.over_seen = config.kd_classes == "seen"
        self.token = None if token is None else nn.Parameter(token)
        self.features = ("class",) if token is None else ("kd",)
        self.head = networks.new_head(networks.student.width, self.features)
        self.chosen = ChosenAlpha(alpha=torch.empty(0)) if config.alpha_holdout else None

    def begin_task(self, new_classes: int, generator: torch.Generator, known: Sequence[int] = ()) -> None:
        self.head.begin_task(new_classes, generator, known)
        if self.chosen is not None:
            alpha = self.chosen.alpha
            self.chosen.alpha = torch.cat([alpha, alpha.new_full((new_classes,), self.alpha)])

    def extra_tokens(self) -> Float[Tensor, "1 D"] | None:
        return self.token

    def extra_logits(self, computed: Float[Tensor, "B n D"]) -> Logits:
        return self.head(side_by_side(computed, self.features))

    def shared_parameters(self) -> tuple[list[nn.Parameter], float]:
        return [] if self.token is None else [self.token], self.lr_scale

    @property
    def mixing(self) -> float | Float[Tensor, " C"]:
        """α of the prediction: for all classes, or for each."""
        return self.alpha if self.chosen is None else self.chosen.alpha

    def predict(self, class_logits: Logits, extra_logits: Logits | None) -> Logits:
        """(1 − α)·z_class + α·z_kd, raw logits."""
        return mixed(class_logits, extra_logits, self.mixing)

    def fold(self, class_head: FoldedHead) -> FoldedHead:
        return class_head.mixed(self.head.fold(), self.mixing)

    def choose_alpha(self, class_logits: Logits, extra_logits: Logits, labels: Labels, first_class: int) -> None:
        """Of 0, 0.1, …, 1 the α with the lowest cross-entropy over the classes from `first_class` on, for these.

        Logits [B, C] and labels [B] are of the task's held-out images.
        """
        assert self.chosen is not None
        shares = [step / 10 for step in range(11)]
        losses = [
            float(masked_cross_entropy(mixed(class_logits, extra_logits, share), labels, first_class))
            for share in shares
        ]
        self.chosen.alpha[first_class:] = shares[losses.index(min(losses))]

    def losses(
        self,
        cross_entropy: Tensor,
        student: LearnerOutput,
        teacher: LearnerOutput | None,
        first_class: int,
        labels: Labels,
    ) -> dict[str, Tensor]:
        """(1 − α)·CE on the class head, α·KD on the KD head over the current task's classes (method, section 5).

        With `kd_classes="seen"` KD is over all classes: the rows of earlier ones stand still, the new learn their place
        among them.
        """
        assert teacher is not None and student.extra_logits is not None
        first = 0 if self.over_seen else first_class
        soft = distillation_loss(student.extra_logits[:, first:], teacher.class_logits[:, first:], self.temperature)
        return {"cross_entropy": (1 - self.alpha) * cross_entropy, "distillation": self.alpha * soft}


def mixed(class_logits: Logits, extra_logits: Logits | None, alpha: float | Float[Tensor, " C"]) -> Logits:
    """(1 − α)·z_class + α·z_kd."""
    assert extra_logits is not None
    return (1 - alpha) * class_logits + alpha * extra_logits
