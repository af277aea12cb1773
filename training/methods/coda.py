"""CODA-Prompt (Smith et al., CVPR 2023, arXiv 2211.13218): prompts are weighted sums of components.

In each of the blocks 0 to 4, component i has a key K_i, an attention A_i and prompts P_i (method, section 3):

    w_i = cos(q ∘ A_i, K_i)         prompt = Σ_i w_i P_i

No softmax and no top-k. Each task brings its own components; those of earlier tasks are frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.errors import OptionError
from cdl_deploy.run.method_options import CodaConfig
from cdl_deploy.training.backbones.protocol import BlockPrompt, NetworkShape
from cdl_deploy.training.growing import Cached, GrowingRows
from cdl_deploy.training.methods.folded import (
    Attentions,
    Chosen,
    FixedSelection,
    FoldedSelection,
    fitted,
    split_parts,
)
from cdl_deploy.training.methods.protocol import ContinualMethod, Phase, PromptSelection, prompted_blocks
from cdl_deploy.training.shapes import Query, Similarities

BLOCKS = 5


class CodaPrompt(ContinualMethod):
    """Components in five blocks from the learner's first prompted block on."""

    Config = CodaConfig

    def __init__(
        self,
        shape: NetworkShape,
        components_per_task: int = 10,
        prompt_length: int = 4,
        orthogonality: float = 0.0,
        one_pass: bool = False,
    ) -> None:
        """`prompt_length`: p, rows for the keys and as many for the values. `orthogonality`: μ of the extra loss.
        `one_pass`: new components start as `rows_in_one_pass` says."""
        super().__init__()
        self.new_rows = rows_in_one_pass if one_pass else orthonormal_rows
        self.components_per_task = components_per_task
        self.prompt_length = prompt_length
        self.orthogonality = orthogonality
        blocks = prompted_blocks("CODA-Prompt", shape, BLOCKS)
        self.blocks = nn.ModuleDict({str(b): CodaBlock(shape, prompt_length) for b in blocks})

    @classmethod
    def build(cls, shape: NetworkShape, config: CodaConfig, generator: torch.Generator) -> CodaPrompt:
        one_pass = config.component_start == "one-pass"
        return cls(shape, config.components_per_task, config.prompt_length or 4, config.orthogonality, one_pass)

    def own_blocks(self) -> dict[int, CodaBlock]:
        """The components by the index of the block they prompt."""
        return {int(index): cast(CodaBlock, block) for index, block in self.blocks.items()}

    def begin_task(self, generator: torch.Generator) -> None:
        for block in self.own_blocks().values():
            block.begin_task(self.components_per_task, generator, self.new_rows)

    def forward(self, query: Query | None, phase: Phase) -> PromptSelection:
        assert query is not None
        blocks = self.own_blocks()
        prompts = {index: BlockPrompt(prefix=block(query)) for index, block in blocks.items()}
        losses: dict[str, Tensor] = {}
        if self.orthogonality and phase == "train":
            penalty = torch.stack([block.orthogonality() for block in blocks.values()]).sum()
            losses["orthogonality"] = self.orthogonality * penalty
        return PromptSelection(prompts, losses)

    def fold(self, attentions: Attentions, tasks: int) -> FoldedSelection:
        return FoldedCoda(self, attentions, tasks)

    def fix_selection(self, queries: Query, task: int | None, tasks: int) -> FixedSelection:
        """Mean weights of all components; a task's score is its share of Σ |w|."""
        prompts, strengths = {}, torch.zeros(tasks)
        for index, block in self.own_blocks().items():
            weights = block.weights(queries).mean(dim=0)
            rows = (weights @ block.prompts.all().flatten(1)).view(1, *block.prompts.shape)
            key_prompts, value_prompts = rows.chunk(2, dim=1)
            prompts[index] = BlockPrompt(prefix=(key_prompts, value_prompts))
            if self.prompted_tasks == tasks:
                strengths += weights.abs().view(tasks, -1).sum(dim=1)
        by_task = (strengths / strengths.sum())[None] if self.prompted_tasks == tasks else None
        return FixedSelection(prompts, by_task)

    @property
    def prompted_tasks(self) -> int:
        """Tasks that brought components."""
        return len(next(iter(self.own_blocks().values())).keys) // self.components_per_task

    def similarities(self, query: Query) -> list[Similarities]:
        """w in each of the five blocks."""
        return [block.weights(query) for block in self.own_blocks().values()]


