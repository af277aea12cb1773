"""The network as it is exported: the learner's own computation with everything that training decided folded in.

Five things differ from the training model, and none changes a logit by more than rounding (`--tokens` asks for a sixth,
which does: `cdl_deploy.export.merging`):

* only what is read is computed: the last block of the query pass ends in the class token alone, the last block of the
  prompted pass in the class token and, where there is one, the distillation's token. For so few tokens that ask, keys
  and values of all the others are not worth computing: `AbsorbedKVAttention` brings the question to the tokens instead;
* an attention's biases and scale are part of other constants (`cdl_deploy.export.attention`);
* tokens that enter block 0 of both passes are normalised and projected there once;
* a method folds its selection itself (key norms, A∘K̂ and A² are constants), and what is
  the same for every image is split into heads beforehand;
* class head and KD head, with their share of the prediction, are one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.closed_form.mahalanobis import Mahalanobis
from cdl_deploy.export.attention import FoldedAttention, Projected, as_blocks, fold_attentions
from cdl_deploy.export.block import AbsorbedKVAttention, ConstantPrompt, Sizes, run_block
from cdl_deploy.export.distance import NearestClass
from cdl_deploy.export.embedding import fold_embedding
from cdl_deploy.export.heads import fold_heads
from cdl_deploy.export.merging import Merging, mergings, patches_left, plan_merging, run_merging_block
from cdl_deploy.training.backbones.protocol import Backbone, OutputTokens
from cdl_deploy.training.distillation import Distillation
from cdl_deploy.training.features import Feature
from cdl_deploy.training.methods.folded import ConstantSelection, FixedSelection
from cdl_deploy.training.models.learner import CLASS, EarlyPatches, Learner, merge
from cdl_deploy.training.models.teacher_student import TeacherStudent


class ExportGraph(nn.Module):
    """`forward`: an image tensor [B, 3, height, width] → logits [B, C] of the classes seen, their softmax, task scores;
    where a distance is given also the features [B, F] that the head reads, and the distance [B].

    The tensor holds pixels from 0 to 255 (`pixels`), or is normalised with the statistics of the learner's backbone.
    With the query of `block:K` the student is one pass: its first K blocks give the query, and it goes on from there.
    """

    def __init__(
        self,
        pair: TeacherStudent,
        learner: Learner,
        pixels: bool = False,
        fixed: FixedSelection | None = None,
        known: Sequence[int] | None = None,
        distance: Mahalanobis | None = None,
        tokens: float = 1.0,
    ) -> None:
        """`fixed`: the prompts that every image gets, instead of those the method selects for it. `known`: positions of
        the classes that are in the file, where the learner was made to forget others. `distance`: of φ to
        the nearest class; with it the outputs `features` and `distance` follow the others. `tokens`: the share of patch
        tokens that are left."""
        super().__init__()
        self.query_backbone = pair.encoder.backbone
        self.backbone = learner.backbone
        self.shared = self.query_backbone is self.backbone
        own = self.backbone
        ones = torch.ones_like(own.mean)
        mean, std = (0 * ones, ones / 255) if pixels else (own.mean, own.std)
        self.embedding = fold_embedding(own, mean, std)
        self.attentions = fold_attentions(own)
        self.blocks = as_blocks(self.attentions)
        if not self.shared:
            self.query_embedding = fold_embedding(self.query_backbone, mean, std)
            self.query_attentions = fold_attentions(self.query_backbone)
            self.query_blocks = as_blocks(self.query_attentions)
            count = pair.encoder.block or self.query_backbone.depth
            self.query_last = last_block(self.query_attentions[count - 1])
        tasks = len(learner.tasks)
        self.selection = ConstantSelection(fixed, tasks) if fixed else learner.method.fold(self.attentions, tasks)
        self.head = fold_heads(learner, known)
        self.distance = None if distance is None else NearestClass(distance)
        self.token = learner.distillation.append_token
        self.uses_query = self.selection.uses_query
        self.first_block = learner.first_block
        self.query_block = pair.encoder.block
        constants = merge(dict(self.selection.constants), learner.distillation.block_prompts())
        self.last = last_block(self.attentions[own.depth - 1])
        own_pass = self.uses_query and self.shared and not self.query_block
        self.shared_entry = SharedEntry(own, self.attentions[0], learner.distillation) if own_pass else None
        self.constants = nn.ModuleDict({str(i): ConstantPrompt(p, self.attentions[i]) for i, p in constants.items()})
        self.share = tokens
        self.merging = mergings(own, self.attentions, plan_merging(own, tokens, self.first_block))
        self.query_merging = nn.ModuleDict()
        if self.uses_query and not self.query_block:
            asked = self.attentions if self.shared else self.query_attentions
            self.query_merging = mergings(self.query_backbone, asked, plan_merging(self.query_backbone, tokens))

    def forward(
        self, image: Float[Tensor, "B 3 height width"], query_image: Float[Tensor, "B 3 h w"] | None = None
    ) -> tuple[Tensor, ...]:
        """`query_image`: what the query sees, where that is of another size."""
        tokens = self.embedding(image)
        early = EarlyPatches(self.backbone, self.head.computed)
        for index in range(self.first_block):
            tokens = run_block(self.backbone, self.attentions[index], index, tokens)
            early.take(index, tokens)
        entry = enter(self.backbone, self.attentions[0], tokens) if self.shared_entry else None
        seen = image if query_image is None else query_image
        prompts, task_scores = self.selection(self.query(seen, tokens, entry) if self.uses_query else None)
        tokens = self.token(tokens)
        projected = self.shared_entry.with_token(entry) if self.shared_entry and entry else None
        last, sizes = self.backbone.depth - 1, None
        for index in range(self.first_block, self.backbone.depth):
            constant = cast(ConstantPrompt, self.constants[str(index)]) if str(index) in self.constants else None
            output_tokens = self.head.output_tokens if index == last else None
            first = projected if index == self.first_block else None
            attention, chosen = self.attentions[index], prompts.get(index)
            if str(index) in self.merging:
                step = cast(Merging, self.merging[str(index)])
                tokens, sizes = run_merging_block(
                    self.backbone, attention, index, tokens, step, chosen, constant, first, sizes
                )
                continue
            tokens = run_block(
                self.backbone, attention, index, tokens, chosen, constant, output_tokens, self.last, first, sizes
            )
            early.take(index, tokens)
        if self.head.output_tokens is not None:
            computed = self.backbone.final_norm(tokens)
        else:
            computed = self.pool(self.backbone, tokens, early.last, sizes)
        computed = early.beside(computed)
        if self.distance is None:
            logits = self.head(computed)
            return logits, logits.softmax(dim=1), task_scores.expand(image.shape[0], -1)
        features = self.head.read(computed)
        mapped = self.head.mapped(features)
        logits, distance = self.head.logits(mapped), self.distance(mapped)
        return logits, logits.softmax(dim=1), task_scores.expand(image.shape[0], -1), features, distance

    def query(self, image: Tensor, tokens: Tensor, entry: Projected | None = None) -> Float[Tensor, "B Q"]:
        """The class token of the unprompted student, after its final norm; `tokens` enter the first prompted block.

        `entry`: what these become there, where that is known already.
        """
        backbone, attentions = self.query_backbone, self.attentions if self.shared else self.query_attentions
        output = backbone.output_tokens(CLASS)
        if self.shared and self.query_block:
            return backbone.final_norm(tokens[:, 0]) if output else backbone.pool(tokens, CLASS)[:, 0]
        if not self.shared:
            tokens = self.query_embedding(image)
        count, few = self.query_block or backbone.depth, self.last if self.shared else self.query_last
        sizes = None
        for index in range(count):
            output_tokens, first = output if index == count - 1 else None, entry if index == 0 else None
            if str(index) in self.query_merging:
                step, own = cast(Merging, self.query_merging[str(index)]), attentions[index]
                tokens, sizes = run_merging_block(backbone, own, index, tokens, step, projected=first, sizes=sizes)
                continue
            tokens = run_block(backbone, attentions[index], index, tokens, None, None, output_tokens, few, first, sizes)
        if output:
            return backbone.final_norm(tokens[:, 0])
        return self.pool(backbone, tokens, CLASS, sizes)[:, 0]

    def pool(
        self, backbone: Backbone, tokens: Float[Tensor, "B N D"], features: tuple[Feature, ...], sizes: Sizes | None
    ) -> Float[Tensor, "B n D"]:
        """As the backbone pools, which is told of sizes only where tokens were merged."""
        if sizes is None:
            return backbone.pool(tokens, features)
        first = backbone.layout.first_patch
        return backbone.pool(tokens, features, sizes[:, first : first + patches_left(backbone, self.share)])


def last_block(attention: FoldedAttention) -> AbsorbedKVAttention | None:
    """Not where what is gathered is normalised with the value's bias in it."""
    return AbsorbedKVAttention(attention) if attention.gathered is None else None


def enter(
    backbone: Backbone, attention: FoldedAttention, tokens: Float[Tensor, "B N D"], at: OutputTokens = None
) -> Projected:
    """What tokens become where they enter block 0: all of them, or those at the positions `at`."""
    return attention.project(backbone.norm(0, tokens), at)


class SharedEntry(nn.Module):
    """Block 0's projections of the tokens that enter both passes, which differ by the distillation's token alone.

    That token is the same for every image, and so are its projections: constants.
    """

    def __init__(self, backbone: Backbone, attention: FoldedAttention, distillation: Distillation) -> None:
        super().__init__()
        token = distillation.extra_tokens()
        self.has_token = token is not None
        if token is not None:
            parts = enter(backbone, attention, token.detach()[None], tuple(range(-len(token), 0)))
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                self.register_buffer(f"token_{name}", part.contiguous())

    def with_token(self, projected: Projected) -> Projected:
        """The same, with the distillation's token at the end."""
        if not self.has_token:
            return projected
        own = (self.get_buffer(f"token_{name}") for name in ("query", "key", "value"))
        query, key, value = (
            torch.cat([rows, token.expand(rows.shape[0], -1, -1, -1)], dim=2)
            for rows, token in zip(projected, own, strict=True)
        )
        return query, key, value
