"""L2P (Wang et al., CVPR 2022, arXiv 2112.08654): each image picks a few prompts out of one pool.

The pool sits in the first prompted block; all tasks share it. With unit keys k_i (method, section 3):

    s_i = cos(q, k_i)         prompt = P_a, P_b, … put one behind the other, s_a ≥ s_b ≥ … the `top_k` largest

The pull loss, mean over the batch of Σ over the chosen (1 − s_i), draws the chosen keys towards the query.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdl_deploy.run.method_options import L2PConfig
from cdl_deploy.training.backbones.protocol import BlockPrompt, NetworkShape
from cdl_deploy.training.methods.folded import Attentions, Chosen, FixedSelection, FoldedSelection, fitted
from cdl_deploy.training.methods.protocol import ContinualMethod, Phase, PromptSelection, prompted_blocks
from cdl_deploy.training.shapes import Query, Similarities


class L2P(ContinualMethod):
    """Keys [M, Q] and prompts [M, 2, p, D] (key prompts, value prompts), uniform in [0, 1) before the first task."""

    Config = L2PConfig

    def __init__(
        self,
        shape: NetworkShape,
        generator: torch.Generator,
        pool_size: int = 30,
        top_k: int = 5,
        prompt_length: int = 10,
        key_loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.block = prompted_blocks("L2P", shape, 1).start
        self.top_k, self.key_loss_weight = top_k, key_loss_weight
        self.keys = nn.Parameter(torch.rand(pool_size, shape.query_width, generator=generator))
        self.prompts = nn.Parameter(torch.rand(pool_size, 2, prompt_length, shape.width, generator=generator))

    @classmethod
    def build(cls, shape: NetworkShape, config: L2PConfig, generator: torch.Generator) -> L2P:
        return cls(shape, generator, config.pool_size, config.top_k, config.prompt_length or 10, config.key_loss_weight)

    def begin_task(self, generator: torch.Generator) -> None:
        """Nothing: the pool goes on learning."""

    def forward(self, query: Query | None, phase: Phase) -> PromptSelection:
        assert query is not None
        nearest, chosen = self.similarities(query)[0].topk(self.top_k, dim=1)
        # An embedding, because its gradient adds up in the same order every time; indexing promises no order.
        rows = F.embedding(chosen, self.prompts.flatten(1)).unflatten(2, self.prompts.shape[1:])
        key_prompts, value_prompts = rows.transpose(1, 2).flatten(2, 3).unbind(1)
        prompts = {self.block: BlockPrompt(prefix=(key_prompts, value_prompts))}
        losses = {"key_loss": self.key_loss_weight * (1 - nearest).sum(dim=1).mean()} if phase == "train" else {}
        return PromptSelection(prompts, losses)

    def fold(self, attentions: Attentions, tasks: int) -> FoldedSelection:
        return FoldedL2P(self, attentions, tasks)

    def fix_selection(self, queries: Query, task: int | None, tasks: int) -> FixedSelection:
        """The `top_k` prompts that most queries choose; of equally many the nearer one."""
        similarity = self.similarities(queries)[0]
        chosen = similarity.topk(self.top_k, dim=1).indices
        votes = torch.bincount(chosen.flatten(), minlength=similarity.shape[1]).tolist()
        mean = similarity.mean(dim=0).tolist()
        best = sorted(range(len(votes)), key=lambda i: (-votes[i], -mean[i]))[: self.top_k]
        key_prompts, value_prompts = self.prompts[best].transpose(0, 1).flatten(1, 2).unsqueeze(1)
        return FixedSelection({self.block: BlockPrompt(prefix=(key_prompts, value_prompts))}, None)

    def similarities(self, query: Query) -> list[Similarities]:
        """cos(q, k_i)."""
        return [F.normalize(query, dim=1) @ F.normalize(self.keys, dim=1).T]


class FoldedL2P(FoldedSelection):
    """The `top_k` largest of q · K̂ᵀ: the length of the query changes no order, so it is left out."""

    keys: Tensor
    prompts: Tensor

    def __init__(self, method: L2P, attentions: Attentions, tasks: int) -> None:
        super().__init__(tasks)
        self.block, self.top_k = method.block, method.top_k
        by_head = fitted(method.prompts.detach(), attentions[self.block])  # [M, 2, H, p, d]
        self.parts = by_head.shape[1:]
        self.register_buffer("keys", F.normalize(method.keys.detach(), dim=1).T.contiguous())
        self.register_buffer("prompts", by_head.flatten(1).contiguous())

    def forward(self, query: Tensor | None) -> Chosen:
        assert query is not None
        chosen = (query @ self.keys).topk(self.top_k, dim=1).indices
        rows = F.embedding(chosen, self.prompts).unflatten(2, self.parts)  # [B, k, 2, H, p, d]
        key_prompts, value_prompts = rows.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).unbind(0)
        return Chosen({self.block: (key_prompts, value_prompts)}, self.scores)
