"""What no step of a stage changes: all that comes before the first prompt, and everything of the frozen teacher."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cdl_deploy.training.backbones.protocol import Backbone
from cdl_deploy.training.data.loading import Rows
from cdl_deploy.training.distillation.protocol import LearnerOutput
from cdl_deploy.training.models.learner import Role
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.shapes import Query, Tokens

HIDDEN = "teacher/hidden/"


class Frozen(NamedTuple):
    """What the losses of a batch are made of, besides what the learner computes."""

    tokens: Tokens
    """The learner's, as they enter block `entry`."""
    entry: int
    query: Query | None
    full_query: Query | None = None
    """Where `--query-regulariser` compares an early query with it."""
    teacher: LearnerOutput | None = None
    """What a student learns from."""


@torch.no_grad()
def compute_frozen(pair: TeacherStudent, role: Role, images: Tensor) -> Frozen:
    """Of pixels uint8. The query is computed once and serves teacher and student."""
    learner = pair.learners[role]
    seen = pair.encoder(images, learner.method.uses_query)
    full_query = pair.encoder.full_query(seen) if pair.query_regulariser else None
    if role == "teacher":
        return Frozen(learner.backbone.embed(images), 0, seen.query, full_query)
    output = None
    if pair.teacher is not None and learner.distillation.needs_teacher:
        tokens, hidden_blocks = pair.teacher.backbone.embed(images), learner.distillation.hidden_blocks
        output = pair.teacher(tokens, seen.query, "distil", hidden_blocks=hidden_blocks)
    return Frozen(seen.student_tokens, seen.entry, seen.query, full_query, output)


@torch.no_grad()
def as_rows(pair: TeacherStudent, role: Role, images: Tensor) -> dict[str, Tensor]:
    """What `from_rows` needs: a row an image.

    `tokens` as they enter the first block that may be prompted; where this is block 0, `pixels`, which are smaller and
    are embedded in no time. `query`, `full_query` and the teacher's output where a step asks for them.
    """
    learner, frozen = pair.learners[role], compute_frozen(pair, role, images)
    rows = {"query": frozen.query, "full_query": frozen.full_query}
    if learner.first_block:
        rows["tokens"] = learner.backbone.run_blocks(frozen.tokens, frozen.entry, learner.first_block)
    else:
        rows["pixels"] = learner.backbone.own_pixels(images)
    if frozen.teacher is not None:
        rows |= {"teacher/class_logits": frozen.teacher.class_logits, "teacher/features": frozen.teacher.features}
        rows |= {f"{HIDDEN}{index}": tokens for index, tokens in enumerate(frozen.teacher.hidden)}
    return {name: value for name, value in rows.items() if value is not None}


@torch.no_grad()
def from_rows(pair: TeacherStudent, role: Role, rows: Rows) -> Frozen:
    """What `compute_frozen` gives, of what was kept."""
    learner, output = pair.learners[role], None
    tokens = rows["tokens"] if learner.first_block else learner.backbone.embed(rows["pixels"])
    if "teacher/class_logits" in rows:
        hidden = [rows[f"{HIDDEN}{index}"] for index in range(sum(name.startswith(HIDDEN) for name in rows))]
        output = LearnerOutput(rows["teacher/class_logits"], hidden=hidden, features=rows["teacher/features"])
    return Frozen(tokens, learner.first_block, rows.get("query"), rows.get("full_query"), output)


def row_bytes(pair: TeacherStudent, role: Role, classes: int) -> int:
    """Size of an image's row once `classes` classes have been seen."""
    learner, student, teacher = pair.learners[role], pair.student, pair.teacher
    height, width = learner.backbone.image_size
    pixels = 0 if learner.first_block else 3 * height * width
    numbers = _token_numbers(learner.backbone) if learner.first_block else 0
    if learner.method.uses_query:
        numbers += student.backbone.width * (2 if pair.query_regulariser else 1)
    if role == "student" and teacher is not None and student.distillation.needs_teacher:
        hidden = min(student.distillation.hidden_blocks, teacher.backbone.depth)
        numbers += classes + len(teacher.features) * teacher.backbone.width + hidden * _token_numbers(teacher.backbone)
    return pixels + 4 * numbers


def _token_numbers(backbone: Backbone) -> int:
    """In the tokens of an image."""
    return backbone.layout.count * backbone.width