class CodaBlock(nn.Module):
    """The components of one block: keys and attentions [M, Q], prompts [M, 2p, D] (key prompts, then value prompts)."""

    def __init__(self, shape: NetworkShape, prompt_length: int) -> None:
        super().__init__()
        self.keys = GrowingRows(shape.query_width)
        self.attentions = GrowingRows(shape.query_width)
        self.prompts = GrowingRows(2 * prompt_length, shape.width)
        self.frozen = Cached(similarity_factors)

    def begin_task(self, components: int, generator: torch.Generator, new_rows: Callable[..., Tensor]) -> None:
        """New components, of unit length, from all earlier ones and what is drawn."""
        for rows in (self.keys, self.attentions, self.prompts):
            drawn = torch.randn(components, *rows.shape, generator=generator)
            new = new_rows(rows.all().detach().cpu().flatten(1), drawn.flatten(1))
            rows.grow(new.view_as(drawn))

    def frozen_weights(self, query: Query) -> Float[Tensor, "B n"]:
        """Of the components of earlier tasks; their factors are computed once."""
        return cosines(query, *self.frozen(self.keys.frozen, self.attentions.frozen))

    def trainable_weights(self, query: Query) -> Float[Tensor, "B m"]:
        """Of the current task's."""
        return cosines(query, *similarity_factors(self.keys.trainable, self.attentions.trainable))

    def weights(self, query: Query) -> Similarities:
        """cos(q ∘ A_i, K_i) of every component, in order."""
        return torch.cat([self.frozen_weights(query), self.trainable_weights(query)], dim=1)

    def forward(self, query: Query) -> tuple[Float[Tensor, "B p D"], Float[Tensor, "B p D"]]:
        """key prompts and value prompts [B, p, D] each.

        Earlier components are summed apart, without gradient and without joining them to the current ones: what a task
        costs then hardly depends on how many came before.
        """
        prompt = self.trainable_weights(query) @ self.prompts.trainable.flatten(1)
        if len(self.prompts.frozen):
            prompt = torch.addmm(prompt, self.frozen_weights(query), self.prompts.frozen.flatten(1))
        key_prompts, value_prompts = prompt.unflatten(1, self.prompts.shape).chunk(2, dim=1)
        return key_prompts, value_prompts

    def orthogonality(self) -> Float[Tensor, ""]:
        """Σ over K, A, P of mean((X Xᵀ − I)²)."""
        total = torch.zeros((), device=self.keys.trainable.device)
        for rows in (self.keys, self.attentions, self.prompts):
            matrix = rows.all().flatten(1)
            total = total + (matrix @ matrix.T - torch.eye(len(matrix), device=matrix.device)).square().mean()
        return total


class FoldedCoda(FoldedSelection):
    """CODA's weights for all its blocks as two matrix products, its prompts as one more in each block.

    w = (q · (A∘K̂)ᵀ) / √(q² · (A²)ᵀ), with the M components of all blocks side by side. A task's score is its share of
    Σ |w| over all blocks; where not every task brought components they belong to none.
    """

    numerator: Tensor
    denominator: Tensor

    def __init__(self, method: CodaPrompt, attentions: Attentions, tasks: int) -> None:
        super().__init__(tasks)
        blocks = method.own_blocks()
        self.by_task = method.prompted_tasks == tasks
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

    def forward(self, query: Tensor | None) -> Chosen:
        assert query is not None
        norm = (query.square() @ self.denominator).sqrt().clamp_min(1e-12)
        weights = (query @ self.numerator) / norm
        prompts = {}
        for index, own in zip(self.indices, weights.chunk(len(self.indices), dim=1), strict=True):
            rows = own @ self.get_buffer(f"prompts_{index}") + self.get_buffer(f"shift_{index}")
            parts = rows.unflatten(1, (2, self.heads, self.prompt_length, -1))
            prompts[index] = (parts[:, 0], parts[:, 1])
        if not self.by_task:
            return Chosen(prompts, self.scores)
        strengths = weights.abs().unflatten(1, (len(self.indices), self.tasks, -1)).sum(dim=(1, 3))
        return Chosen(prompts, strengths / strengths.sum(dim=1, keepdim=True).clamp_min(1e-12))


