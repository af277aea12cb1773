"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cdl_deploy.training.losses import distillation_loss, masked_cross_entropy


def test_masked_cross_entropy_by_hand():
    logits = torch.tensor([[9.0, 9.0, 0.0, math.log(3.0)]])  # classes 2 and 3 are the task's: 1/4 and 3/4
    assert masked_cross_entropy(logits, torch.tensor([3]), 2).item() == pytest.approx(-math.log(0.75), abs=1e-6)
    assert masked_cross_entropy(logits, torch.tensor([2]), 2).item() == pytest.approx(-math.log(0.25), abs=1e-6)


def test_masked_cross_entropy_leaves_earlier_classes_alone():
    logits = torch.randn(4, 5, requires_grad=True)
    masked_cross_entropy(logits, torch.tensor([3, 4, 4, 3]), 3).backward()
    assert torch.equal(logits.grad[:, :3], torch.zeros(4, 3))
    assert (logits.grad[:, 3:] != 0).all()


def test_distillation_by_hand():
    # T = 2: the teacher's halves are (0, ln 3) → 1/4, 3/4; the student's (0, 0) → 1/2, 1/2
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, 2 * math.log(3.0)]])
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert distillation_loss(student, teacher, 2.0).item() == pytest.approx(4 * divergence, abs=1e-6)


def test_distillation_is_a_mean_over_the_batch():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    one_by_one = [distillation_loss(student[i : i + 1], teacher[i : i + 1], 2.0) for i in range(3)]
    torch.testing.assert_close(distillation_loss(student, teacher, 2.0), torch.stack(one_by_one).mean())


def test_distillation_from_oneself_is_nothing():
    logits = torch.randn(3, 4)
    assert distillation_loss(logits, logits.clone(), 2.0).item() == pytest.approx(0, abs=1e-6)
