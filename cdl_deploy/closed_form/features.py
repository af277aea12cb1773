"""From a backbone's tokens to the vector φ that is summed, and that the head is applied to.

    φ = ReLU(unit(parts side by side) · R)

where unit length and random projection R are options. All of it is part of the model: the same record stands in a
run, in the exported file, and in the statistics' file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.stable_random import normals
from cdl_deploy.closed_form.teacher_sums import Floats
from cdl_deploy.errors import OptionError
from cdl_deploy.run.feature_parts import parts_of

SHORTEST = 1e-12
"""A vector shorter than this is divided by it instead of by its length, as in PyTorch's `normalize`."""


@dataclass(frozen=True)
class RandomProjection:
    """h = ReLU(φR), R [D, M] of normal numbers (arXiv 2307.02251, section 4): never stored but for the seed."""

    features: int
    """M, the length of h."""
    seed: int
    """Which R; see `stable_random`. Below 2⁵³, which is what JavaScript reads exactly."""

    def __post_init__(self) -> None:
        if not 1 <= self.features <= 1 << 16:
            raise OptionError(f"random features are {self.features}, expected 1 to {1 << 16}")
        if not 0 <= self.seed < 1 << 53:
            raise OptionError(f"the seed of the random features is {self.seed}, expected 0 to 2**53 - 1")

    def matrix(self, dimension: int) -> Floats:
        """R [dimension, M], each number exact in float32. Row by row: R of fewer dimensions is its beginning."""
        return normals(self.seed, dimension, self.features)


@dataclass(frozen=True)
class FeatureMap:
    """What φ is made of."""

    parts: tuple[str, ...] = ("class",)
    """Tokens, put side by side in this order: `run.feature_parts.PART` says which there are."""
    normalise: bool = False
    """Whether the vector is brought to unit length, before a projection."""
    projection: RandomProjection | None = None
    """A random projection with ReLU, or none."""

    def __post_init__(self) -> None:
        if parts_of(self.name) is None:
            raise OptionError(
                f"the features are '{self.name}', expected some of class, kd, patches and patches@BLOCK, each once, "
                "joined by +, e.g. class+kd"
            )

    @classmethod
    def parse(cls, text: str, normalise: bool = False, projection: RandomProjection | None = None) -> FeatureMap:
        """From `class+kd`."""
        return cls(tuple(text.split("+")), normalise, projection)

    @property
    def name(self) -> str:
        """`class+kd`."""
        return "+".join(self.parts)

    def join(self, tokens: Mapping[str, NDArray[np.floating]]) -> NDArray[np.floating]:
        """The parts, each [n, D_part], side by side: [n, Σ D_part]."""
        return np.concatenate([tokens[part] for part in self.parts], axis=1)

    def transform(self, joined: NDArray[np.floating]) -> Floats:
        """From the parts side by side [n, D] to φ, in float64: [n, D], or [n, M] with a projection."""
        values = joined.astype(np.float64)
        if self.normalise:
            values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), SHORTEST)
        if self.projection:
            values = np.maximum(values @ self.projection.matrix(values.shape[1]), 0)
        return values

    def dimension(self, joined: int) -> int:
        """The length of φ, where the parts side by side have `joined` numbers."""
        return self.projection.features if self.projection else joined