def similarity_factors(
    keys: Float[Tensor, "m Q"], attentions: Float[Tensor, "m Q"]
) -> tuple[Float[Tensor, "Q m"], Float[Tensor, "Q m"]]:
    """(A ∘ K̂)ᵀ and (A²)ᵀ, with K̂ the keys at unit length: what `cosines` needs to know of components."""
    return (attentions * F.normalize(keys, dim=1)).T, attentions.square().T


def cosines(query: Query, product: Float[Tensor, "Q m"], square: Float[Tensor, "Q m"]) -> Float[Tensor, "B m"]:
    """cos(q ∘ A_i, K_i) as two matrix products, so that no [B, m, Q] tensor is made.

    Σ_d q_d A_id K̂_id over √(Σ_d q_d² A_id²).
    """
    return (query @ product) / (query.square() @ square).sqrt().clamp_min(1e-12)


def orthonormal_rows(earlier: Float[Tensor, "n d"], drawn: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    """Gram-Schmidt: each drawn row minus its projections on all rows before it, then unit length.

    Earlier rows are trained, so they are no longer orthonormal: they are projected out as the span they are. In double
    precision, on the CPU.

    Differs: when as many rows exist as there are dimensions, no new direction is left; the reference then divides
    rounding noise by its length. Here such rows are made orthogonal to the rows of their own task only, so a student of
    width 64 can go on learning after its sixth task.
    """
    dimensions = drawn.shape[1]
    _check_count(len(drawn), dimensions)
    new = drawn.double()
    if len(earlier) and len(earlier) + len(drawn) <= dimensions:
        new = without_span(new, earlier.double())
    rows: list[Tensor] = []
    for row in new:
        for _ in range(2):  # twice is enough: the second pass removes the rounding of the first
            for done in rows:
                row = row - done * (done @ row)
        rows.append(row / row.norm())
    return torch.stack(rows).float()


def rows_in_one_pass(earlier: Float[Tensor, "n d"], drawn: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    """Each drawn row v less Σ_u (v·u / u·u) u over all rows u before it, then unit length: the reference's.

    That would be Gram-Schmidt if the rows u were orthogonal to one another. Earlier rows are trained and are not, so
    what is left of v is not orthogonal to them. Where no new direction is left: as `orthonormal_rows`.
    """
    dimensions = drawn.shape[1]
    _check_count(len(drawn), dimensions)
    rows = list(earlier.double()) if len(earlier) + len(drawn) <= dimensions else []
    old = len(rows)
    for row in drawn.double():
        taken = sum(((row @ done) / (done @ done) * done for done in rows if done.any()), torch.zeros_like(row))
        rows.append((row - taken) / (row - taken).norm())
    return torch.stack(rows[old:]).float()


def _check_count(components: int, dimensions: int) -> None:
    if components > dimensions:
        raise OptionError(
            f"{components} components a task cannot be orthogonal in {dimensions} dimensions: ask for fewer"
        )


def without_span(rows: Float[Tensor, "m d"], spanning: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
    """Each row minus its projection on the span of others, in double precision.

    By the Cholesky factor of their Gram matrix, which takes a fraction of the time of their QR decomposition; by that
    where they are too nearly dependent for it.
    """
    factor, failed = torch.linalg.cholesky_ex(spanning @ spanning.T)
    if not failed:
        found = rows
        for _ in range(2):
            found = found - torch.cholesky_solve(spanning @ found.T, factor).T @ spanning
        lengths = spanning.norm(dim=1).max() * rows.norm(dim=1).max()
        if (spanning @ found.T).abs().max() < 1e-12 * lengths:
            return found
    basis = torch.linalg.qr(spanning.T).Q
    for _ in range(2):
        rows = rows - (rows @ basis) @ basis.T
    return rows
