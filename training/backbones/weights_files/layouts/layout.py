"""What a layout of names is: how it is told from others, and how it becomes what timm's own filters take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """The names that a library gives to the tensors of a ViT."""

    name: str
    """As it is told to a reader."""
    anchor: str
    """Name of the kernel that makes tokens of patches. What stands before it in a file is the network's prefix."""
    convert: Callable[[State], State]
    """Tensors by their names without prefix → tensors as timm's `checkpoint_filter_fn` takes them."""
    like: str = ""
    """Regular expression: of several timm models that fit, one whose name has this is meant."""
    sign: str = ""
    """Regular expression of a whole name that, of layouts with the same anchor, this one alone has."""

    def is_of(self, names: Iterable[str]) -> bool:
        """Whether these names, their prefix taken off, are this layout's."""
        return not self.sign or any(re.fullmatch(self.sign, name) for name in names)


def rename(state: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> State:
    """Every rule on every name, in their order."""
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    renamed: State = {}
    for name, value in state.items():
        for pattern, new in compiled:
            name = pattern.sub(new, name)
        renamed[name] = value
    return renamed


def join(state: Mapping[str, Tensor], parts: tuple[str, ...], joined: str) -> State:
    """`….q.weight`, `….k.weight`, `….v.weight` → `….qkv.weight`, where all are there; a part may lack its bias."""
    found = dict(state)
    for name in state:
        for kind in (".weight", ".bias"):
            if not name.endswith(f".{parts[0]}{kind}"):
                continue
            stem = name.removesuffix(f"{parts[0]}{kind}")
            names = [f"{stem}{part}{kind}" for part in parts]
            if all(part in state for part in names):
                found[f"{stem}{joined}{kind}"] = torch.cat([found.pop(part) for part in names])
    return found


def class_token_with_its_position(state: State) -> State:
    """Of a ViT with registers, whose positions timm keeps for patches alone: the class token's is added to it."""
    if "reg_token" in state and "pos_embed" in state and "cls_token" in state:
        state = dict(state)
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return state
