"""Tensors into a timm network: by timm's own filters, then compared name by name and shape by shape."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from timm.models import eva, vision_transformer
from torch import Tensor, nn

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.weights_files.layouts.layout import State
from cdl_deploy.training.backbones.weights_files.layouts.original import PATCHES

MISMATCHES_NAMED = 3
LEFT_OUT = re.compile(
    r"(head|head_dist|heads|classifier|cls_classifier|distillation_classifier|fc|pooler|lm_head|dino_head|ibot_head"
    r"|decoder\w*|mask_token|projectors|local_cls_norm|visual_projection|logit_scale|logit_bias|norm_decoder"
    r"|visual\.proj|visual\.head|pre_logits|decoder_pos_embed|rope_embed|rope|queue\w*)(\..*)?|.*\.(bias_mask|periods)"
)
"""What a network without a classifier has no place for: heads, decoders, tokens of pretraining, constants."""


@dataclass(frozen=True)
class Comparison:
    """How tensors fit a network."""

    ready: State
    """By the network's names."""
    wrong: tuple[str, ...]
    """What does not fit, the shapes first: they tell a reader which model a file is of."""
    left_out: tuple[str, ...]
    """Names of what the network has no place for, and needs none."""

    def first_wrong(self) -> str:
        """A few of them, in words."""
        more = len(self.wrong) - MISMATCHES_NAMED
        return "; ".join(self.wrong[:MISMATCHES_NAMED]) + (f", and {more} more" if more > 0 else "")


def fill(vit: nn.Module, tensors: State, file: Path) -> None:
    """Fill `vit`; a classifier is left out, positions of another image size are resampled as timm does it.

    Raises WeightsError naming the first few tensors that have the wrong shape, are missing, or are no part of it.
    """
    kernel, wanted = tensors.get(PATCHES), cast(Any, vit).patch_embed.proj.weight
    patches = () if kernel is None else tuple(kernel.shape)
    if len(patches) == 4 and patches[:2] == wanted.shape[:2] and patches[2:] != wanted.shape[2:]:
        raise WeightsError(
            f"weights {file} are of patches of {patches[2]}x{patches[3]} pixels, and the model's are "
            f"{wanted.shape[2]}x{wanted.shape[3]}: choose the model they were made for"
        )
    found = compare(vit, tensors)
    if found.wrong:
        raise WeightsError(f"weights {file} do not fit the model: {found.first_wrong()}")
    vit.load_state_dict(found.ready)


def compare(network: nn.Module, tensors: State) -> Comparison:
    """What timm's filter makes of the tensors, beside what the network has. Works on the meta device as well."""
    wanted = network.state_dict()
    left_out = tuple(name for name in tensors if LEFT_OUT.fullmatch(name) and name not in wanted)
    state = {name: value for name, value in tensors.items() if name not in left_out or name == "mask_token"}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    try:
        state = _filtered(network, dict(state), wanted)
    except (
        RuntimeError,
        KeyError,
        AssertionError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        NotImplementedError,
    ):
        pass  # the comparison below says what does not fit
    wrong = [
        f"{name} has shape {shapes.get(name, tuple(state[name].shape))}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    wrong += [f"{name} is missing" for name in wanted if name not in state]
    extra = [name for name in state if name not in wanted and not LEFT_OUT.fullmatch(name)]
    wrong += [f"{name} is not part of it" for name in extra]
    ready = {name: state[name].float() for name in wanted if name in state}
    return Comparison(ready, tuple(wrong), left_out)


def _filtered(network: nn.Module, state: dict[str, Tensor], wanted: State) -> State:
    with _quiet_timm():
        if isinstance(network, eva.Eva):
            return _with_zero_biases(eva.checkpoint_filter_fn(state, network), wanted)
        scales = any(name.endswith(".ls1.gamma") for name in wanted)
        vit = cast(vision_transformer.VisionTransformer, network)
        return vision_transformer.checkpoint_filter_fn(state, vit, adapt_layer_scale=scales)


def _with_zero_biases(state: State, wanted: State) -> State:
    """DINOv3's models come with biases of queries and values, and without: a bias that is not there is 0."""
    biases = [name for name in wanted if name.endswith((".attn.q_bias", ".attn.v_bias"))]
    if any(name in state for name in biases):
        return state
    return state | {name: wanted[name].new_zeros(wanted[name].shape) for name in biases}


@contextmanager
def _quiet_timm() -> Iterator[None]:
    """timm logs each tensor that it resamples."""
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
