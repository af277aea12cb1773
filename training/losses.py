"""Losses as pure functions (method, section 5). All are means over the batch."""

from __future__ import annotations

import torch.nn.functional as F

from cdl_deploy.training.shapes import Labels, Logits, Scalar


def masked_cross_entropy(logits: Logits, labels: Labels, first_class: int) -> Scalar:
    """CE_masked(z, y): cross-entropy over the current task's classes only.

    `logits` [B, C] of every class seen, `labels` [B] in first_class..C-1. Classes before `first_class` take no part, so
    their head rows get a gradient of exactly zero.
    """
    return F.cross_entropy(logits[:, first_class:], labels - first_class)


def distillation_loss(student: Logits, teacher: Logits, temperature: float) -> Scalar:
    """T²·KL(σ(z/T) ‖ σ(s/T)), mean over the batch (Hinton et al., 2015); both logits cut to the current task's classes.

    The factor α of the method's KD(s, z) is applied by the caller, beside the (1 − α) of the cross-entropy.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
