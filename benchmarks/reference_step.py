"""The loss of a training step the way the method's reference implementation computes it: the unit of training_step.py.

Written from a description of it, for CODA-Prompt with KDP or no distillation, on the parameters of our own learners, so
that losses and gradients can be compared. What it does that is not needed:

* the query pass runs in the teacher and once more in the student, and computes every token to the end;
* the frozen backbones' weights ask for gradients, which add up from step to step and are never used; so gradients flow
  below the first prompt as well;
* attention is a softmax between two matrix products;
* every block computes the cosines of its tokens with each other, [B, N, N], and nobody reads them;
* a component's weight is the cosine of two vectors, for every image and component: [B, M, Q].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor
from torch.optim import Optimizer

from cdl_deploy.training.backbones.protocol import Backbone
from cdl_deploy.training.backbones.timm_vit import rows_of
from cdl_deploy.training.losses import distillation_loss, masked_cross_entropy
from cdl_deploy.training.methods.coda import CodaPrompt
from cdl_deploy.training.models.learner import Learner, Role
from cdl_deploy.training.models.teacher_student import TeacherStudent

Rows = tuple[Tensor, Tensor]
"""key prompts and value prompts, each [B or 1, p, D]."""


def collect_backbone_gradients(pair: TeacherStudent) -> None:
    """Let every weight of both backbones ask for a gradient, as a backbone does that nobody has frozen."""
    for learner in pair.learners.values():
        learner.backbone.vit.requires_grad_(True)


def reference_step(pair: TeacherStudent, role: Role, optimizer: Optimizer, images: Tensor, labels: Tensor) -> None:
    """One step of a learner; gradients of the backbones stay where they are."""
    optimizer.zero_grad()
    torch.stack(list(reference_losses(pair, role, images, labels).values())).sum().backward()
    optimizer.step()


def reference_losses(pair: TeacherStudent, role: Role, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The terms that `stage_losses` gives."""
    learner, first = pair.learners[role], pair.learners[role].first_class
    if role == "teacher":
        class_logits, _ = _forward(pair, learner, images)
        return {"cross_entropy": masked_cross_entropy(class_logits, labels, first)}
    teacher_logits = None
    if pair.teacher is not None:
        with torch.no_grad():
            teacher_logits, _ = _forward(pair, pair.teacher, images)
    class_logits, extra_logits = _forward(pair, learner, images)
    cross_entropy = masked_cross_entropy(class_logits, labels, first)
    if teacher_logits is None or extra_logits is None:
        return {"cross_entropy": cross_entropy}
    alpha, temperature = 0.5, 2.0
    soft = distillation_loss(extra_logits[:, first:], teacher_logits[:, first:], temperature)
    return {"cross_entropy": (1 - alpha) * cross_entropy, "distillation": alpha * soft}


def _forward(pair: TeacherStudent, learner: Learner, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Class logits [B, C] and those of the KD head, by a query pass of the learner's own and a prompted pass."""
    with torch.no_grad():
        encoder = pair.student.backbone
        query = encoder.final_norm(_blocks(encoder, encoder.embed(images), {}, {}))[:, 0]
    assert isinstance(learner.method, CodaPrompt)
    before: dict[int, Rows] = {}
    for index, block in learner.method.own_blocks().items():
        attended = query[:, None] * block.attentions.all()
        weights = F.cosine_similarity(attended, block.keys.all()[None], dim=2)
        rows = torch.einsum("bm,mpd->bpd", weights, block.prompts.all())
        key_prompts, value_prompts = rows.chunk(2, dim=1)
        before[index] = key_prompts, value_prompts
    after: dict[int, Rows] = {}
    for index, prompt in learner.distillation.block_prompts().items():
        assert prompt.suffix is not None
        after[index] = prompt.suffix
    tokens = learner.distillation.append_token(learner.backbone.embed(images))
    normalised = learner.backbone.final_norm(_blocks(learner.backbone, tokens, before, after))
    return learner.class_head(normalised[:, 0]), learner.distillation.extra_logits(normalised)


def _blocks(backbone: Backbone, tokens: Tensor, before: dict[int, Rows], after: dict[int, Rows]) -> Tensor:
    """Tokens [B, N, D] through all blocks."""
    correlations = []
    rope: Any = getattr(backbone.vit, "rope", None)
    for index in range(backbone.depth):
        block, attention = backbone.vit.blocks[index], backbone.vit.blocks[index].attn
        batch, count, width = tokens.shape

        def by_head(rows: Tensor, heads: int = attention.num_heads, batch: int = batch) -> Tensor:
            split: Tensor = rows.unflatten(-1, (heads, -1)).transpose(1, 2)
            return split.expand(batch, -1, -1, -1)

        weight, bias = rows_of(attention, 0, 3)
        query, key, value = map(by_head, F.linear(block.norm1(tokens), weight, bias).chunk(3, dim=-1))
        if rope is not None:  # as timm turns them, block by block
            query, key = (_turned(rows, rope, attention, backbone) for rows in (query, key))
        keys, values = [key], [value]
        if index in before:
            keys.insert(0, by_head(before[index][0]))
            values.insert(0, by_head(before[index][1]))
        if index in after:
            keys.append(by_head(after[index][0]))
            values.append(by_head(after[index][1]))
        scores = (query @ torch.cat(keys, dim=2).transpose(-2, -1)) * attention.scale
        mixed = scores.softmax(dim=-1) @ torch.cat(values, dim=2)
        output = attention.proj(mixed.transpose(1, 2).reshape(batch, count, width))
        tokens = backbone.mlp(index, backbone.add_attention(index, tokens, output))
        directions = F.normalize(tokens, dim=-1)
        correlations.append(directions @ directions.transpose(-2, -1))
    return tokens


def _turned(rows: Tensor, rope: Any, attention: Any, backbone: Backbone) -> Tensor:
    """Queries or keys [B, H, N, d] with those of the patches rotated."""
    first, end = backbone.layout.first_patch, backbone.layout.count
    table = rope.get_embed(shape=list(backbone.layout.grid))
    turned = apply_rot_embed_cat(rows[:, :, first:end], table, half=attention.rotate_half)
    return torch.cat([rows[:, :, :first], turned, rows[:, :, end:]], dim=2)
