"""What a closed-form head is in the end: a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.teacher_sums import Floats


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Scores φ · weightᵀ + bias, one for each class."""

    classes: tuple[str, ...]
    """Names, C of them."""
    weight: Floats
    """[C, D]."""
    bias: Floats
    """[C]."""

    def scores(self, features: NDArray[np.floating]) -> Floats:
        """[n, D] → [n, C]."""
        result: Floats = features.astype(np.float64, copy=False) @ self.weight.T
        result += self.bias
        return result

    def scaled(self, temperature: float) -> LinearHead:
        """With scores divided by `temperature`, so that their softmax are the calibrated probabilities."""
        return replace(self, weight=self.weight / temperature, bias=self.bias / temperature)

    def arranged(self, classes: Sequence[str]) -> LinearHead:
        """With its rows in the order of `classes`."""
        rows = [self.classes.index(name) for name in classes]
        return LinearHead(tuple(classes), self.weight[rows], self.bias[rows])

    def centred(self) -> LinearHead:
        """With the mean over the classes taken from weight and bias: the same softmax, of smaller numbers.

        slda's w_c = Σ⁻¹ μ_c share Σ⁻¹ · (mean of all), which is large where features have a large mean, says nothing
        about the class, and costs digits once the layer is rounded to float32. Ridge's scores are changed by a number
        common to all classes, which neither softmax nor order see.
        """
        return replace(self, weight=self.weight - self.weight.mean(axis=0), bias=self.bias - self.bias.mean())
