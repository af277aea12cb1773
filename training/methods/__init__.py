"""The continual-learning methods by name. A new one is a file in this folder and a line in `METHODS`."""

from __future__ import annotations

from collections.abc import Callable

from cdl_deploy.training.config import MethodConfig
from cdl_deploy.training.methods.coda import CodaPrompt
from cdl_deploy.training.methods.protocol import ContinualMethod, Phase, Selection
from cdl_deploy.training.models.backbone import NetworkShape

METHODS: dict[str, Callable[[NetworkShape, MethodConfig], ContinualMethod]] = {
    "coda": lambda shape, config: CodaPrompt(shape, config.components_per_task),
}


def build_method(shape: NetworkShape, config: MethodConfig) -> ContinualMethod:
    """The method `config.method` names, for one learner."""
    return METHODS[config.method](shape, config)


__all__ = ["METHODS", "ContinualMethod", "Phase", "Selection", "build_method"]
