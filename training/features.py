"""The features that heads read of a network: named, because not every network has each in the same place.

    class       what stands for the whole image: the class token
    patches     the mean of the patch tokens
    kd          the token that a distillation has appended
    patches@K   the mean of the patch tokens after block K, counted from 0; K is less than that of the last block

Each is D wide and has passed the final norm. A learner computes those that its heads read, [B, n, D]: `class`,
`patches`, those of earlier blocks by their number, `kd`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

Feature = str
"""`class`, `patches`, `kd` or `patches@K`."""
EARLY = "patches@"
"""How the names of those of earlier blocks begin."""
POSITIONS: dict[Feature, int] = {"class": 0, "patches": 1, "kd": -1}
"""The features after the last block, in the order in which a learner has them, and where they stand among all that it
has computed; `class` is always there."""


def early_block(feature: Feature) -> int | None:
    """K of `patches@K`; None for a feature after the last block."""
    return int(feature.removeprefix(EARLY)) if feature.startswith(EARLY) else None


def early_blocks(features: Collection[Feature]) -> tuple[int, ...]:
    """K of every `patches@K` among them, in rising order."""
    return tuple(sorted(block for name in features if (block := early_block(name)) is not None))


def at_the_end(features: Collection[Feature]) -> tuple[Feature, ...]:
    """Those after the last block, in order; with `class`."""
    return tuple(name for name in POSITIONS if name == "class" or name in features)


def in_order(features: Collection[Feature]) -> tuple[Feature, ...]:
    """Each once, in the order in which a learner has them; with `class`."""
    last = at_the_end(features)
    kd = _before_kd(last)
    return (*last[:kd], *(f"{EARLY}{block}" for block in early_blocks(features)), *last[kd:])


def _before_kd(last: tuple[Feature, ...]) -> int:
    """How many of the features after the last block stand before `kd`, and so before those of earlier blocks."""
    return len(last) - ("kd" in last)


def with_early(
    pooled: Float[Tensor, "B n D"], last: tuple[Feature, ...], early: Mapping[int, Float[Tensor, "B D"]]
) -> Float[Tensor, "B m D"]:
    """The features after the last block, called `last`, with those of earlier blocks, by block, in between."""
    if not early:
        return pooled
    kd = _before_kd(last)
    middle = torch.stack([early[block] for block in sorted(early)], dim=1)
    return torch.cat([pooled[:, :kd], middle, pooled[:, kd:]], dim=1)


def side_by_side(
    computed: Float[Tensor, "B n D"], features: tuple[Feature, ...], order: tuple[Feature, ...] | None = None
) -> Float[Tensor, "B F"]:
    """The ones called `features`, one behind the other. `order`: what `computed` holds; where nothing of an earlier
    block is asked for, `POSITIONS` says enough."""
    places = [POSITIONS[name] if order is None else order.index(name) for name in features]
    if len(places) == 1:
        return computed[:, places[0]]
    return torch.cat([computed[:, place] for place in places], dim=1)
