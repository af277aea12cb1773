"""Teacher and student of a run, and the query encoder they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdl_deploy.run.config import MethodConfig
from cdl_deploy.training.backbones.protocol import Backbone, NetworkShape
from cdl_deploy.training.distillation import Distillation, build_distillation
from cdl_deploy.training.losses import similarity_distance
from cdl_deploy.training.methods import build_head, build_method, build_student_head
from cdl_deploy.training.models.calibration import TaskCalibration
from cdl_deploy.training.models.learner import Learner, QueryEncoder, QueryResult, Role
from cdl_deploy.training.seeds import generator


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

    def begin_task(self, new_classes: int, seed: int, known: Sequence[int] = ()) -> None:
        """Grow both learners. New values depend on the seed, the role and the number of the task, on nothing before."""
        for role, learner in self.learners.items():
            task = len(learner.tasks)
            parts = ("method", "class_head", "distillation")
            device = learner.backbone.mean.device
            learner.begin_task(new_classes, {part: generator(seed, part, role, task) for part in parts}, known)
            learner.to(device)

    def query_losses(self, learner: Learner, result: QueryResult) -> dict[str, Tensor]:
        """In training, for an early query: the distance of its similarities from those of the full query."""
        if not self.query_regulariser:
            return {}
        assert result.query is not None
        early = learner.method.similarities(result.query)
        with torch.no_grad():
            full = learner.method.similarities(self.encoder.full_query(result))
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
    student, teacher = backbones["student"], backbones.get("teacher")
    first_block = config.query_block
    shapes = {
        role: NetworkShape(b.width, b.depth, student.width, first_block, b.layout) for role, b in backbones.items()
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
        learners[role] = Learner(role, backbone, methods[role], own, head, first_block, calibration)
    encoder = QueryEncoder(student, first_block)
    return TeacherStudent(
        encoder, learners["student"], learners.get("teacher") if teacher else None, config.query_regulariser
    )
