"""The .npz files of big_vision and of the first ViTs (JAX), read by timm's own method.

It copies into a network, so one of the file's own shape is made first; arrays are numbers alone (`allow_pickle=False`).
"""

from __future__ import annotations

import math
import re
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy.lib.format as npy
import torch
from timm.models.vision_transformer import VisionTransformer

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.weights_files.layouts.layout import State

PREFIXES = ("opt/target/", "params/img/", "params/", "img/", "")
"""Before the names of the image tower, as timm's reader knows them."""
TORN = (
    *(OSError, ValueError, KeyError, EOFError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
"""What zipfile and numpy raise for an archive that is damaged."""
MOST_BLOCKS = 1_000
MOST_INFLATED = 64
"""Times that arrays may be larger than the file: random numbers cannot be compressed."""


@dataclass(frozen=True)
class BigVision:
    """Tensors by timm's names, what only this format says, and what was not read."""

    tensors: State
    heads: int
    prefix: str
    left_out: tuple[str, ...]


def read_big_vision(file: Path) -> BigVision:
    """Raises WeightsError for an archive that holds no ViT of big_vision, or is torn."""
    try:
        shapes = _shapes(file)
    except TORN as error:
        raise WeightsError(_torn(file, error)) from None
    prefix = next((start for start in PREFIXES if f"{start}embedding/kernel" in shapes), None)
    if prefix is None or len(shapes[f"{prefix}embedding/kernel"]) != 4:
        first = ", ".join(name[:60] for name in list(shapes)[:4]) or "nothing"
        raise WeightsError(f"weights file {file} holds no ViT that is known: found {first}; expected embedding/kernel")
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    try:
        network, heads = _network(own)
        network.load_pretrained(str(file), prefix=prefix if prefix == "img/" else "")
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise WeightsError(_torn(file, error)) from None
    except (*TORN, RuntimeError, IndexError, AssertionError, AttributeError, TypeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise WeightsError(f"weights file {file} holds no ViT of big_vision that timm can read: {reason}") from None
    used = re.compile(r"(embedding|Transformer|MAPHead_0)/.*|cls|pos_embedding")
    left_out = tuple(name for name in shapes if not used.fullmatch(name.removeprefix(prefix)))
    return BigVision(dict(network.state_dict()), heads, prefix.rstrip("/"), left_out)


def _torn(file: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return f"cannot read weights file {file}: it is torn, or no .npz ({reason}); download it again"


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Of every array, from the headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    with zipfile.ZipFile(file) as archive:
        if sum(item.file_size for item in archive.infolist()) > MOST_INFLATED * file.stat().st_size + (1 << 20):
            raise ValueError("its arrays are too large for its size")
        for item in archive.infolist():
            with archive.open(item) as member:
                version = npy.read_magic(member)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(member)
                if dtype.hasobject:
                    raise ValueError(f"{item.filename} holds Python objects, which are never read")
                if math.prod(shape) * dtype.itemsize > item.file_size:
                    raise ValueError(f"{item.filename} ends too early")
                shapes[item.filename.removesuffix(".npy")] = shape
    return shapes


def _network(shapes: dict[str, tuple[int, ...]]) -> tuple[VisionTransformer, int]:
    """A ViT of this shape, without a classifier."""
    patch, _, _, width = shapes["embedding/kernel"]
    stacked = shapes.get("Transformer/encoderblock/LayerNorm_0/scale")
    if stacked is not None:
        depth, block = stacked[0], "Transformer/encoderblock/"
    else:
        depth = len({name.split("/")[1] for name in shapes if name.startswith("Transformer/encoderblock_")})
        block = "Transformer/encoderblock_0/"
    if not 1 <= depth <= MOST_BLOCKS:
        raise ValueError(f"found {depth} blocks, expected 1 to {MOST_BLOCKS}")
    query, hidden = (_shape(shapes, rf"{block}{name}") for name in (r"Multi\w+/query/kernel", r"Mlp\w+/Dense_0/kernel"))
    positions = shapes.get("pos_embedding") or shapes["Transformer/posembed_input/pos_embedding"]
    class_token = "cls" in shapes
    with_class = math.isqrt(positions[1]) ** 2 != positions[1]
    grid = math.isqrt(positions[1] - int(class_token and with_class))
    pooled = any(name.startswith("MAPHead_0/") for name in shapes)
    with torch.random.fork_rng(devices=[]):
        network = VisionTransformer(
            img_size=grid * patch,
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=query[-2],
            mlp_ratio=hidden[-1] / width,
            num_classes=0,
            class_token=class_token,
            no_embed_class=not with_class,
            global_pool="map" if pooled else "token" if class_token else "avg",
            fc_norm=False,
            weight_init="skip",
        ).eval()
    return network, query[-2]


def _shape(shapes: dict[str, tuple[int, ...]], pattern: str) -> tuple[int, ...]:
    found = next((shape for name, shape in shapes.items() if re.fullmatch(pattern, name)), None)
    if found is None:
        raise KeyError(f"no array is named as in {pattern}")
    return found


def is_npz(file: Path, head: bytes) -> bool:
    """By its name, or by its first member's: a torch checkpoint is an archive too."""
    return file.suffix.lower() == ".npz" or (head.startswith(b"PK") and b".npy" in head[:512])
