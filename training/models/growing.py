"""A parameter that gets new rows with every task while the rows of earlier tasks stand still.

Growing equals preallocating (method, section 6): rows that no task has reached get no gradient, and initial values look
only backwards. Keeping the earlier rows in a buffer, outside the optimiser, makes the invariant hold by construction
and keeps the cost of a task independent of how many came before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class GrowingRows(nn.Module):
    """`earlier` [n, *shape] is a buffer, `current` [m, *shape] a parameter; `all()` is both, in order."""

    earlier: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("earlier", torch.empty(0, *shape))
        self.current = nn.Parameter(torch.empty(0, *shape))

    def __len__(self) -> int:
        return len(self.earlier) + len(self.current)

    def all(self) -> Tensor:
        """Every row [n + m, *shape]; gradients reach only the current task's."""
        return torch.cat([self.earlier, self.current]) if len(self.earlier) else self.current

    def grow(self, rows: Tensor) -> None:
        """Retire the current rows and make `rows` [m, *shape] the current task's."""
        self.earlier = self.all().detach().clone()
        self.current = nn.Parameter(rows.to(self.earlier))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take whatever number of rows the state has: a checkpoint knows how far the tasks had come."""
        earlier, current = state_dict.get(prefix + "earlier"), state_dict.get(prefix + "current")
        if earlier is not None and current is not None:
            self.earlier = torch.empty_like(earlier, device=self.earlier.device)
            self.current = nn.Parameter(torch.empty_like(current, device=self.earlier.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
