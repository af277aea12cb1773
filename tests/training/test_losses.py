"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cdl_deploy.training.losses import (
    distillation_loss,
    feature_loss,
    masked_cross_entropy,
    nontarget_class_loss,
    target_class_loss,
)


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


def test_dkd_by_hand():
    # T = 2 halves the teacher's logits to (ln 2, ln 3, 0), with sum 2 + 3 + 1: 2/6 for the true class 0, 4/6 for the
    # others; among those 3/4 and 1/4. The student's zeros: 1/3 and 2/3, then 1/2 and 1/2 → TCKD is 0, NCKD is not.
    student, teacher = torch.zeros(1, 3), torch.tensor([[2 * math.log(2.0), 2 * math.log(3.0), 0.0]])
    label = torch.tensor([0])
    ranking = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert target_class_loss(student, teacher, label, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert nontarget_class_loss(student, teacher, label, 2.0).item() == pytest.approx(4 * ranking, abs=1e-6)
    # With true class 1: 3/6 against 1/3; the others are 2/3 and 1/3 against halves.
    label = torch.tensor([1])
    sureness = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    ranking = 2 / 3 * math.log(2 / 3 / 0.5) + 1 / 3 * math.log(1 / 3 / 0.5)
    assert target_class_loss(student, teacher, label, 2.0).item() == pytest.approx(4 * sureness, abs=1e-6)
    assert nontarget_class_loss(student, teacher, label, 2.0).item() == pytest.approx(4 * ranking, abs=1e-6)


def test_dkd_is_kd_taken_apart():
    """KL(p ‖ q) = TCKD + (1 − p_true)·NCKD, image by image (the paper's equation 7)."""
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 3])
    for i in range(5):
        s, t, label = student[i : i + 1], teacher[i : i + 1], labels[i : i + 1]
        exponents = [math.exp(z / 3) for z in t[0].tolist()]
        others = 1 - exponents[int(label)] / sum(exponents)
        parts = target_class_loss(s, t, label, 3.0) + others * nontarget_class_loss(s, t, label, 3.0)
        torch.testing.assert_close(parts, distillation_loss(s, t, 3.0))


def test_dkd_with_one_class_has_nothing_to_say():
    student = torch.randn(3, 1, requires_grad=True)
    for loss in (target_class_loss, nontarget_class_loss):
        assert loss(student, torch.randn(3, 1), torch.tensor([0, 0, 0]), 4.0).item() == 0


def test_dkd_stays_finite_where_a_probability_rounds_to_one():
    """A student so sure that 1 − q is 0 in float32; its logarithm is still −50 + ln 2 at T = 4."""
    student = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = target_class_loss(student, torch.zeros(1, 3), torch.tensor([0]), 4.0)
    expected = 16 * (1 / 3 * math.log(1 / 3) + 2 / 3 * (math.log(2 / 3) - (math.log(2.0) - 50)))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert student.grad.isfinite().all()
    assert student.grad[0, 0] > 0, "it is told to be less sure"
    loss = target_class_loss(torch.zeros(1, 3), torch.tensor([[0.0, 400.0, 0.0]]), torch.tensor([0]), 4.0)
    assert loss.item() == pytest.approx(16 * math.log(1 / (2 / 3)), rel=1e-6)


def test_feature_difference_by_hand():
    student, teacher = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[0.0, 2.0], [1.0, 8.0]]])
    assert feature_loss(student, teacher).item() == pytest.approx((1 + 0 + 4 + 16) / 4)
