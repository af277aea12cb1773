"""The step that benchmarks/training_step.py takes as its unit: the same losses and gradients, at a higher price."""

from __future__ import annotations

import pytest
import torch

from benchmarks.reference_step import collect_backbone_gradients, reference_losses, reference_step
from cdl_deploy.training.step import make_optimizer, stage_losses
from tests.training.test_learner import make_pair, pixels

LABELS = torch.tensor([2, 3, 4, 3, 2])


@pytest.mark.parametrize(("role", "distill"), [("teacher", "kdp"), ("student", "kdp"), ("student", "none")])
def test_both_ways_have_the_same_losses_and_gradients(role, distill):
    found = []
    for losses in (stage_losses, reference_losses):
        pair = make_pair(distill)
        trained = [v for group in make_optimizer(pair.learners[role], 0.1).param_groups for v in group["params"]]
        if losses is reference_losses:
            collect_backbone_gradients(pair)
        terms = losses(pair, role, pixels(5), LABELS)
        torch.stack(list(terms.values())).sum().backward()
        found.append((terms, trained))
    (terms, own), (expected, other) = found
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, atol=1e-5, rtol=1e-5, msg=name)
    assert len(own) == len(other) > 5
    for a, b in zip(own, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def test_the_reference_collects_gradients_that_nobody_uses():
    """In every weight of the learner's backbone, added up over steps; ours has none, and both learn the same."""
    ours, theirs = make_pair(), make_pair()
    optimizers = [make_optimizer(pair.student, 1e-3) for pair in (ours, theirs)]
    collect_backbone_gradients(theirs)
    backbone = theirs.student.backbone
    frozen = {name: value.clone() for name, value in backbone.named_parameters()}
    gradients = []
    for _ in range(2):
        reference_step(theirs, "student", optimizers[1], pixels(5), LABELS)
        assert all(value.grad is not None for value in backbone.parameters())
        gradients.append(backbone.vit.patch_embed.proj.weight.grad.clone())
    assert not torch.equal(*gradients)
    assert all(torch.equal(value, frozen[name]) for name, value in backbone.named_parameters())
    for _ in range(2):
        optimizers[0].zero_grad()
        torch.stack(list(stage_losses(ours, "student", pixels(5), LABELS).values())).sum().backward()
        optimizers[0].step()
    assert all(value.grad is None for value in ours.student.backbone.parameters())
    for name, value in theirs.student.trained_state().items():
        torch.testing.assert_close(ours.student.trained_state()[name], value, atol=1e-4, rtol=1e-3, msg=name)
