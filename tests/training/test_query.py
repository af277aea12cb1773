"""The query of block:K: one pass, prompts moved up by K, and the regulariser that goes with it."""

from __future__ import annotations

import pytest
import torch

from cdl_deploy.errors import OptionError
from cdl_deploy.run.config import MethodConfig
from cdl_deploy.training.backbones.protocol import Backbone
from cdl_deploy.training.losses import similarity_distance
from cdl_deploy.training.models.learner import Role, learner_logits
from cdl_deploy.training.models.teacher_student import build_teacher_student
from cdl_deploy.training.step import stage_losses
from tests.training.conftest import make_backbone
from tests.training.naive import naive_coda_weights
from tests.training.naive_methods import naive_logits, naive_query
from tests.training.test_learner import normalised, pixels
from tests.training.test_methods import make

LABELS = torch.tensor([2, 3, 4, 2])
EARLY = [("coda", 1), ("dualprompt", 1), ("l2p", 1), ("l2p", 3)]


@pytest.mark.parametrize(("distill", "role"), [("kdp", "student"), ("kdp", "teacher"), ("none", "student")])
@pytest.mark.parametrize(("method", "block"), EARLY)
@torch.no_grad()
def test_logits_equal_a_slow_recomputation(method, block, distill, role):
    pair = make(method, distill, query=f"block:{block}")
    images = pixels(2)
    ours = learner_logits(pair.encoder, pair.learners[role], images)
    for i in range(2):
        slow = naive_logits(pair, role, normalised(images[i]), first=block)
        torch.testing.assert_close(ours[i], slow, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_query_is_the_class_token_after_k_blocks_through_the_final_norm():
    pair = make("l2p", query="block:2")
    result = pair.encoder(pixels(2))
    assert result.entry == 2
    for i in range(2):
        image = normalised(pixels(2)[i])
        torch.testing.assert_close(result.query[i], naive_query(pair, image, 2), atol=1e-4, rtol=1e-4)
        full = pair.encoder.full_query(result)[i]
        torch.testing.assert_close(full, naive_query(pair, image, 0), atol=1e-4, rtol=1e-4)


def test_prompts_move_up_by_k():
    pair = make("dualprompt", query="block:1")
    for learner in pair.learners.values():
        assert sorted(learner.method(torch.randn(1, 24), "test").prompts) == [1, 2, 3, 4, 5]
    assert sorted(pair.student.distillation.block_prompts()) == [2, 3, 4, 5]
    assert pair.student.distillation.prompts.shape[0] == 4


@pytest.mark.parametrize(
    ("query", "weight", "runs"),
    [("full", 0.0, [2] * 6), ("block:1", 0.0, [1] * 6), ("block:1", 0.5, [1, 2, 2, 2, 2, 2])],
)
def test_how_often_each_block_of_the_student_runs_in_a_step(query, weight, runs):
    pair = make("coda", query=query, query_regulariser=weight)
    counts = [0] * 6
    for index, block in enumerate(pair.student.backbone.vit.blocks):

        def count(*_: object, index: int = index) -> None:
            counts[index] += 1

        block.norm1.register_forward_hook(count)
    stage_losses(pair, "student", pixels(4), LABELS)
    assert counts == runs


def test_the_kd_token_starts_as_the_class_token_where_it_comes_in():
    pair = make("l2p", query="block:2")
    backbone = pair.student.backbone
    with torch.no_grad():
        tokens = backbone.embed_normalised(torch.zeros(1, 3, 16, 16))
        for index in (0, 1):
            tokens = backbone.vit.blocks[index](tokens)
    torch.testing.assert_close(pair.student.distillation.token[0], tokens[0, 0])


def test_the_regularisers_distance_by_hand():
    early = [torch.tensor([[1.0, 0.0], [0.5, 0.5]], requires_grad=True), torch.tensor([[0.0], [1.0]])]
    full = [torch.tensor([[0.0, 2.0], [0.5, 0.0]], requires_grad=True), torch.tensor([[3.0], [1.0]])]
    distance = similarity_distance([early[0], early[1][:, [0, 0]]], [full[0], full[1][:, [0, 0]]])
    torch.testing.assert_close(distance, torch.tensor((5 + 0.25) / 2 + (18 + 0) / 2))
    distance.backward()
    torch.testing.assert_close(early[0].grad, torch.tensor([[1.0, -2.0], [0.0, 0.5]]))
    assert full[0].grad is None


@pytest.mark.parametrize("method", ["coda", "dualprompt", "l2p"])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_regulariser_compares_what_the_method_chooses_by(method, role):
    pair = make(method, query="block:1", query_regulariser=0.5)
    images = pixels(4)
    terms = stage_losses(pair, role, images, LABELS)
    chooser = pair.learners[role].method
    total = 0.0
    for image in images:
        early, full = (naive_query(pair, normalised(image), first) for first in (1, 0))
        if method == "coda":
            pairs = [
                (naive_coda_weights(early, b.attentions.all(), b.keys.all()),
                 naive_coda_weights(full, b.attentions.all(), b.keys.all()))
                for b in chooser.own_blocks().values()
            ]  # fmt: skip
        else:
            keys = [chooser.keys] if method == "l2p" else [e.keys.all() for e in chooser.own_entries().values()]
            pairs = [tuple(torch.cosine_similarity(q[None], k).tolist() for q in (early, full)) for k in keys]
        total += sum((a - b) ** 2 for first, second in pairs for a, b in zip(first, second, strict=True))
    assert terms["query_regulariser"].item() == pytest.approx(0.5 * total / 4, rel=1e-3)
    assert "query_regulariser" not in stage_losses(make(method, query="block:1"), role, images, LABELS)


def build(depth: int = 6, **config):
    backbones: dict[Role, Backbone] = {"student": make_backbone(depth=depth), "teacher": make_backbone(depth=8)}
    return build_teacher_student(backbones, MethodConfig(**config), seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"query": "block:0"}, "--query is 'block:0', expected full, or block:K with K at least 1, such as block:4"),
        ({"query": "block:-1"}, "--query is 'block:-1', expected full, or block:K"),
        ({"query": "block:"}, "--query is 'block:', expected full, or block:K"),
        ({"query": "half"}, "--query is 'half', expected full, or block:K"),
        ({"query": "block:2"}, r"2 to 6 \(counted from 0\), but the model has 6 .* smaller K for --query block:K"),
        ({"query": "block:6", "method": "l2p"}, r"L2P prompts block 6 \(counted from 0\), but the model has 6 blocks"),
        ({"query": "block:5", "method": "l2p"}, "KDP prompts the student from block 6 on, but it ends before: .*K"),
        ({"query": "block:1", "method": "apt"}, "block:1 has no meaning with --method apt, .*leave --query out"),
        ({"query_regulariser": 0.1}, "compares an early query with the full one: give --query block:K"),
        ({"query": "block:1", "query_regulariser": -1.0}, "--query-regulariser is -1, expected at least 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_clear_line(config, message):
    with pytest.raises(OptionError, match=message) as error:
        build(**config)
    assert "\n" not in str(error.value)


def test_the_last_block_that_fits():
    assert build(query="block:1").student.first_block == 1
    assert build(query="block:4", method="l2p").student.distillation.prompts.shape[0] == 1
