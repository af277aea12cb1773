"""The one network of a checkpoint: in which mapping it lies, under which prefix, in which library's names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.weights_files.layouts import LAYOUTS
from cdl_deploy.training.backbones.weights_files.layouts.layout import Layout, State

DEEPEST = 3
"""Mappings within one another that are looked into."""
PREFERRED = ("teacher", "ema", "model_ema", "state_dict_ema", "ema_model", "target_encoder", "base_encoder")
"""Of several networks, the one whose place has one of these words: the average of the weights as they were trained."""
NAMED = 4


@dataclass(frozen=True)
class Network:
    """Tensors by their library's names, and where they were."""

    layout: Layout
    tensors: State
    container: str
    """Keys of the mapping that holds it, with dots; empty at the top."""
    prefix: str
    """What all its names began with, the last dot included."""
    beside: tuple[str, ...]
    """Names of tensors outside of the prefix."""
    others: tuple[str, ...] = ()
    """Where the networks are that were not taken."""

    @property
    def place(self) -> str:
        """Container and prefix."""
        return ".".join(filter(None, (self.container, self.prefix.rstrip("."))))


def find_network(file: Path, content: Mapping[Any, Any]) -> Network:
    """Raises WeightsError where there is none, naming the first tensors, or where there are several of equal rank."""
    found = [network for container, state in _states(content) for network in _networks(container, state)]
    if not found:
        raise WeightsError(_unknown(file, content))
    if len(found) == 1:
        return found[0]
    for word in PREFERRED:
        chosen = [network for network in found if word in re.split(r"[./]", network.place)]
        if len(chosen) == 1:
            others = tuple(network.place or "the top" for network in found if network is not chosen[0])
            return Network(**{**vars(chosen[0]), "others": others})
    places = ", ".join(network.place or "the top" for network in found[:NAMED])
    raise WeightsError(
        f"weights file {file} holds several networks, under {places}: save the state dict of one of them"
    )


def _states(content: Mapping[Any, Any], container: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Every mapping that has tensors, with its place."""
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield container, tensors
    if depth < DEEPEST:
        for key, value in content.items():
            if isinstance(value, Mapping):
                yield from _states(value, f"{container}.{key}".strip("."), depth + 1)


def _networks(container: str, state: State) -> Iterator[Network]:
    taken: set[str] = set()
    for anchor in dict.fromkeys(layout.anchor for layout in LAYOUTS):
        for name in state:
            if name != anchor and not name.endswith(f".{anchor}"):
                continue
            prefix = name.removesuffix(anchor)
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            layouts = [layout for layout in LAYOUTS if layout.anchor == anchor and layout.is_of(own)]
            if layouts and prefix not in taken:
                taken.add(prefix)
                beside = tuple(key for key in state if not key.startswith(prefix))
                yield Network(layouts[0], own, container, prefix, beside)


def _unknown(file: Path, content: Mapping[Any, Any]) -> str:
    names = [name for _, state in _states(content) for name in state]
    if not names:
        keys = ", ".join(str(key)[:40] for key in list(content)[:NAMED]) or "nothing"
        return f"weights file {file} holds no state dict: expected a mapping of names to tensors, found {keys}"
    first = ", ".join(f"{name[:60]}" for name in names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    expected = ", ".join(dict.fromkeys(layout.anchor for layout in LAYOUTS))
    return f"weights file {file} holds no ViT that is known: found {first}{more}; expected one of {expected}"
