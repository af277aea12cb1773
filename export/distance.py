"""The distance to the nearest class in a graph: `cdl_deploy.closed_form.mahalanobis` in float32."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.closed_form.mahalanobis import Mahalanobis


class NearestClass(nn.Module):
    """d = √(‖z‖² + min_c (‖m_c‖² − 2 z·m_c)) with z = (φ − centre) F."""

    centre: Tensor
    factor: Tensor
    means: Tensor
    squares: Tensor

    def __init__(self, distance: Mahalanobis) -> None:
        super().__init__()
        for name, value in distance.constants().items():
            self.register_buffer(name, torch.from_numpy(value))

    def forward(self, mapped: Float[Tensor, "B G"]) -> Float[Tensor, " B"]:
        """From φ."""
        z = (mapped - self.centre) @ self.factor
        nearest = (z @ self.means + self.squares).amin(dim=1)
        return ((z * z).sum(dim=1) + nearest).relu().sqrt()
