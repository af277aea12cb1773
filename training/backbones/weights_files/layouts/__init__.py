"""The layouts of names that are known. A new one is a file in this folder and a line here."""

from cdl_deploy.training.backbones.weights_files.layouts import (
    original,
    torchvision_vit,
    transformers_clip,
    transformers_vit,
)
from cdl_deploy.training.backbones.weights_files.layouts.layout import Layout

LAYOUTS: tuple[Layout, ...] = (
    *transformers_vit.LAYOUTS,
    *transformers_clip.LAYOUTS,
    *torchvision_vit.LAYOUTS,
    *original.LAYOUTS,
)
"""Of those with the same anchor, the first whose sign is there is a file's."""
