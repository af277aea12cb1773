"""The distillations by name. A new one is a file in this folder and a line in `DISTILLATIONS`, or a package of its own:
see docs/extending.md."""

from __future__ import annotations

import torch
from torch import Tensor

from cdl_deploy.run import plugins
from cdl_deploy.run.config import MethodConfig, RunConfig
from cdl_deploy.training.backbones.protocol import NetworkShape
from cdl_deploy.training.distillation.deit import DeitToken
from cdl_deploy.training.distillation.dkd import DKD
from cdl_deploy.training.distillation.fitnets import FitNets
from cdl_deploy.training.distillation.kd import KD
from cdl_deploy.training.distillation.kdp import KDPrompts
from cdl_deploy.training.distillation.protocol import Distillation, LearnerOutput, Networks
from cdl_deploy.training.distillation.reviewkd import ReviewKD
from cdl_deploy.training.methods import build_student_head
from cdl_deploy.training.registry import Registry

DISTILLATIONS: Registry[type[Distillation]] = Registry(
    plugins.DISTILLATIONS,
    {
        "none": Distillation,
        "kd": KD,
        "dkd": DKD,
        "fitnets": FitNets,
        "reviewkd": ReviewKD,
        "deit": DeitToken,
        "kdp": KDPrompts,
    },
)


def has_teacher(config: RunConfig) -> bool:
    """Whether a teacher is trained at all: to be learned from, or to compare with."""
    return DISTILLATIONS[config.method.distill].needs_teacher or config.models.train_teacher


def build_distillation(
    student: NetworkShape,
    teacher: NetworkShape | None,
    class_token: Tensor,
    config: MethodConfig,
    generator: torch.Generator,
) -> Distillation:
    """The distillation `config.distill` names."""
    networks = Networks(
        student, teacher, class_token, lambda width, features: build_student_head(width, config, features)
    )
    distillation = DISTILLATIONS[config.distill]
    return distillation.build(networks, config.part(distillation.Config), generator)


__all__ = ["DISTILLATIONS", "Distillation", "LearnerOutput", "Networks", "build_distillation", "has_teacher"]
