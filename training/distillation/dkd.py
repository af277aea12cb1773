"""DKD, decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679), on the class head."""

from __future__ import annotations

import torch
from torch import Tensor

from cdl_deploy.run.method_options import DKDConfig
from cdl_deploy.training.distillation.protocol import Distillation, LearnerOutput, Networks
from cdl_deploy.training.losses import nontarget_class_loss, target_class_loss
from cdl_deploy.training.shapes import Labels


class DKD(Distillation):
    """How sure the teacher is of the true class (TCKD) and how it ranks the others (NCKD), weighted apart.

    It has a temperature of its own.
    """

    Config = DKDConfig

    needs_teacher = True

    def __init__(self, config: DKDConfig) -> None:
        super().__init__()
        self.alpha, self.temperature = config.alpha, config.dkd_temperature
        self.target_weight, self.nontarget_weight = config.dkd_target_weight, config.dkd_nontarget_weight

    @classmethod
    def build(cls, networks: Networks, config: DKDConfig, generator: torch.Generator) -> DKD:
        return cls(config)

    def losses(
        self,
        cross_entropy: Tensor,
        student: LearnerOutput,
        teacher: LearnerOutput | None,
        first_class: int,
        labels: Labels,
    ) -> dict[str, Tensor]:
        """(1 − α)·CE and α·(1·TCKD + 4·NCKD) over the current task's classes (method, section 5)."""
        assert teacher is not None
        logits, guide = student.class_logits[:, first_class:], teacher.class_logits[:, first_class:]
        true = labels - first_class
        target = self.target_weight * target_class_loss(logits, guide, true, self.temperature)
        nontarget = self.nontarget_weight * nontarget_class_loss(logits, guide, true, self.temperature)
        return {
            "cross_entropy": (1 - self.alpha) * cross_entropy,
            "target_distillation": self.alpha * target,
            "nontarget_distillation": self.alpha * nontarget,
        }
