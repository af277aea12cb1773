"""Losses as pure functions (method, section 5). All are means over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

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


def target_class_loss(student: Logits, teacher: Logits, labels: Labels, temperature: float) -> Scalar:
    """TCKD: T²·KL((p, 1 − p) ‖ (q, 1 − q)), mean over the batch (DKD, Zhao et al., CVPR 2022, arXiv 2203.08679).

    p and q are the probabilities that teacher and student, softened by T, give the true class; logits [B, K] and labels
    are of the current task's classes. 1 − p is a sum over the other classes: where p rounds to 1 its logarithm is still
    exact. With a single class there is nothing else to choose, and the loss is 0.
    """
    if student.shape[1] == 1:
        return student.new_zeros(())
    log_student = _true_or_other(student / temperature, labels)
    log_teacher = _true_or_other(teacher / temperature, labels)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def nontarget_class_loss(student: Logits, teacher: Logits, labels: Labels, temperature: float) -> Scalar:
    """NCKD: T²·KL(p̂ ‖ q̂), mean over the batch; p̂ and q̂ are softmaxes over the classes that are not the true one.

    Source and arguments as for `target_class_loss`. With a single class none is left, and the loss is 0.
    """
    if student.shape[1] == 1:
        return student.new_zeros(())
    return distillation_loss(_other_logits(student, labels), _other_logits(teacher, labels), temperature)


def _other_logits(logits: Logits, labels: Labels) -> Float[Tensor, "B others"]:
    """Logits [B, K − 1] of the classes that are not the true one, in order."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, columns + (columns >= labels[:, None]))


def _true_or_other(logits: Logits, labels: Labels) -> Float[Tensor, "B 2"]:
    """Logarithms of the probabilities of the true class and of all the others together."""
    true = logits.gather(1, labels[:, None])
    other = _other_logits(logits, labels).logsumexp(dim=1, keepdim=True)
    return torch.cat([true, other], dim=1).log_softmax(dim=1)


def feature_loss(student: Float[Tensor, "B N E"], teacher: Float[Tensor, "B N E"]) -> Scalar:
    """Mean square difference over batch, tokens and the teacher's width E (FitNets, Romero et al., ICLR 2015)."""
    return F.mse_loss(student, teacher)
