"""What a head has to offer: it grows with the classes, gives their logits, and can be folded into a matrix product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.errors import OptionError
from cdl_deploy.training.features import Feature
from cdl_deploy.training.shapes import Logits


class Head(nn.Module, ABC):
    """From features [B, F], those called `features` side by side, to the logits of the classes seen so far.

    What is learned by gradient is `GrowingRows`, which hold still what earlier tasks learned; what is computed from
    statistics of features is a buffer. `start` says how rows begin, as `--head-start` does.
    """

    training_only: ClassVar[tuple[str, ...]] = ()
    """Names of its state that no prediction reads, such as sums that the next task goes on with."""

    def __init__(self, width: int, start: str = "zeros", features: tuple[Feature, ...] = ("class",)) -> None:
        super().__init__()
        self.width, self.start, self.features = width, start, features

    @abstractmethod
    def begin_task(self, new_classes: int, generator: torch.Generator, known: Sequence[int] = ()) -> None:
        """Make room for new classes. Values of earlier ones hold still, but for the classes `known`, which learn on."""

    @abstractmethod
    def forward(self, features: Float[Tensor, "B F"]) -> Logits:
        """Logits of every class seen."""

    @abstractmethod
    def fold(self) -> FoldedHead:
        """The same as one matrix product."""


@dataclass(frozen=True)
class FoldedHead:
    """logits = φ(x) Wᵀ + b, where x are the features called `features` side by side."""

    weight: Float[Tensor, "C F"]
    bias: Float[Tensor, " C"]
    features: tuple[Feature, ...] = ("class",)
    normalise: bool = False
    """Whether each feature passes a LayerNorm first that has nothing to train."""
    projection: Float[Tensor, "F G"] | None = None
    """P of φ(x) = ReLU(x Pᵀ), after the LayerNorm; None where φ(x) = x."""
    unit_length: bool = False
    """Whether all features together are brought to unit length first."""

    def of_classes(self, positions: Sequence[int]) -> FoldedHead:
        """The logits of some classes only."""
        return replace(self, weight=self.weight[list(positions)], bias=self.bias[list(positions)])

    def calibrated(self, scale: Float[Tensor, " C"], offset: Float[Tensor, " C"]) -> FoldedHead:
        """logits · scale + offset."""
        return replace(self, weight=self.weight * scale[:, None], bias=self.bias * scale + offset)

    def mixed(self, other: FoldedHead, alpha: float | Float[Tensor, " C"]) -> FoldedHead:
        """(1 − α) of these logits and α of the `other`'s, for all classes or for each."""
        share = torch.as_tensor(alpha).to(self.bias)
        parts = ((1 - share[..., None]) * self.weight, share[..., None] * other.weight)
        bias = (1 - share) * self.bias + share * other.bias
        if self.normalise != other.normalise or self.projection is not None or other.projection is not None:
            raise OptionError("heads that see features differently cannot be one matrix product: give both the same")
        if self.features == other.features:
            return replace(self, weight=parts[0] + parts[1], bias=bias)
        return replace(self, weight=torch.cat(parts, dim=1), bias=bias, features=(*self.features, *other.features))
