"""The distillations by name. A new one is a file in this folder and a line in `DISTILLATIONS`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cdl_deploy.run.config import MethodConfig
from cdl_deploy.training.distillation.deit import DeitToken
from cdl_deploy.training.distillation.dkd import DKD
from cdl_deploy.training.distillation.fitnets import FitNets
from cdl_deploy.training.distillation.kd import KD
from cdl_deploy.training.distillation.kdp import KDPrompts
from cdl_deploy.training.distillation.protocol import Distillation, LearnerOutput
from cdl_deploy.training.distillation.reviewkd import ReviewKD
from cdl_deploy.training.models.backbone import NetworkShape

Build = Callable[[NetworkShape, NetworkShape | None, Tensor, MethodConfig, torch.Generator], Distillation]
"""From the student's shape, the teacher's shape, the student's class token [1, D] as it enters block 0, the
configuration, and a generator for initial values."""

DISTILLATIONS: dict[str, Build] = {
    "none": lambda student, teacher, class_token, config, generator: Distillation(),
    "kd": lambda student, teacher, class_token, config, generator: KD(config),
    "dkd": lambda student, teacher, class_token, config, generator: DKD(config),
    "fitnets": lambda student, teacher, class_token, config, generator: FitNets(student, teacher, config, generator),
    "reviewkd": lambda student, teacher, class_token, config, generator: ReviewKD(student, teacher, config, generator),
    "deit": lambda student, teacher, class_token, config, generator: DeitToken(student, config),
    "kdp": lambda student, teacher, class_token, config, generator: KDPrompts(student, class_token, config, generator),
}


def needs_teacher(distill: str) -> bool:
    """Whether a teacher is trained at all."""
    return distill != "none"


def build_distillation(
    student: NetworkShape,
    teacher: NetworkShape | None,
    class_token: Tensor,
    config: MethodConfig,
    generator: torch.Generator,
) -> Distillation:
    """The distillation `config.distill` names."""
    return DISTILLATIONS[config.distill](student, teacher, class_token, config, generator)


__all__ = ["DISTILLATIONS", "Distillation", "LearnerOutput", "build_distillation", "needs_teacher"]
