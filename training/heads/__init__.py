"""The kinds of heads by name. A new one is a file in this folder and a line in `HEADS`."""

from __future__ import annotations

from cdl_deploy.run import plugins
from cdl_deploy.training.heads.cosine import CosineHead
from cdl_deploy.training.heads.linear import LinearHead
from cdl_deploy.training.heads.protocol import FoldedHead, Head
from cdl_deploy.training.registry import Registry

HEADS: Registry[type[Head]] = Registry(plugins.HEADS, {"linear": LinearHead, "cosine": CosineHead})

__all__ = ["HEADS", "FoldedHead", "Head"]
