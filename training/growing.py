"""A parameter that gets new rows with every task while the rows of earlier tasks stand still.

Growing equals preallocating (method, section 6): rows that no task has reached get no gradient, and initial values look
only backwards. Keeping the earlier rows in a buffer, outside the optimiser, makes the invariant hold by construction
and keeps the cost of a task independent of how many came before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class GrowingRows(nn.Module):
    """`frozen` [n, *shape] is a buffer, `trainable` [m, *shape] a parameter; `all()` is both, in order.

    Where the current task brings new images of known classes, `unfrozen` [k, *shape] are the rows of `frozen` at the
    positions `unfrozen_at` [k] that learn again, in place of those.
    """

    frozen: Tensor
    unfrozen_at: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("frozen", torch.empty(0, *shape))
        self.register_buffer("unfrozen_at", torch.empty(0, dtype=torch.int64))
        self.trainable = nn.Parameter(torch.empty(0, *shape))
        self.unfrozen = nn.Parameter(torch.empty(0, *shape), requires_grad=False)

    def __len__(self) -> int:
        return len(self.frozen) + len(self.trainable)

    def all(self) -> Tensor:
        """Every row [n + m, *shape]; gradients reach only the current task's."""
        frozen = self.frozen
        if len(self.unfrozen):
            frozen = frozen.index_copy(0, self.unfrozen_at, self.unfrozen)
        return torch.cat([frozen, self.trainable]) if len(frozen) else self.trainable

    def grow(self, rows: Tensor, unfreeze: Sequence[int] = ()) -> None:
        """Retire the current rows and make `rows` [m, *shape] the current task's, with the earlier rows `unfreeze`."""
        self.frozen = self.all().detach().clone()
        self.trainable = nn.Parameter(rows.to(self.frozen))
        self.unfrozen_at = torch.tensor(unfreeze, dtype=torch.int64, device=self.frozen.device)
        self.unfrozen = nn.Parameter(self.frozen[self.unfrozen_at].clone(), requires_grad=len(unfreeze) > 0)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take whatever number of rows the state has: a checkpoint knows how far the tasks had come."""
        for name in ("frozen", "unfrozen_at", "trainable", "unfrozen"):
            value = state_dict.get(prefix + name)
            if value is not None:
                if name != "unfrozen_at" and tuple(value.shape[1:]) != self.shape:
                    raise RuntimeError(f"{prefix}{name} has rows of shape {tuple(value.shape[1:])}, not {self.shape}")
                empty = torch.empty_like(value, device=self.frozen.device)
                learns = name == "trainable" or (name == "unfrozen" and len(value) > 0)
                setattr(self, name, nn.Parameter(empty, learns) if name in self._parameters else empty)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def carried_over(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the state at the end of a task: what `frozen` is throughout the next one, of every `GrowingRows` by name.

    The same values, bit for bit, that `grow` retires.
    """
    found: dict[str, Tensor] = {}
    for name in frozen_names(state):
        frozen, prefix = state[name], name.removesuffix("frozen")
        if len(state[f"{prefix}unfrozen"]):
            frozen = frozen.index_copy(0, state[f"{prefix}unfrozen_at"], state[f"{prefix}unfrozen"])
        found[name] = torch.cat([frozen, state[f"{prefix}trainable"]])
    return found


def frozen_names(state: Mapping[str, Tensor]) -> set[str]:
    """What `frozen` is called in a state, for every `GrowingRows` in it."""
    names = {name.removesuffix("unfrozen_at") for name in state if name.endswith(".unfrozen_at")}
    return {f"{name}frozen" for name in names}


class ResizableBuffers(nn.Module):
    """Named buffers without gradient that take whatever shape a state has for them."""

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, value in list(self.named_buffers(recurse=False)):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=value.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Cached:
    """A function of tensors that seldom change, computed again only when one of them did.

    Not a buffer: it is no part of the state, and follows its tensors wherever they are moved or loaded.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self.function = function
        self.tensors: tuple[Tensor, ...] = ()
        self.versions: tuple[int, ...] = ()
        self.result: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`function(*tensors)`, without gradient."""
        versions = tuple(tensor._version for tensor in tensors)  # counts changes in place
        same = len(tensors) == len(self.tensors) and all(a is b for a, b in zip(tensors, self.tensors, strict=True))
        if not same or versions != self.versions:
            self.result = tuple(value.contiguous() for value in self.function(*tensors))
            self.tensors, self.versions = tensors, versions
        return self.result
