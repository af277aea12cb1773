"""Families of frozen ViTs by name. A new one is a file in this folder and a line in `BACKBONES`."""

from __future__ import annotations

from typing import Any

from timm.models.eva import Eva
from torch import nn

from cdl_deploy.errors import WeightsError
from cdl_deploy.run import plugins
from cdl_deploy.training.backbones.plain import PlainViT
from cdl_deploy.training.backbones.protocol import Backbone
from cdl_deploy.training.backbones.rotary import RotaryViT
from cdl_deploy.training.registry import Registry

BACKBONES: Registry[Any] = Registry(plugins.BACKBONES, {"plain": PlainViT, "rotary": RotaryViT})
"""Each is made of (network, mean, std). The first that does not refuse a network takes it."""


def build_backbone(vit: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> Backbone:
    """The network, frozen. Raises WeightsError where no family takes it: the reason of the one it comes nearest to."""
    refusals: dict[str, WeightsError] = {}
    for name, family in BACKBONES.items():
        try:
            family.check(vit)
        except WeightsError as error:
            refusals[name] = error
        else:
            backbone: Backbone = family(vit, mean, std)
            return backbone
    raise refusals["rotary" if type(vit) is Eva else "plain"]


__all__ = ["BACKBONES", "Backbone", "build_backbone"]
