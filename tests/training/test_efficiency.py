"""What is not computed, and that leaving it out changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from cdl_deploy.training import step as step_module
from cdl_deploy.training.growing import Cached
from cdl_deploy.training.processes import Processes
from cdl_deploy.training.step import stage_losses
from tests.training.naive import naive_coda_weights
from tests.training.test_coda import grown
from tests.training.test_learner import make_pair, pixels


@pytest.mark.parametrize("method", ["coda", "apt"])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_last_block_computes_what_is_read(method, role):
    """The logits are those of all tokens, and so are the gradients; only the class token and the KD token ask."""
    pair = make_pair(method=method)
    learner = pair.learners[role]
    images = pixels(3)
    query = pair.encoder(images, learner.method.uses_query).query
    sizes = []
    learner.backbone.vit.blocks[-1].mlp.register_forward_hook(lambda m, args, out: sizes.append(out.shape[1]))
    results = []
    for hidden_blocks in (1, 0):
        output = learner(learner.backbone.embed(images), query, "train", hidden_blocks=hidden_blocks)
        logits = learner.predict(output)
        learner.zero_grad()
        logits.square().sum().backward()
        results.append([logits, *(value.grad for value in learner.parameters() if value.grad is not None)])
    read = 2 if role == "student" else 1
    assert sizes == [5 + read - 1, read]
    assert output.hidden == []
    assert len(results[0]) == len(results[1]) > 3
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-5)


def test_a_distillation_that_compares_tokens_gets_all_of_them(monkeypatch):
    pair, seen = make_pair(), []
    distillation = pair.student.distillation
    monkeypatch.setattr(distillation, "hidden_blocks", 2)
    losses = distillation.losses

    def spy(cross_entropy, student, teacher, *rest):
        seen.extend(tokens.shape[1] for output in (student, teacher) for tokens in output.hidden)
        return losses(cross_entropy, student, teacher, *rest)

    monkeypatch.setattr(distillation, "losses", spy)
    stage_losses(pair, "student", pixels(), torch.tensor([2, 3]))
    assert seen == [6, 6, 5, 5]


@pytest.mark.parametrize("query", ["full", "block:1"])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_autograd_records_nothing_before_the_first_prompt_and_keeps_no_frozen_weight(query, role):
    pair = make_pair(query=query)
    learner, first = pair.learners[role], pair.encoder.block
    entering: dict[int, list[torch.Tensor]] = {}
    for index, block in enumerate(learner.backbone.vit.blocks):
        block.norm1.register_forward_hook(lambda m, args, out, i=index: entering.setdefault(i, []).append(args[0]))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        terms = stage_losses(pair, role, pixels(), torch.tensor([2, 3]))
    total = torch.stack(list(terms.values())).sum()
    before = [tokens for index in range(first + 1) for tokens in entering[index]]
    if role == "student":  # its KD token enters with the first prompted block
        before = [tokens for index in range(first) for tokens in entering[index]]
    assert not any(tokens.requires_grad for tokens in before)
    assert entering[first + 1][-1].requires_grad
    total.backward()
    for value in (*pair.student.backbone.parameters(), *(pair.teacher.backbone.parameters() if pair.teacher else ())):
        assert not value.requires_grad
        assert value.grad is None


def test_the_factors_of_earlier_components_are_computed_once_and_never_stale():
    method = grown(3)
    block = method.own_blocks()[0]
    query = torch.randn(2, 16)

    def expected(row: int) -> list[float]:
        return naive_coda_weights(query[row], block.attentions.all(), block.keys.all())

    calls = []
    factors = block.frozen.function
    block.frozen = Cached(lambda *rows: calls.append(1) or factors(*rows))
    for _ in range(3):
        torch.testing.assert_close(block.weights(query)[0], torch.tensor(expected(0)))
    assert len(calls) == 1
    with torch.no_grad():
        block.keys.frozen.mul_(torch.rand(6, 16))  # changed in place
    torch.testing.assert_close(block.weights(query)[1], torch.tensor(expected(1)))
    method.load_state_dict(copy.deepcopy(grown(2).state_dict()))  # another state
    torch.testing.assert_close(block.weights(query)[1], torch.tensor(expected(1)))
    method.begin_task(torch.Generator().manual_seed(9))  # another task
    assert block.weights(query).shape == (2, 9)
    torch.testing.assert_close(block.weights(query)[1], torch.tensor(expected(1)))
    assert len(calls) == 4


def test_what_earlier_tasks_learned_costs_no_gradient():
    """Nothing of the size of all components is recorded: the largest tensor kept belongs to the current task."""
    method = grown(20)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.shape) or value, lambda value: value):
        method(torch.randn(2, 16), "train")
    components = 3
    assert kept
    assert max(max(shape, default=0) for shape in kept) <= max(24 * 4, 16, components)
    assert not any(60 - components in shape for shape in kept)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_step_in_pieces_is_the_same_step(role, monkeypatch):
    """Five images in pieces of two: terms and gradients as in one piece, for all terms that are means."""
    found = []
    for piece in (5, 2):
        monkeypatch.setattr(step_module, "PIECE", piece)
        pair = make_pair()
        optimizer = step_module.make_optimizer(pair.learners[role], 0.1)
        labels = torch.tensor([2, 3, 4, 3, 2])
        names, values = step_module.take_step(
            pair, role, optimizer, pixels(5), labels, Processes(torch.device("cpu")), 5
        )
        trained = [value for group in optimizer.param_groups for value in group["params"]]
        found.append([values, *(value.grad for value in trained if value.grad is not None)])
        assert len(names) == len(values)
    assert len(found[0]) == len(found[1]) > 3
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=1e-5)
