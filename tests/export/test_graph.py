"""What is folded computes what it was folded from."""

from __future__ import annotations

import pytest
import torch

from cdl_deploy.export.attention import FoldedAttention, fold_attentions
from cdl_deploy.export.block import ConstantPrompt, run_block
from cdl_deploy.export.graph import ExportGraph, last_block
from cdl_deploy.export.heads import fold_heads
from cdl_deploy.training.backbones.plain import PlainViT
from cdl_deploy.training.backbones.protocol import BlockPrompt
from cdl_deploy.training.methods.coda import FoldedCoda
from cdl_deploy.training.models.learner import learner_logits
from tests.training.conftest import make_vit
from tests.training.test_learner import make_pair, pixels


@torch.no_grad()
def test_folded_selection_is_the_methods():
    pair = make_pair()
    method = pair.student.method
    query = torch.randn(3, 24)
    backbone = pair.student.backbone
    folded = FoldedCoda(method, fold_attentions(backbone), tasks=2)(query).prompts
    for index, prompt in method(query, "test").prompts.items():
        biases = backbone.attention(index).qkv.bias.chunk(3)[1:]  # what keys and values are left without
        for ours, theirs, bias in zip(folded[index], prompt.prefix, biases, strict=True):
            torch.testing.assert_close(ours.transpose(1, 2).flatten(2), theirs - bias, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_folded_heads_are_the_prediction():
    pair = make_pair()
    student = pair.student
    tokens = torch.randn(3, 6, 24)
    expected = student.predict(
        type("O", (), {
            "class_logits": student.class_head(tokens[:, 0]),
            "extra_logits": student.distillation.extra_logits(tokens),
        })()
    )  # fmt: skip
    folded = fold_heads(student)
    assert folded.output_tokens == (0, -1)
    torch.testing.assert_close(folded(tokens[:, [0, -1]]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"qk_norm": True}, {"init_values": 0.3}])
@torch.no_grad()
def test_a_block_that_is_read_in_part_gives_those_tokens(changes):
    backbone = PlainViT(make_vit(**changes), (0.5,) * 3, (0.5,) * 3)
    tokens = torch.randn(2, 6, 24)
    after = (torch.randn(1, 2, 24), torch.randn(1, 2, 24))
    whole = backbone.run_block(1, tokens, BlockPrompt(suffix=after))
    attention = FoldedAttention(backbone, 1)
    constant = ConstantPrompt(BlockPrompt(suffix=after), attention)
    found = run_block(backbone, attention, 1, tokens, constant=constant)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    few = last_block(attention)
    assert few is not None
    assert (few.key is None) == ("qk_norm" in changes)
    read = run_block(backbone, attention, 1, tokens, constant=constant, output_tokens=(0, -1), few=few)
    torch.testing.assert_close(read, whole[:, [0, -1]], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_teacher_with_other_pixel_statistics_still_sees_the_students_query():
    pair = make_pair()
    pair.teacher.backbone = PlainViT(make_vit(width=32, depth=7, heads=4, seed=1), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    graph = ExportGraph(pair, pair.teacher)
    images = pixels(3)
    normalised = (images / 255 - pair.teacher.backbone.mean) / pair.teacher.backbone.std
    torch.testing.assert_close(
        graph(normalised)[0], learner_logits(pair.encoder, pair.teacher, images), atol=1e-4, rtol=1e-4
    )
