"""Prompt selection with everything that does not depend on the image turned into constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.export.attention import FoldedAttention, HeadRows, split_heads
from cdl_deploy.export.fixed_selection import FixedPrompts
from cdl_deploy.training.backbones.protocol import BlockPrompt
from cdl_deploy.training.methods import ContinualMethod
from cdl_deploy.training.methods.coda import CodaPrompt
from cdl_deploy.training.methods.dualprompt import DualPrompt
from cdl_deploy.training.methods.l2p import L2P
from cdl_deploy.training.shapes import Query

Attentions = Mapping[int, FoldedAttention]
"""By block."""


class Chosen(NamedTuple):
    """The prompts of a batch, and whose they are."""

    prompts: dict[int, HeadRows]
    """Prefix prompts [b, H, p, d] for each block in which the image has a say, as the block's attention wants them."""
    task_scores: Float[Tensor, "b T"]
    """How strongly each task's prompts were selected; each row adds up to 1."""


class FoldedSelection(nn.Module):
    """What a method does at test time. This one runs the method itself: any method can be exported."""

    by_task: bool = False
    """Whether prompts belong to tasks. Where they do not, every task's score is 1 / T."""
    scores: Tensor

    def __init__(self, method: ContinualMethod, attentions: Attentions, tasks: int) -> None:
        super().__init__()
        self.method: ContinualMethod | None = method
        self.attentions, self.tasks = dict(attentions), tasks
        self.register_buffer("scores", torch.full((1, tasks), 1 / tasks))
        self.constants: Mapping[int, BlockPrompt] = {}
        """Prompts that are the same for every image."""

    def forward(self, query: Query) -> Chosen:
        """The choice for a batch."""
        assert self.method is not None
        found = {}
        for index, prompt in self.method(query, "test").prompts.items():
            assert prompt.prefix is not None
            attention = self.attentions[index]
            key, value = prompt.prefix
            rows = (split_heads(key, attention.heads), split_heads(value, attention.heads))
            key_prompts, value_prompts = attention.shifted(rows)
            size = (query.shape[0], -1, -1, -1)
            found[index] = (key_prompts.expand(size), value_prompts.expand(size))
        return Chosen(found, self.scores)


class FoldedConstants(FoldedSelection):
    """A method that looks at no query, such as APT, or a choice made at export: all its prompts are constants."""

    def __init__(self, method: ContinualMethod, attentions: Attentions, tasks: int) -> None:
        super().__init__(method, attentions, tasks)
        self.method = None
        self.constants = method(None, "test").prompts
        if isinstance(method, FixedPrompts) and method.task_scores is not None:
            self.by_task, self.scores = True, method.task_scores

    def forward(self, query: Query | None) -> Chosen:
        return Chosen({}, self.scores)


class FoldedL2P(FoldedSelection):
    """The `top_k` largest of q · K̂ᵀ: the length of the query changes no order, so it is left out."""

    keys: Tensor
    prompts: Tensor

    def __init__(self, method: L2P, attentions: Attentions, tasks: int) -> None:
        super().__init__(method, attentions, tasks)
        self.method = None
        self.block, self.top_k = method.block, method.top_k
        by_head = fitted(method.prompts.detach(), attentions[self.block])  # [M, 2, H, p, d]
        self.parts = by_head.shape[1:]
        self.register_buffer("keys", F.normalize(method.keys.detach(), dim=1).T.contiguous())
        self.register_buffer("prompts", by_head.flatten(1).contiguous())

    def forward(self, query: Query) -> Chosen:
        chosen = (query @ self.keys).topk(self.top_k, dim=1).indices
        rows = F.embedding(chosen, self.prompts).unflatten(2, self.parts)  # [B, k, 2, H, p, d]
        key_prompts, value_prompts = rows.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).unbind(0)
        return Chosen({self.block: (key_prompts, value_prompts)}, self.scores)


