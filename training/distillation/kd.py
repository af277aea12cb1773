"""KD, the classic (Hinton et al., 2015, arXiv 1503.02531): the class head also learns the teacher's softened logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cdl_deploy.run.method_options import KDConfig
from cdl_deploy.training.distillation.protocol import Distillation, LearnerOutput, Networks
from cdl_deploy.training.losses import distillation_loss
from cdl_deploy.training.shapes import Labels


class KD(Distillation):
    """α·KD on the class head, and nothing that trains; the base of those that compare features as well."""

    Config = KDConfig

    needs_teacher = True

    def __init__(self, config: KDConfig) -> None:
        super().__init__()
        self.alpha, self.temperature = config.alpha, config.temperature
        self.over_seen = config.kd_classes == "seen"

    @classmethod
    def build(cls, networks: Networks, config: Any, generator: torch.Generator) -> KD:
        return cls(config)

    def losses(
        self,
        cross_entropy: Tensor,
        student: LearnerOutput,
        teacher: LearnerOutput | None,
        first_class: int,
        labels: Labels,
    ) -> dict[str, Tensor]:
        """(1 − α)·CE and α·KD, both on the class head and over the current task's classes, KD maybe over all seen."""
        assert teacher is not None
        first = 0 if self.over_seen else first_class
        soft = distillation_loss(student.class_logits[:, first:], teacher.class_logits[:, first:], self.temperature)
        return {"cross_entropy": (1 - self.alpha) * cross_entropy, "distillation": self.alpha * soft}
