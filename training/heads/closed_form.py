"""Closed-form heads: a linear layer that is solved from sums over images, and forgets nothing.

The sums (cdl_deploy.closed_form, NumPy in float64) are the same whatever the order of images, classes and tasks; a task
is added by adding its sums. What is solved, and calibrated by one temperature, is a linear layer behind the features,
maybe behind a random projection (RanPAC, arXiv 2307.02251).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.closed_form.features import FeatureMap, RandomProjection
from cdl_deploy.closed_form.head_rule import HeadRule, solve_head
from cdl_deploy.closed_form.overconfidence import measure_overconfidence
from cdl_deploy.closed_form.statistics import Statistics, empty, gather
from cdl_deploy.closed_form.teacher_sums import TeacherSums
from cdl_deploy.training.features import Feature
from cdl_deploy.training.heads.protocol import FoldedHead, Head
from cdl_deploy.training.shapes import Logits

SUMS = ("counts", "means", "spread", "scatter", "noise_images")
LATER_SUMS = ("overconfidence",)
"""What states of older runs do not have."""
TEACHER_SUMS = tuple(item.name for item in fields(TeacherSums))
STATE = "statistics."
"""How the names of the sums begin in a state."""
NEVER = -1e30
"""Logit of a class that no image has been seen of, or that was forgotten."""


class ClosedFormHead(Head):
    """logits = (φ W ᵀ + b) / κ with W, b solved from `statistics` by `rule`; φ is what `map` makes of the features.

    W and b are the same in whatever order classes came, and whichever came together; of κ, see `overconfidence`.
    Classes are called by their position among the logits: `"0"`, `"1"`, … in `statistics`.
    """

    training_only: ClassVar[tuple[str, ...]] = tuple(
        f"{STATE}{name}" for name in (*SUMS, *LATER_SUMS, "positions", *(f"teacher_{name}" for name in TEACHER_SUMS))
    )

    weight: Tensor
    bias: Tensor
    temperature: Tensor
    chosen: Tensor
    projection: Tensor | None

    def __init__(
        self, width: int, rule: HeadRule, features: tuple[Feature, ...], projection: RandomProjection | None = None
    ) -> None:
        """`projection`: of the features to random ones, followed by a ReLU."""
        super().__init__(width, "zeros", features)
        joined = width * len(features)
        self.rule = rule
        self.map = FeatureMap(tuple(features), normalise=rule.kind == "ncm", projection=projection)
        self.size = self.map.dimension(joined)
        self.statistics: Statistics = empty(self.size)
        self.register_buffer("weight", torch.empty(0, self.size))
        self.register_buffer("bias", torch.empty(0))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("chosen", torch.full((), torch.nan))
        matrix = None if projection is None else torch.from_numpy(projection.matrix(joined)).float()
        self.register_buffer("projection", matrix, persistent=False)

    def begin_task(self, new_classes: int, generator: torch.Generator, known: Sequence[int] = ()) -> None:
        """Nothing: classes arrive with their sums."""

    @property
    def fitted(self) -> bool:
        """Whether it has seen a task."""
        return len(self.weight) > 0

    def sums_of(
        self,
        features: npt.NDArray[np.floating],
        labels: npt.NDArray[np.int64],
        teacher: npt.NDArray[np.floating] | None,
    ) -> Statistics:
        """The sums over some images: features [n, F] side by side, labels [n], and a teacher's probabilities [n, C]."""
        count = int(labels.max()) + 1 if teacher is None else teacher.shape[1]
        sums = gather(self.map.transform(features), labels, tuple(map(str, range(count))), teacher)
        return sums.seen() if teacher is None else sums

    def overconfidence_of(
        self, features: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """How much surer than right such a head is on the images of an addition, as two sums."""
        return measure_overconfidence(self.map.transform(features), labels, self.rule)

    def add(self, sums: Statistics) -> None:
        """The sums of more images. `solve` makes a layer of all there are."""
        merged = self.statistics.merge(sums)
        self.statistics = merged.arranged(sorted(merged.classes, key=int))

    def forget(self, position: int) -> bool:
        """Without the class at `position`, whose mean and count go for good; whether it was known."""
        name = str(position)
        if name not in self.statistics.classes:
            return False
        self.statistics = self.statistics.forget(name)
        return True

    def solve(self) -> None:
        """W and b of all that has been added, calibrated by the temperature that the sums suggest."""
        known = self.statistics.seen()
        if not known.classes:  # every class of an early checkpoint may have been forgotten
            self.weight, self.bias = self.weight[:0], self.bias[:0]
            return
        solved, rows = solve_head(known, self.rule), [int(name) for name in known.classes]
        count = int(self.statistics.classes[-1]) + 1
        weight, bias = np.zeros((count, self.size)), np.full(count, NEVER)
        layer = solved.calibrated.scaled(1 / solved.factor)
        weight[rows], bias[rows] = layer.weight, layer.bias
        self.weight = torch.from_numpy(weight).to(self.weight)
        self.bias = torch.from_numpy(bias).to(self.bias)
        self.temperature = torch.tensor(solved.temperature).to(self.temperature)
        self.chosen = torch.tensor(float("nan") if solved.chosen is None else solved.chosen).to(self.chosen)

    def forward(self, features: Float[Tensor, "B F"]) -> Logits:
        weight, bias = self._scaled()
        return nn.functional.linear(self._mapped(features), weight, bias)

    def largest_sum(self, features: Float[Tensor, "B F"]) -> float:
        """Of the sizes of what adds up to a logit: all of it is rounded, however much of it cancels."""
        weight, bias = self._scaled()
        sizes = torch.where(bias > NEVER, bias.abs(), torch.zeros_like(bias))
        return float(nn.functional.linear(self._mapped(features).abs(), weight.abs(), sizes).max())

    def _mapped(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B G"]:
        if self.map.normalise:
            features = nn.functional.normalize(features, dim=1)
        return features if self.projection is None else (features @ self.projection).relu()

    def fold(self) -> FoldedHead:
        projection = None if self.projection is None else self.projection.T
        weight, bias = self._scaled()
        return FoldedHead(weight, bias, self.features, projection=projection, unit_length=self.map.normalise)

    def _scaled(self) -> tuple[Tensor, Tensor]:
        """W/κ and b/κ, but for a class that has no image: its logit stays `NEVER`."""
        factor = self.statistics.temperature_factor
        bias = torch.where(self.bias > NEVER, self.bias / factor, self.bias)
        return self.weight / factor, bias

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        sums, begin = self.statistics, f"{prefix}{STATE}"
        values = {name: np.asarray(getattr(sums, name)) for name in (*SUMS, *LATER_SUMS)}
        values["positions"] = np.array([int(name) for name in sums.classes], np.int64).reshape(-1)
        if sums.teacher is not None:
            values |= {f"teacher_{name}": getattr(sums.teacher, name) for name in TEACHER_SUMS}
        destination.update(
            {begin + name: torch.from_numpy(np.array(value, order="C")) for name, value in values.items()}
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        begin, strict, missing, unexpected = f"{prefix}{STATE}", args[1], args[2], args[3]
        own = {name[len(begin) :]: value for name, value in state_dict.items() if name.startswith(begin)}
        lacking = [begin + name for name in (*SUMS, "positions") if name not in own]
        missing.extend(lacking)
        if not lacking:
            arrays = {name: value.cpu().numpy().copy() for name, value in own.items()}
            teacher = None
            if "teacher_means" in arrays:
                teacher = TeacherSums(**{name: arrays[f"teacher_{name}"] for name in TEACHER_SUMS})
            sums = {name: arrays[name] for name in (*SUMS, *(name for name in LATER_SUMS if name in arrays))}
            sums["noise_images"] = int(sums["noise_images"])
            self.statistics = Statistics(tuple(map(str, arrays["positions"])), **sums, teacher=teacher)
        for name, value in self.named_buffers(recurse=False):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=value.device))
        before = len(unexpected)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        unexpected[before:] = [name for name in unexpected[before:] if not (strict and name.startswith(begin))]


def closed_form_names(state: Mapping[str, Tensor]) -> set[str]:
    """What belongs to closed-form heads in a state of learners: it changes at the end of a task alone."""
    return {name for name in state if ".closed_form." in name or "/closed_form." in name}


__all__ = ["ClosedFormHead", "closed_form_names"]
