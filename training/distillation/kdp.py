"""KDP, distillation with global KD prompts (Zhang et al., arXiv 2407.13911; method, section 4).

One KD token is appended to the sequence before the first prompted block; every block after that gets KD prompts
behind its keys and values. A KD head reads the token and learns from the teacher. Token, prompts and head are created
once and carried through all tasks: they are the teacher's memory.
"""

from __future__ import annotations

import torch
from torch import nn

from cdl_deploy.errors import OptionError
from cdl_deploy.run.method_options import KDPConfig
from cdl_deploy.training.backbones.protocol import BlockPrompt
from cdl_deploy.training.distillation.extra_token import ExtraToken
from cdl_deploy.training.distillation.protocol import Networks


class KDPrompts(ExtraToken):
    """KD token [1, D], KD prompts [L − 1, 2, p, D] and the KD head.

    Differs: the token starts as the backbone's class token, so that the KD head reads the features the backbone was
    trained to give from the first step on, and token and prompts learn at a tenth of the learning rate. The paper
    starts the token uniform in [0, 1) and gives all the whole rate. Where a task has a hundred steps and not fifteen
    hundred, the token then never learns to read, and what earlier tasks' rows of the KD head relied on drifts away
    under them (docs/findings.md). `kd_token_start="uniform"` and `kd_lr_scale=1` are the paper's.
    """

    Config = KDPConfig

    def __init__(self, networks: Networks, config: KDPConfig, generator: torch.Generator) -> None:
        shape = networks.student
        uniform = torch.rand(1, shape.width, generator=generator)
        token = {"uniform": uniform, "class-token": networks.class_token.clone()}.get(config.kd_token_start)
        super().__init__(token, networks, config)
        self.first_prefix = shape.first_block + 1
        prefixes, length = shape.depth - self.first_prefix, config.kd_prompt_length
        if prefixes < 1:
            raise OptionError(
                f"KDP prompts the student from block {self.first_prefix} on, but it ends before: choose a deeper "
                f"one{shape.remedies(2)}"
            )
        if config.kd_prompt_blocks is not None:
            prefixes = min(prefixes, config.kd_prompt_blocks)
        start = torch.rand(prefixes, 2, length, shape.width, generator=generator)
        if config.kd_prompt_start == "orthogonal":
            start = torch.linalg.qr((start - 0.5).flatten(1, 2).mT)[0].mT.reshape(start.shape)
        self.prompts = nn.Parameter(start * config.kd_prompt_scale)

    @classmethod
    def build(cls, networks: Networks, config: KDPConfig, generator: torch.Generator) -> KDPrompts:
        return cls(networks, config, generator)

    def block_prompts(self) -> dict[int, BlockPrompt]:
        pairs = enumerate(self.prompts.unbind(0), start=self.first_prefix)
        return {index: BlockPrompt(suffix=(pair[0:1], pair[1:2])) for index, pair in pairs}

    def shared_parameters(self) -> tuple[list[nn.Parameter], float]:
        return [*super().shared_parameters()[0], self.prompts], self.lr_scale