class FoldedDualPrompt(FoldedSelection):
    """The entry with the largest q · k̂ in each block, the keys of all blocks side by side; shared prompts are constant.

    The length of the query changes no order, so it is left out. A task's score is the share of the blocks in which its
    entry was chosen.
    """

    by_task = True
    keys: Tensor
    numbers: Tensor

    def __init__(self, method: DualPrompt, attentions: Attentions, tasks: int) -> None:
        super().__init__(method, attentions, tasks)
        self.method = None
        self.constants = method.shared_prompts()
        entries = method.own_entries()
        self.indices = tuple(entries)
        keys = torch.cat([F.normalize(block.keys.all(), dim=1) for block in entries.values()])
        self.register_buffer("keys", keys.detach().T.contiguous())
        self.register_buffer("numbers", torch.arange(tasks))
        for index, block in entries.items():
            by_head = fitted(block.prompts.all().detach(), attentions[index])
            self.parts = by_head.shape[1:]
            self.register_buffer(f"prompts_{index}", by_head.flatten(1).contiguous())

    def forward(self, query: Query) -> Chosen:
        prompts = {}
        # Compared for all blocks at once, [B, blocks, T]: an argmax each would be as many small nodes.
        nearest = (query @ self.keys).unflatten(1, (len(self.indices), self.tasks)).argmax(dim=2)
        for position, index in enumerate(self.indices):
            rows = F.embedding(nearest[:, position], self.get_buffer(f"prompts_{index}")).unflatten(1, self.parts)
            prompts[index] = (rows[:, 0], rows[:, 1])
        return Chosen(prompts, (nearest.unsqueeze(2) == self.numbers).float().mean(dim=1))


class FoldedCoda(FoldedSelection):
    """CODA's weights for all its blocks as two matrix products, its prompts as one more in each block.

    w = (q · (A∘K̂)ᵀ) / √(q² · (A²)ᵀ), with the M components of all blocks side by side. A task's score is its share of
    Σ |w| over all blocks.
    """

    by_task = True

    numerator: Tensor
    denominator: Tensor

    def __init__(self, method: CodaPrompt, attentions: Attentions, tasks: int) -> None:
        super().__init__(method, attentions, tasks)
        self.method = None
        blocks = method.own_blocks()
        self.indices = tuple(blocks)
        self.heads, self.prompt_length = attentions[self.indices[0]].heads, method.prompt_length
        masks = torch.cat([block.attentions.all() for block in blocks.values()])
        keys = torch.cat([F.normalize(block.keys.all(), dim=1) for block in blocks.values()])
        self.register_buffer("numerator", (masks * keys).T.contiguous())
        self.register_buffer("denominator", masks.square().T.contiguous())
        for index, block in blocks.items():
            prompts = block.prompts.all().unflatten(1, (2, -1)).detach()
            shift = fitted(torch.zeros_like(prompts[:1]), attentions[index])  # once, whatever the weights add up to
            self.register_buffer(f"shift_{index}", shift.flatten())
            by_head = split_parts(prompts, self.heads)  # as heads want them, so no transpose is left
            self.register_buffer(f"prompts_{index}", by_head.flatten(1).contiguous())

    def forward(self, query: Query) -> Chosen:
        norm = (query.square() @ self.denominator).sqrt().clamp_min(1e-12)
        weights = (query @ self.numerator) / norm
        prompts = {}
        for index, own in zip(self.indices, weights.chunk(len(self.indices), dim=1), strict=True):
            rows = own @ self.get_buffer(f"prompts_{index}") + self.get_buffer(f"shift_{index}")
            parts = rows.unflatten(1, (2, self.heads, self.prompt_length, -1))
            prompts[index] = (parts[:, 0], parts[:, 1])
        strengths = weights.abs().unflatten(1, (len(self.indices), self.tasks, -1)).sum(dim=(1, 3))
        return Chosen(prompts, strengths / strengths.sum(dim=1, keepdim=True).clamp_min(1e-12))


def split_parts(prompts: Float[Tensor, "M 2 p D"], heads: int) -> Float[Tensor, "M 2 H p d"]:
    """key prompts and value prompts of many prompts, split into heads."""
    return prompts.unflatten(3, (heads, -1)).transpose(2, 3)


def fitted(prompts: Float[Tensor, "M 2 p D"], attention: FoldedAttention) -> Float[Tensor, "M 2 H p d"]:
    """The same, as `attention` wants them."""
    key, value = split_parts(prompts, attention.heads).unbind(1)
    return torch.stack(attention.shifted((key, value)), dim=1)


def fold_selection(method: ContinualMethod, attentions: Attentions, tasks: int) -> FoldedSelection:
    """The folded form of a method's selection after `tasks` tasks; a method without one of its own runs as it is."""
    if isinstance(method, CodaPrompt):
        return FoldedCoda(method, attentions, tasks)
    if isinstance(method, L2P):
        return FoldedL2P(method, attentions, tasks)
    if isinstance(method, DualPrompt):
        return FoldedDualPrompt(method, attentions, tasks)
    return (
        FoldedSelection(method, attentions, tasks) if method.uses_query else FoldedConstants(method, attentions, tasks)
    )
