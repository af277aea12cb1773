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

from cdl_deploy.training.backbones.weights_files.described import differences
from cdl_deploy.training.backbones.weights_files.filling import compare
from cdl_deploy.training.backbones.weights_files.layouts.layout import State
from cdl_deploy.training.backbones.weights_files.layouts.original import CLIP
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


@dataclass(frozen=True)
class Fits:
    """The models that take all tensors, the likeliest first; where there is none, the nearest, and why it does not."""

    found: tuple[Fit, ...]
    nearest: str | None = None
    why: str | None = None


def find_fits(weights: Weights) -> Fits:
    """Takes a second or two: some hundred models are built, of one block each."""
    measured = measure(weights.tensors)
    if measured is None or not measured.depth:
        return Fits(())
    tensors = {name: value.to("meta") for name, value in weights.tensors.items()}
    first = {name: value for name, value in tensors.items() if _block(name) in (None, 0)}
    found: list[tuple[tuple[Any, ...], Fit]] = []
    missed: list[tuple[int, int, str, str]] = []
    of_eva = any(EVA.fullmatch(key) for key in tensors)
    skip = {} if of_eva else {"weight_init": "skip"}
    for name in candidates(measured, of_eva):
        short = _build(name, depth=1, **skip)
        if short is None or not _same_patches(short, measured):
            continue
        comparison = compare(short, first)
        network = None if comparison.wrong else _build(name, **skip)
        if network is not None:
            comparison = compare(network, tensors)
        wrong = list(comparison.wrong) or (differences(weights, network)[0] if network is not None else ["not built"])
        if network is None or wrong:
            missed.append((len(wrong), len(name), name, comparison.first_wrong() or "; ".join(wrong)))
            continue
        default = cast(Any, network).pretrained_cfg["input_size"][-1]
        size = measured.grid * measured.patch[0] if measured.grid else weights.description.image_size or default
        rank = (*_rank(weights, name), size != default, len(name), name)
        found.append((rank, Fit(name, size, comparison.left_out)))
    nearest = min(missed, default=None) if not found else None
    return Fits(
        tuple(fit for _, fit in sorted(found, key=lambda item: item[0])),
        None if nearest is None else nearest[2],
        None if nearest is None else nearest[3],
    )


def candidates(measured: Measured, of_eva: bool) -> Iterator[str]:
    """Names of models whose patches and width may be the file's."""
    from cdl_deploy.training.backbones.loading import OWN_MODELS

    named = [name for module in MODULES[of_eva] for name in list_models("*", module=module, exclude_filters="test_*")]
    for name in [*named, *(() if of_eva else OWN_MODELS)]:
        patch = re.search(r"patch(\d+)", name)
        if patch is not None and int(patch[1]) != measured.patch[0]:
            continue
        word = re.search("|".join(WIDTHS), name)
        exact = word is not None and "plus_" not in name and "xsmall" not in name and name not in OWN_MODELS
        if word is None or not exact or WIDTHS[word[0]] == measured.width:
            yield name


def _build(name: str, **changes: Any) -> nn.Module | None:
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            network: nn.Module = timm.create_model(name, num_classes=0, **changes)
            return network
    except Exception:  # noqa: BLE001  timm's models refuse arguments in ways of their own
        return None


def _same_patches(network: nn.Module, measured: Measured) -> bool:
    """Before anything is compared: timm's filters would resample the kernels of other patches."""
    kernel = getattr(getattr(getattr(network, "patch_embed", None), "proj", None), "weight", None)
    if not isinstance(kernel, Tensor) or kernel.ndim != 4:
        return False
    return kernel.shape[0] == measured.width and tuple(kernel.shape[2:]) == measured.patch


def _block(name: str) -> int | None:
    match = re.search(r"blocks\.(\d+)\.", name)
    return None if match is None else int(match[1])


def _rank(weights: Weights, name: str) -> tuple[bool, ...]:
    """False comes first. A CLIP of which nothing is said is OpenAI's, whose activation is the quick one."""
    said = weights.description
    quick = said.activation is None and weights.layout == CLIP
    return (
        said.architecture is not None and said.architecture.partition(".")[0] != name,
        bool(weights.like) and not re.search(weights.like, name),
        ("quickgelu" in name) != quick and said.activation is None,
    )
