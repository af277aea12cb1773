"""APT, additive prompt tuning: a vector for the class token's key and one for its value in every block.

Nothing is chosen by the image, so there is no query pass. Two sets are kept (method, section 3): P is trained and goes
on from task to task, G is what evaluation uses. At the end of task t:

    G_1 = P_1         G_t = e·G_{t−1} + (1 − e)·P_t
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from cdl_deploy.errors import OptionError
from cdl_deploy.run.method_options import APTConfig
from cdl_deploy.training.backbones.protocol import POOLED, BlockPrompt, NetworkShape
from cdl_deploy.training.heads import Head
from cdl_deploy.training.heads.cosine import CosineHead
from cdl_deploy.training.methods.protocol import ContinualMethod, Phase, PromptSelection
from cdl_deploy.training.shapes import Query


class AdditivePrompts(ContinualMethod):
    """P and G [L, 2, D] (block; key, value). P starts truncated normal with standard deviation 0.02.

    Differs: the teacher distils with P, the prompts it has just trained. The reference's teacher distils with prompts
    merged up to the task before, G_{t−1}, which are all zeros in the first; so does this one with `distils_merged`, and
    keeps them as `before`.
    """

    Config = APTConfig

    uses_query = False
    head: ClassVar[type[Head]] = CosineHead
    training_only = ("working", "merges", "before")

    merged: Tensor
    merges: Tensor

    before: Tensor | None

    def __init__(
        self, shape: NetworkShape, generator: torch.Generator, merge_share: float = 0.7, distils_merged: bool = False
    ) -> None:
        """`merge_share`: e, what G keeps of itself."""
        super().__init__()
        self.merge_share = merge_share
        self.working = nn.Parameter(torch.empty(shape.depth, 2, shape.width))
        nn.init.trunc_normal_(self.working, std=0.02, generator=generator)
        self.register_buffer("merged", torch.zeros(shape.depth, 2, shape.width))
        self.register_buffer("merges", torch.tensor(0))  # how many tasks G holds
        self.register_buffer("before", torch.zeros(shape.depth, 2, shape.width) if distils_merged else None)

    @classmethod
    def build(cls, shape: NetworkShape, config: APTConfig, generator: torch.Generator) -> AdditivePrompts:
        if shape.pooling is not None:
            has = "has a class token, but none is read" if shape.layout.class_token else "has no class token"
            raise OptionError(
                f"--method apt shifts the class token's keys and values, and a network here {has}: heads read "
                f"{POOLED.get(shape.pooling, 'pooled tokens')}; take another --method, or a model that reads its class "
                "token"
            )
        return cls(shape, generator, config.merge_share, config.apt_teacher == "merged")

    def begin_task(self, generator: torch.Generator) -> None:
        """Nothing: P goes on learning."""

    @torch.no_grad()
    def end_task(self) -> None:
        """Merge P into G."""
        if self.before is not None:
            self.before.copy_(self.merged)
        keep = self.merge_share if self.merges else 0.0
        self.merged.mul_(keep).add_(self.working, alpha=1 - keep)
        self.merges += 1

    def forward(self, query: Query | None, phase: Phase) -> PromptSelection:
        vectors = self.merged if phase == "test" else self.working
        if phase == "distil" and self.before is not None:
            vectors = self.before
        return PromptSelection({index: BlockPrompt(cls_bias=(pair[0], pair[1])) for index, pair in enumerate(vectors)})
