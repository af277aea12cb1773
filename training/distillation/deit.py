"""DeiT's distillation token (Touvron et al., ICML 2021, arXiv 2012.12877) beside continual-learning prompts."""

from __future__ import annotations

import torch

from cdl_deploy.run.method_options import DeiTConfig
from cdl_deploy.training.distillation.extra_token import ExtraToken
from cdl_deploy.training.distillation.protocol import Networks


class DeitToken(ExtraToken):
    """An extra token that starts at zero, and the KD head; no KD prompts. Prediction and loss are KDP's.

    Differs: like KDP's, the token learns at a tenth of the learning rate; `kd_lr_scale=1` is the paper's.
    """

    Config = DeiTConfig

    def __init__(self, networks: Networks, config: DeiTConfig) -> None:
        super().__init__(torch.zeros(1, networks.student.width), networks, config)

    @classmethod
    def build(cls, networks: Networks, config: DeiTConfig, generator: torch.Generator) -> DeitToken:
        return cls(networks, config)
