"""The features that heads read of a network's last block: named, because not every network has each in the same place.

    class      what stands for the whole image: the class token
    patches    the mean of the patch tokens
    kd         the token that a distillation has appended

Each is D wide and has passed the final norm. A learner computes those that its heads read, [B, n, D] in this order.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Feature = Literal["class", "patches", "kd"]
POSITIONS: dict[Feature, int] = {"class": 0, "patches": 1, "kd": -1}
"""Where a feature stands among those that a learner has computed; `class` is always there."""


def in_order(features: Collection[Feature]) -> tuple[Feature, ...]:
    """Each once, in the order in which a learner has them; with `class`."""
    return tuple(name for name in POSITIONS if name == "class" or name in features)


def side_by_side(computed: Float[Tensor, "B n D"], features: tuple[Feature, ...]) -> Float[Tensor, "B F"]:
    """The ones called `features`, one behind the other."""
    if len(features) == 1:
        return computed[:, POSITIONS[features[0]]]
    return torch.cat([computed[:, POSITIONS[name]] for name in features], dim=1)
