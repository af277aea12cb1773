"""The continual-learning methods by name. A new one is a file in this folder and a line in `METHODS`, or a
package of its own: see docs/extending.md."""

from __future__ import annotations

import torch

from cdl_deploy.errors import OptionError
from cdl_deploy.run import plugins
from cdl_deploy.run.config import MethodConfig, check_name
from cdl_deploy.training.backbones.protocol import NetworkShape
from cdl_deploy.training.features import Feature
from cdl_deploy.training.heads import HEADS, Head
from cdl_deploy.training.methods.apt import AdditivePrompts
from cdl_deploy.training.methods.coda import CodaPrompt
from cdl_deploy.training.methods.dualprompt import DualPrompt
from cdl_deploy.training.methods.l2p import L2P
from cdl_deploy.training.methods.protocol import ContinualMethod, Phase, PromptSelection
from cdl_deploy.training.registry import Registry

METHODS: Registry[type[ContinualMethod]] = Registry(
    plugins.METHODS, {"l2p": L2P, "dualprompt": DualPrompt, "coda": CodaPrompt, "apt": AdditivePrompts}
)


def build_method(shape: NetworkShape, config: MethodConfig, generator: torch.Generator) -> ContinualMethod:
    """The method `config.method` names, for one learner; what all tasks share is drawn from `generator`."""
    method = METHODS[config.method]
    if config.query != "full" and not method.uses_query:
        raise OptionError(
            f"--query {config.query} has no meaning with --method {config.method}, "
            "which chooses nothing by the image and has no query pass to save: leave --query out"
        )
    return method.build(shape, config.part(method.Config), generator)


def build_head(width: int, config: MethodConfig, features: tuple[Feature, ...] = ("class",)) -> Head:
    """An empty head of the kind the method asks for."""
    return METHODS[config.method].head(width, config.head_start, features)


def build_student_head(width: int, config: MethodConfig, features: tuple[Feature, ...] = ("class",)) -> Head:
    """The same for the student, which may have a kind of its own: for the classes or for the distillation's logits."""
    if config.student_head == "method":
        return build_head(width, config, features)
    check_name("--student-head", config.student_head, ("method", *HEADS))
    return HEADS[config.student_head](width, config.head_start, features)


__all__ = ["METHODS", "ContinualMethod", "Phase", "PromptSelection", "build_head", "build_method", "build_student_head"]
