"""Prompt selection with everything that does not depend on the image turned into constants."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.methods import ContinualMethod
from cdl_deploy.training.methods.coda import CodaPrompt

HeadRows = tuple[Float[Tensor, "B H p d"], Float[Tensor, "B H p d"]]


class FoldedCoda(nn.Module):
    """CODA's weights for all its blocks as two matrix products, its prompts as one more in each block.

    w = (q · (A∘K̂)ᵀ) / √(q² · (A²)ᵀ), with the M components of all blocks side by side.
    """

    numerator: Tensor
    denominator: Tensor

    def __init__(self, method: CodaPrompt, heads: int) -> None:
        super().__init__()
        blocks = method.own_blocks()
        self.indices = tuple(blocks)
        self.heads, self.rows = heads, method.prompt_rows
        attentions = torch.cat([block.attentions.all() for block in blocks.values()])
        keys = torch.cat([F.normalize(block.keys.all(), dim=1) for block in blocks.values()])
        self.register_buffer("numerator", (attentions * keys).T.contiguous())
        self.register_buffer("denominator", attentions.square().T.contiguous())
        for index, block in blocks.items():
            prompts = block.prompts.all()  # [M, 2p, D]: rows are stored as heads want them, so no transpose is left
            by_head = prompts.unflatten(1, (2, -1)).unflatten(3, (heads, -1)).transpose(2, 3)
            self.register_buffer(f"prompts_{index}", by_head.flatten(1).contiguous())

    def forward(self, query: Float[Tensor, "B Q"]) -> dict[int, HeadRows]:
        """Key rows and value rows [B, H, p, d] for each block that has some."""
        norm = (query.square() @ self.denominator).sqrt().clamp_min(1e-12)
        weights = (query @ self.numerator) / norm
        prompts = {}
        for index, own in zip(self.indices, weights.chunk(len(self.indices), dim=1), strict=True):
            rows = (own @ self.get_buffer(f"prompts_{index}")).unflatten(1, (2, self.heads, self.rows, -1))
            prompts[index] = (rows[:, 0], rows[:, 1])
        return prompts


def fold_selection(method: ContinualMethod, heads: int) -> nn.Module:
    """The folded form of a method's selection; a new method adds its own here."""
    if isinstance(method, CodaPrompt):
        return FoldedCoda(method, heads)
    raise NotImplementedError(f"no folded selection for {type(method).__name__}")
