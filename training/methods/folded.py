"""What a method does at test time as an exported graph has it: all that depends on no image is a constant.

Only export needs this. It hands each block's attention to a method's `fold`, which knows nothing of it but how prompts
have to be laid out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.backbones.protocol import BlockPrompt

HeadRows = tuple[Float[Tensor, "b H p d"], Float[Tensor, "b H p d"]]
"""key prompts and value prompts, split into heads."""


@runtime_checkable
class PromptedAttention(Protocol):
    """What is known of an exported block's attention."""

    heads: int

    def shifted(self, rows: HeadRows) -> HeadRows:
        """Prompts as this attention wants them: without what its own keys and values have been left without."""


Attentions = Mapping[int, PromptedAttention]
"""By block."""


class Chosen(NamedTuple):
    """The prompts of a batch, and whose they are."""

    prompts: dict[int, HeadRows]
    """Prefix prompts [b, H, p, d] for each block in which the image has a say, as the block's attention wants them."""
    task_scores: Float[Tensor, "b T"]
    """How strongly each task's prompts were selected; each row adds up to 1."""


class FixedSelection(NamedTuple):
    """Prompts selected once for all images."""

    prompts: dict[int, BlockPrompt]
    task_scores: Float[Tensor, "1 T"] | None
    """None where prompts belong to no task."""


class FoldedSelection(nn.Module):
    """A method's selection after `tasks` tasks, with its constants folded. `forward` takes the query [B, Q]."""

    by_task: bool = False
    """Whether prompts belong to tasks. Where they do not, every task's score is 1 / T."""
    uses_query: bool = True
    scores: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.register_buffer("scores", torch.full((1, tasks), 1 / tasks))
        self.constants: Mapping[int, BlockPrompt] = {}
        """Prompts that are the same for every image."""

    def forward(self, query: Tensor | None) -> Chosen:
        """The choice for a batch."""
        raise NotImplementedError


class MethodItself(FoldedSelection):
    """A method that has no folded form runs as it is."""

    def __init__(self, method: nn.Module, attentions: Attentions, tasks: int) -> None:
        super().__init__(tasks)
        self.method, self.attentions = method, dict(attentions)

    def forward(self, query: Tensor | None) -> Chosen:
        assert query is not None
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


class ConstantSelection(FoldedSelection):
    """The same prompts for every image: a method that looks at no query, or a choice made at export."""

    uses_query = False

    def __init__(self, fixed: FixedSelection, tasks: int) -> None:
        super().__init__(tasks)
        self.constants = fixed.prompts
        if fixed.task_scores is not None:
            self.by_task, self.scores = True, fixed.task_scores

    def forward(self, query: Tensor | None) -> Chosen:
        return Chosen({}, self.scores)


def split_heads(rows: Tensor, heads: int) -> Tensor:
    """Rows [B, N, D] split into heads [B, H, N, d]."""
    return rows.unflatten(2, (heads, -1)).transpose(1, 2)


def split_parts(prompts: Float[Tensor, "M 2 p D"], heads: int) -> Float[Tensor, "M 2 H p d"]:
    """key prompts and value prompts of many prompts, split into heads."""
    return prompts.unflatten(3, (heads, -1)).transpose(2, 3)


def fitted(prompts: Float[Tensor, "M 2 p D"], attention: PromptedAttention) -> Float[Tensor, "M 2 H p d"]:
    """The same, as `attention` wants them."""
    key, value = split_parts(prompts, attention.heads).unbind(1)
    return torch.stack(attention.shifted((key, value)), dim=1)
