"""Tokens of two ViTs made comparable, and the projections that are trained to compare them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.backbones.protocol import TokenLayout
from cdl_deploy.training.shapes import Tokens


class TokenMatch(nn.Module):
    """Class token beside class token, and each of the student's patches beside what the teacher has in its place.

    Both see the same image, cut into other patches where their patch sizes differ. A student's patch is then compared
    with the mean of the teacher's patches that it overlaps, weighted by the area they share: [n, N] weights from the
    teacher's patches to the student's, a constant.

    Where one of them has no class token, patches alone are compared.

    Differs: the paper's pairs have the same patches and no register tokens. Registers stand for no place in the image
    and no two networks use theirs alike, so they are compared with nothing. Neither is what prompts append.
    """

    weights: Tensor | None

    def __init__(self, student: TokenLayout, teacher: TokenLayout) -> None:
        super().__init__()
        self.student_layout, self.teacher_layout = student, teacher
        self.with_class = student.class_token and teacher.class_token
        weights = None
        if student.grid != teacher.grid:
            rows, columns = (shared_area(*sides) for sides in zip(student.grid, teacher.grid, strict=True))
            weights = torch.kron(rows, columns)
        self.register_buffer("weights", weights, persistent=False)

    def notes(self) -> list[str]:
        """Where the two do not have the same tokens: how they are compared all the same."""
        found = []
        if self.weights is not None:
            (rows, columns), (more, others) = self.student_layout.grid, self.teacher_layout.grid
            found.append(
                f"tokens are compared on the student's {rows}x{columns} patches: each with the mean of those of the "
                f"teacher's {more}x{others} that it overlaps"
            )
        if not self.with_class:
            found.append("tokens are compared by their patches alone: one of the networks has no class token")
        return found

    def of_student(self, tokens: Tokens) -> Float[Tensor, "B n D"]:
        """The student's class token and patches."""
        return class_and_patches(tokens, self.student_layout, self.with_class)

    def of_teacher(self, tokens: Tokens) -> Float[Tensor, "B n D"]:
        """The teacher's, on the student's grid."""
        tokens = class_and_patches(tokens, self.teacher_layout, self.with_class)
        if self.weights is None:
            return tokens
        first = int(self.with_class)
        return torch.cat([tokens[:, :first], self.weights @ tokens[:, first:]], dim=1)


def class_and_patches(tokens: Tokens, layout: TokenLayout, with_class: bool = True) -> Float[Tensor, "B n D"]:
    """Tokens without registers, and without what comes after the patches; on request without the class token."""
    first, end = layout.first_patch, layout.count
    if not with_class:
        return tokens[:, first:end]
    if tokens.shape[1] == end and first == 1:
        return tokens
    return torch.cat([tokens[:, :1], tokens[:, first:end]], dim=1)


def shared_area(cells: int, others: int) -> Float[Tensor, "cells others"]:
    """A line cut into `cells` and, once more, into `others`: what share of each cell lies in each of the others."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / cells
    other_edges = torch.arange(others + 1, dtype=torch.float64) / others
    right = torch.minimum(edges[1:, None], other_edges[1:])
    left = torch.maximum(edges[:-1, None], other_edges[:-1])
    return ((right - left).clamp_min(0) * cells).float()


def drawn_linear(features: int, out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's own initial values, uniform in ±1/√features, drawn from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, features, out)
    for value in layer.parameters():
        nn.init.uniform_(value, -(features**-0.5), features**-0.5, generator=generator)
    return layer
