"""FitNets (Romero et al., ICLR 2015, arXiv 1412.6550): the student's last tokens learn to predict the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from cdl_deploy.run.method_options import FitNetsConfig
from cdl_deploy.training.backbones.protocol import NetworkShape
from cdl_deploy.training.distillation.features import TokenMatch, drawn_linear
from cdl_deploy.training.distillation.kd import KD
from cdl_deploy.training.distillation.protocol import LearnerOutput, Networks
from cdl_deploy.training.losses import feature_loss
from cdl_deploy.training.shapes import Labels


class FitNets(KD):
    """KD, and 0.1·MSE(Linear(f_S), f_T); f is all tokens after the last block, before the final norm.

    The projection is created once, learns in every task, and is left behind when the student is exported.
    """

    Config = FitNetsConfig

    hidden_blocks = 1

    def __init__(
        self, student: NetworkShape, teacher: NetworkShape | None, config: FitNetsConfig, generator: torch.Generator
    ) -> None:
        super().__init__(config)
        assert teacher is not None
        self.weight = config.fitnets_weight
        self.match = TokenMatch(student.layout, teacher.layout)
        self.projection = drawn_linear(student.width, teacher.width, generator)

    @classmethod
    def build(cls, networks: Networks, config: FitNetsConfig, generator: torch.Generator) -> FitNets:
        return cls(networks.student, networks.teacher, config, generator)

    def notes(self) -> list[str]:
        return self.match.notes()

    def losses(
        self,
        cross_entropy: Tensor,
        student: LearnerOutput,
        teacher: LearnerOutput | None,
        first_class: int,
        labels: Labels,
    ) -> dict[str, Tensor]:
        """KD's terms and the feature term (method, section 5)."""
        terms = super().losses(cross_entropy, student, teacher, first_class, labels)
        assert teacher is not None
        projected = self.projection(self.match.of_student(student.hidden[-1]))
        return {**terms, "feature": self.weight * feature_loss(projected, self.match.of_teacher(teacher.hidden[-1]))}
