"""Teacher and student of a run, and the query encoder they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdl_deploy.closed_form.features import RandomProjection
from cdl_deploy.closed_form.head_rule import HeadRule
from cdl_deploy.errors import OptionError
from cdl_deploy.run.config import MethodConfig, check_name
from cdl_deploy.training.backbones.protocol import Backbone, NetworkShape
from cdl_deploy.training.distillation import DISTILLATIONS, Distillation, build_distillation
from cdl_deploy.training.features import Feature, early_blocks, in_order
from cdl_deploy.training.heads.closed_form import ClosedFormHead
from cdl_deploy.training.losses import similarity_distance
from cdl_deploy.training.methods import METHODS, build_head, build_method, build_student_head
from cdl_deploy.training.models.calibration import TaskCalibration
from cdl_deploy.training.models.learner import Learner, QueryEncoder, Role
from cdl_deploy.training.seeds import derive_seed, generator
from cdl_deploy.training.shapes import Query


@dataclass
class TeacherStudent:
    """`teacher` is None where nothing is distilled."""

    encoder: QueryEncoder
    student: Learner
    teacher: Learner | None
    query_regulariser: float = 0.0
    """Weight of `query_losses`."""

    @property
    def learners(self) -> dict[Role, Learner]:
        """In the order they learn a task."""
        return {"teacher": self.teacher, "student": self.student} if self.teacher else {"student": self.student}

    def begin_task(self, new_classes: int, seed: int, known: Sequence[int] = (), adapts: bool = True) -> None:
        """Grow both learners. New values depend on the seed, the role and the number of the task, on nothing before."""
        for role, learner in self.learners.items():
            task = len(learner.tasks)
            parts = ("method", "class_head", "distillation")
            device = learner.backbone.mean.device
            drawn = {part: generator(seed, part, role, task) for part in parts}
            learner.begin_task(new_classes, drawn, known, adapts)
            learner.to(device)

    def query_losses(self, learner: Learner, query: Query | None, full_query: Query | None) -> dict[str, Tensor]:
        """In training, for an early query: the distance of its similarities from those of the full query."""
        if not self.query_regulariser:
            return {}
        assert query is not None and full_query is not None
        early = learner.method.similarities(query)
        with torch.no_grad():
            full = learner.method.similarities(full_query)
        return {"query_regulariser": self.query_regulariser * similarity_distance(early, full)}

    def trained_state(self) -> dict[str, Tensor]:
        """Everything trained, names prefixed by the role."""
        return {
            f"{role}/{name}": value
            for role, learner in self.learners.items()
            for name, value in learner.trained_state().items()
        }

    def load_trained_state(self, state: dict[str, Tensor], tasks: list[int], known: Sequence[int] = ()) -> None:
        """Restore what `trained_state` gave; `tasks` are the class counts of the tasks begun by then."""
        for role, learner in self.learners.items():
            own = {name.removeprefix(f"{role}/"): v for name, v in state.items() if name.startswith(f"{role}/")}
            learner.load_trained_state(own, tasks, known)


def build_teacher_student(backbones: dict[Role, Backbone], config: MethodConfig, seed: int) -> TeacherStudent:
    """Learners that have seen no task. `backbones` has no teacher where nothing is distilled."""
    check_name("--method", config.method, tuple(METHODS))
    check_name("--distill", config.distill, tuple(DISTILLATIONS))
    student, teacher = backbones["student"], backbones.get("teacher")
    if teacher is not None and teacher.image_size != student.image_size:
        teacher.first_pixel = 3 * student.image_size[0] * student.image_size[1]
    if teacher is None and config.teacher_features:
        raise OptionError(
            f"--teacher-features {config.teacher_features}: there is no teacher: leave it out, or give --train-teacher "
            "or a distillation"
        )
    first_block = config.query_block
    shapes = {
        role: NetworkShape(b.width, b.depth, student.width, first_block, b.layout, b.pooling)
        for role, b in backbones.items()
    }
    methods = {
        role: build_method(shape, config, generator(seed, "method", "initial", role)) for role, shape in shapes.items()
    }
    distillation = build_distillation(
        shapes["student"],
        shapes.get("teacher"),
        student.class_token(first_block),
        config,
        generator(seed, "distillation", "initial"),
    )
    learners: dict[Role, Learner] = {}
    for role, backbone in backbones.items():
        own, build, calibration = Distillation(), build_head, None
        if role == "student":
            own, build = distillation, build_student_head
            calibration = TaskCalibration() if config.calibration == "statistics" else None
        head = build(backbone.width, config)
        closed_form = build_closed_form(role, backbone, own, config, seed, first_block)
        learners[role] = Learner(role, backbone, methods[role], own, head, first_block, calibration, closed_form)
    encoder = QueryEncoder(student, first_block)
    return TeacherStudent(
        encoder, learners["student"], learners.get("teacher") if teacher else None, config.query_regulariser
    )


def build_closed_form(
    role: Role, backbone: Backbone, distillation: Distillation, config: MethodConfig, seed: int, first_block: int = 0
) -> ClosedFormHead | None:
    """A learner's closed-form head, which has seen nothing; None where its head is learned.

    `first_block`: the student's tokens may enter there, and nobody knows what they were before.
    """
    kind = config.heads[role]
    if kind == "learned":
        return None
    names = closed_form_features(role, backbone, distillation, config, first_block)
    size = config.random_features
    projection = RandomProjection(size, derive_seed(seed, "random features", role) % 2**53) if size else None
    weight = config.ridge_teacher_weight if role == "student" else 0.0
    rule = HeadRule(
        kind, config.priors, config.shrinkage, config.ridge_penalty, intercept=not size, teacher_weight=weight
    )
    return ClosedFormHead(backbone.width, rule, names, projection)


def closed_form_features(
    role: Role, backbone: Backbone, distillation: Distillation, config: MethodConfig, first_block: int
) -> tuple[Feature, ...]:
    """What a learner's closed-form head reads, in order. Raises OptionError for what the learner does not have."""
    has_kd = distillation.extra_tokens() is not None
    averaged = backbone.pooling == "avg"  # then the mean of its patches is what `class` is
    usual = "class" if averaged else "class+patches"
    own = config.teacher_features if role == "teacher" else None
    wanted = own or config.features or (f"{usual}+kd" if has_kd else usual)
    flag = f"--{'teacher-' if own else ''}features {wanted}"
    chosen = wanted.split("+")
    if averaged and "patches" in chosen:
        raise OptionError(
            f"{flag}: the {role} reads the mean of its patches and no class token, so class and patches "
            "are the same: leave patches out"
        )
    for block in early_blocks(chosen):
        low = max(0, first_block - 1) if role == "student" else 0
        if not low <= block < backbone.depth - 1:
            why = f", the first {first_block} of which give the query" if low else ""
            other = "; --teacher-features can differ" if role == "teacher" and not own else ""
            count = f"{backbone.depth} block{'s' if backbone.depth > 1 else ''}"
            last = backbone.depth - 2
            places = f"expected patches@{low} to patches@{last}, or" if low <= last else "there is none before: take"
            raise OptionError(f"{flag}: the {role} has {count}{why}, so {places} patches for those of the last{other}")
    names = tuple(name for name in in_order(chosen) if name in chosen)
    if role == "teacher":
        return tuple(name for name in names if name != "kd") or ("class",)
    if "kd" in names and not has_kd:
        raise OptionError(f"{flag}: there is no KD token with --distill {config.distill}: leave kd out, or give kdp")
    return names
