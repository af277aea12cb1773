"""Random numbers derived from the run's seed and the place they are used, never from a running global state.

Whatever is drawn for (task 7, student, epoch 3) is the same whether the run was interrupted before, whether task 7 was
part of the first command or added a year later, and however many worker processes load the images.
"""

from __future__ import annotations

import torch

from cdl_deploy.seeds import derive_seed

__all__ = ["derive_seed", "generator"]


def generator(seed: int, *scope: str | int) -> torch.Generator:
    """A CPU generator seeded for one place in a run; parameters are drawn on the CPU whatever the device."""
    return torch.Generator().manual_seed(derive_seed(seed, *scope))
