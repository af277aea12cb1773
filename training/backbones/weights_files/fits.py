"""Which of timm's ViTs a file's tensors fit, and at which image size.

A model is built on the meta device with one block, which takes milliseconds, and compared with the file's first; those
that remain are built whole. Shapes do not say everything: where several fit, the library's usual model comes first, and
then the number of heads, the activation and the name that the file's configuration give.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from timm.models import list_models
from torch import Tensor, nn

from cdl_deploy.training.backbones.weights_files.filling import Comparison, compare
from cdl_deploy.training.backbones.weights_files.layouts.layout import State
from cdl_deploy.training.backbones.weights_files.weights import Weights

WIDTHS = {"tiny": 192, "small": 384, "base": 768, "large": 1024}
"""What timm's names say of the width, unless `plus` or `xsmall` is in them."""
EVA = re.compile(r"(.*\.)?(gamma_1|q_bias|storage_tokens|q_proj\.weight|ls_1\.gamma)|rope\.freqs")
"""Names of tensors that models of timm's `eva` have."""
MODULES = {True: ("eva",), False: ("vision_transformer", "deit")}


@dataclass(frozen=True)
class Measured:
    """What the shapes of a network's tensors say."""

    width: int
    depth: int
    patch: tuple[int, int]
    grid: int | None
    """Patches along an edge, as positions were learned; None where they are rotary, or not of a square."""

    def words(self) -> str:
        """The same for a reader."""
        positions = "" if self.grid is None else f", positions for {self.grid}x{self.grid} patches"
        return f"{self.depth} blocks, {self.width} wide, patches of {self.patch[0]}x{self.patch[1]} pixels{positions}"


@dataclass(frozen=True)
class Fit:
    """A timm model that takes all the tensors."""

    model: str
    image_size: int
    """As the weights were trained, or the model's own where positions do not tell."""
    left_out: tuple[str, ...]


def measure(tensors: State) -> Measured | None:
    """None where there are no patches or blocks to see."""
    kernel = next((tensors[n] for n in (*_KERNELS, *tensors) if n in tensors and n.endswith(_KERNELS)), None)
    if kernel is None or kernel.ndim not in (2, 4):
        return None
    width = kernel.shape[0]
    side = math.isqrt(kernel.shape[1] // 3) if kernel.ndim == 2 else 0
    patch = (side, side) if kernel.ndim == 2 else (kernel.shape[2], kernel.shape[3])
    depth = len({match[1] for name in tensors if (match := re.search(r"blocks\.(\d+)\.", name))})
    return Measured(width, depth, patch, _grid(tensors))


_KERNELS = ("patch_embed.proj.weight", "visual.conv1.weight", "patch_generator.embedder.weight")


def _grid(tensors: State) -> int | None:
    positions = next((v for n, v in tensors.items() if n.endswith(("pos_embed", "positional_embedding"))), None)
    if positions is None or positions.ndim not in (2, 3):
        return None
    count = positions.shape[-2]
    extra = 0 if math.isqrt(count) ** 2 == count else 1 + ("dist_token" in tensors)
    side = math.isqrt(count - extra)
    return side if side**2 == count - extra else None


def find_fits(weights: Weights) -> list[Fit]:
    """The models that take all tensors of the network, the likeliest first."""
    measured = measure(weights.tensors)
    if measured is None or not measured.depth:
        return []
    tensors = {name: value.to("meta") for name, value in weights.tensors.items()}
    first = {name: value for name, value in tensors.items() if _block(name) in (None, 0)}
    found: list[tuple[tuple[Any, ...], Fit]] = []
    for name in candidates(measured, any(EVA.fullmatch(key) for key in tensors)):
        short = _build(name, depth=1)
        if short is None or _wrong(short, first, measured):
            continue
        network = _build(name)
        if network is None or (comparison := _comparison(network, tensors, measured)) is None:
            continue
        default = cast(Any, network).pretrained_cfg["input_size"][-1]
        size = measured.grid * measured.patch[0] if measured.grid else weights.description.image_size or default
        rank = (*_rank(weights, name, network), size != default, len(name), name)
        found.append((rank, Fit(name, size, comparison.left_out)))
    return [fit for _, fit in sorted(found, key=lambda item: item[0])]


def candidates(measured: Measured, of_eva: bool) -> Iterator[str]:
    """Names of models whose patches and width may be the file's."""
    from cdl_deploy.training.backbones.loading import OWN_MODELS

    named = [name for module in MODULES[of_eva] for name in list_models("*", module=module)]
    for name in [*named, *(() if of_eva else OWN_MODELS)]:
        patch = re.search(r"patch(\d+)", name)
        if patch is not None and int(patch[1]) != measured.patch[0]:
            continue
        word = re.search("|".join(WIDTHS), name)
        if word and "plus" not in name and "xsmall" not in name and name not in OWN_MODELS:
            if WIDTHS[word[0]] != measured.width:
                continue
        yield name


def _build(name: str, **changes: Any) -> nn.Module | None:
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            return cast(nn.Module, timm.create_model(name, num_classes=0, **changes))
    except Exception:  # noqa: BLE001  timm's models refuse arguments in ways of their own
        return None


def _comparison(network: nn.Module, tensors: State, measured: Measured) -> Comparison | None:
    return None if _wrong(network, tensors, measured) else compare(network, tensors)


def _wrong(network: nn.Module, tensors: State, measured: Measured) -> bool:
    vit = cast(Any, network)
    kernel = getattr(getattr(getattr(vit, "patch_embed", None), "proj", None), "weight", None)
    if not isinstance(kernel, Tensor) or kernel.ndim != 4:
        return True
    if kernel.shape[0] != measured.width or tuple(kernel.shape[2:]) != measured.patch:
        return True
    return bool(compare(network, tensors).wrong)


def _block(name: str) -> int | None:
    match = re.search(r"blocks\.(\d+)\.", name)
    return None if match is None else int(match[1])


def _rank(weights: Weights, name: str, network: nn.Module) -> tuple[bool, ...]:
    """False comes first."""
    said = weights.description
    block = cast(Any, network).blocks[0]
    heads = getattr(getattr(block, "attn", None), "num_heads", None)
    quick = said.activation == "quick_gelu" or (said.activation is None and weights.layout.startswith("CLIP"))
    return (
        said.architecture is not None and said.architecture.partition(".")[0] != name,
        weights.heads is not None and heads is not None and heads != weights.heads,
        not re.search(weights.like, name) if weights.like else False,
        ("quickgelu" in name) != quick,
    )
