"""DeiT's distillation token (Touvron et al., ICML 2021, arXiv 2012.12877) beside continual-learning prompts."""

from __future__ import annotations

import torch

from cdl_deploy.run.config import MethodConfig
from cdl_deploy.training.distillation.extra_token import ExtraToken
from cdl_deploy.training.models.backbone import NetworkShape


class DeitToken(ExtraToken):
    """An extra token that starts at zero, and the KD head; no KD prompts. Prediction and loss are KDP's.

    Differs: like KDP's, the token learns at a tenth of the learning rate; `kd_lr_scale=1` is the paper's.
    """

    def __init__(self, shape: NetworkShape, config: MethodConfig) -> None:
        super().__init__(torch.zeros(1, shape.width), shape.width, config)
