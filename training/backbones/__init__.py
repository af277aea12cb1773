"""Families of frozen ViTs by name. A new one is a file in this folder and a line in `BACKBONES`."""

from __future__ import annotations

from typing import Any

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
    """The network, frozen. Raises WeightsError where no family takes it: the reason of the first."""
    refusals: list[WeightsError] = []
    for family in BACKBONES.values():
        try:
            family.check(vit)
        except WeightsError as error:
            refusals.append(error)
        else:
            backbone: Backbone = family(vit, mean, std)
            return backbone
    raise refusals[0]


__all__ = ["BACKBONES", "Backbone", "build_backbone"]
