"""The four methods, KDP and the query, written a second time for one image as plain loops over rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdl_deploy.training.distillation.kdp import KDPrompts
from cdl_deploy.training.heads import Head
from cdl_deploy.training.heads.cosine import CosineHead
from cdl_deploy.training.heads.linear import LinearHead
from cdl_deploy.training.methods import ContinualMethod
from cdl_deploy.training.methods.apt import AdditivePrompts
from cdl_deploy.training.methods.coda import CodaPrompt
from cdl_deploy.training.methods.dualprompt import DualPrompt
from cdl_deploy.training.methods.l2p import L2P
from cdl_deploy.training.models.learner import Role
from cdl_deploy.training.models.teacher_student import TeacherStudent
from tests.training.naive import naive_block, naive_coda_weights, naive_embed


def cosine(a: Tensor, b: Tensor) -> float:
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)) / math.sqrt(
        sum(x * x for x in a.tolist()) * sum(y * y for y in b.tolist())
    )


def naive_prompts(method: ContinualMethod, query: Tensor, first: int) -> dict[int, dict[str, tuple[Tensor, Tensor]]]:
    """What each block gets at test time: `before` as pairs of rows [p, D], or `shift` as a pair of vectors [D]."""
    found: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
    if isinstance(method, L2P):
        near = [cosine(query, key) for key in method.keys]
        best = sorted(range(len(near)), key=lambda i: -near[i])[: method.top_k]
        rows = [torch.cat([method.prompts[i, part] for i in best]) for part in (0, 1)]
        found[first] = {"before": (rows[0], rows[1])}
    elif isinstance(method, DualPrompt):
        for i in (0, 1):
            found[first + i] = {"before": (method.shared[i, 0], method.shared[i, 1])}
        for i in (2, 3, 4):
            entries = method.own_entries()[first + i]
            near = [cosine(query, key) for key in entries.keys.all()]
            prompt = entries.prompts.all()[near.index(max(near))]
            found[first + i] = {"before": (prompt[0], prompt[1])}
    elif isinstance(method, AdditivePrompts):
        for index in range(len(method.merged)):
            found[index] = {"shift": (method.merged[index, 0], method.merged[index, 1])}
    else:
        assert isinstance(method, CodaPrompt)
        for i in range(5):
            block = method.own_blocks()[first + i]
            weights = naive_coda_weights(query, block.attentions.all(), block.keys.all())
            prompt = torch.zeros_like(block.prompts.all()[0])
            for weight, component in zip(weights, block.prompts.all(), strict=True):
                prompt = prompt + weight * component
            found[first + i] = {"before": (prompt[:4], prompt[4:])}
    return found


def naive_query(pair: TeacherStudent, image: Tensor, first: int) -> Tensor:
    """Of one normalised image [3, h, w]: the class token after `first` blocks, or after all, through the final norm."""
    vit = pair.student.backbone.vit
    tokens = naive_embed(vit, image)
    for index in range(first or len(vit.blocks)):
        tokens = naive_block(vit, index, tokens)
    return vit.norm(tokens)[0]


def naive_head(head: Head, token: Tensor) -> Tensor:
    assert isinstance(head, LinearHead)
    logits = []
    if isinstance(head, CosineHead):
        token = (token - token.mean()) / torch.sqrt(token.var(unbiased=False) + 1e-5)
    for row, bias in zip(head.weight.all(), head.bias.all(), strict=True):
        length = row.norm() if isinstance(head, CosineHead) else 1.0
        logits.append(torch.dot(token, row) / length + bias)
    return torch.stack(logits)


def naive_logits(pair: TeacherStudent, role: Role, image: Tensor, first: int = 0) -> Tensor:
    """What a learner answers for one normalised image; `first` is the K of block:K."""
    learner = pair.learners[role]
    vit = learner.backbone.vit
    prompts = naive_prompts(learner.method, naive_query(pair, image, first), first)
    kdp = learner.distillation if isinstance(learner.distillation, KDPrompts) else None
    tokens = naive_embed(vit, image)
    for index in range(len(vit.blocks)):
        own = dict(prompts.get(index, {}))
        if kdp is not None and index == first:
            assert kdp.token is not None
            tokens = torch.cat([tokens, kdp.token])
        if kdp is not None and index > first:
            own["after"] = (kdp.prompts[index - first - 1, 0], kdp.prompts[index - first - 1, 1])
        tokens = naive_block(vit, index, tokens, **own)
    tokens = vit.norm(tokens)
    logits = naive_head(learner.class_head, tokens[0])
    return logits if kdp is None else 0.5 * logits + 0.5 * naive_head(kdp.head, tokens[-1])
