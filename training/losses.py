"""Losses as pure functions (method, section 5). All are means over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cdl_deploy.training.shapes import Labels, Logits, Scalar, Similarities


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


def similarity_distance(early: list[Similarities], full: list[Similarities]) -> Scalar:
    """Σ over the blocks of ‖s(q_early) − s(q_full)‖², mean over the batch: for an early query (method, section 9).

    `early` and `full` hold one [B, M] a block: how near each image's query is to each key, as the method chooses by it.
    `full` is the target and gets no gradient.
    """
    terms = [(a - b.detach()).square().sum(dim=1).mean() for a, b in zip(early, full, strict=True)]
    return torch.stack(terms).sum()
