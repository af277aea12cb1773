"""A file of weights that somebody hands in: what is in it, and what it is where it is none.

Safetensors, or a torch checkpoint, of which timm reads tensors only and runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from timm.models import load_state_dict
from torch import Tensor

from cdl_deploy.documents import parse_json
from cdl_deploy.errors import WeightsError
from cdl_deploy.regular_file import open_regular

PATCHES = "patch_embed.proj.weight"
"""A tensor that every ViT of timm's has, and few heads."""
TRANSFORMERS = ("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight")
MAX_CONFIG = 1 << 20
OTHERS = {
    b"\x89HDF": "a HDF5 file, as Keras writes them",
    b"GGUF": "a GGUF file, as llama.cpp reads them",
    b"\x1f\x8b": "a compressed file, to be unpacked first",
    b"7z\xbc\xaf": "an archive, to be unpacked first",
    b"\xfd7zXZ": "a compressed file, to be unpacked first",
}
"""What begins so, and is neither safetensors nor a torch checkpoint."""


@dataclass(frozen=True)
class Weights:
    """Tensors by timm's names, and what the file says of pixels: entries of a `pretrained_cfg`."""

    tensors: dict[str, Tensor]
    pixels: dict[str, Any]


def read_weights(file: Path) -> Weights:
    """Raises WeightsError, saying what the file is instead, where it holds no weights of a network."""
    _refuse_others(file)
    try:
        content = load_state_dict(str(file), weights_only=True)
    except AttributeError:
        content = {}  # timm took it for a mapping
    except Exception as error:  # noqa: BLE001  safetensors, zip, pickle and OS errors have no common base
        if "weights_only" in str(error) or "TorchScript" in str(error):
            raise WeightsError(
                f"weights {file} hold Python objects, such as a whole model, and only tensors are read from a file: "
                "save model.state_dict(), as safetensors or with torch.save"
            ) from None
        reason = " ".join(str(error).split(". ")[0].split())[:160]
        raise WeightsError(
            f"cannot read weights file {file}: neither safetensors nor a torch checkpoint, or not all of it "
            f"({reason or type(error).__name__})"
        ) from None
    return Weights(_without_prefix(file, _tensors(file, content)), _pixels(file))


def _tensors(file: Path, content: Any) -> dict[str, Tensor]:
    """The one network in a checkpoint, at the top or under a key of its own."""
    if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        return dict(content)
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Mapping) and any(isinstance(key, str) and key.endswith(PATCHES) for key in value):
            found[str(name)] = {key: tensor for key, tensor in value.items() if isinstance(tensor, Tensor)}
    if len(found) > 1:
        raise WeightsError(
            f"weights file {file} holds several networks, under the keys {', '.join(found)}: save the state dict of one"
        )
    if not found:
        raise WeightsError(f"weights file {file} holds no state dict: expected a mapping of names to tensors")
    return next(iter(found.values()))


def _without_prefix(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's own names: a trainer's `model.`, `backbone.`, `module.encoder.` and the like are taken off."""
    if any(name.endswith(TRANSFORMERS) for name in tensors):
        raise WeightsError(
            f"weights {file} have the names of a transformers model, expected timm's: take the timm model of the same "
            "weights, or rename the tensors"
        )
    prefixes = [name.removesuffix(PATCHES) for name in tensors if name.endswith(PATCHES)]
    if len(prefixes) > 1:
        raise WeightsError(
            f"weights file {file} holds several networks, named {', '.join(prefixes)}: save the state dict of one"
        )
    prefix = prefixes[0] if prefixes else ""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _refuse_others(file: Path) -> None:
    """Raise WeightsError for what can be told by its name or first bytes."""
    if file.is_dir():
        inside = [name for name in ("model.safetensors", "pytorch_model.bin") if (file / name).is_file()]
        hint = f"give {file / inside[0]}" if inside else "give the file of weights itself"
        raise WeightsError(f"weights {file} is a folder: {hint}")
    if not file.is_file():
        raise WeightsError(f"weights file {file} does not exist")
    try:
        with open_regular(file) as opened:
            head = opened.read(512)
    except OSError as error:
        raise WeightsError(f"cannot read weights file {file}: {error.strerror or error}") from None
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"weights {file} is a Git LFS pointer and not the file: fetch it with git lfs pull")
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise WeightsError(f"weights {file} is a web page, not what was to be downloaded: download it again")
    if not head:
        raise WeightsError(f"weights file {file} is empty: download or save it again")
    for start, kind in OTHERS.items():
        if head.startswith(start):
            raise WeightsError(f"weights {file} is {kind}; expected safetensors or a torch checkpoint")
    if file.suffix.lower() == ".json":
        kind = "the index of weights in several files" if file.name.endswith(".index.json") else "JSON"
        raise WeightsError(f"weights {file} is {kind}, expected one .safetensors or .pth: save the weights in one file")
    if file.suffix.lower() in (".npz", ".npy"):
        raise WeightsError(
            f"weights {file} is a NumPy archive, as big_vision has them: take the timm model of the same weights"
        )


def _pixels(file: Path) -> dict[str, Any]:
    """`mean`, `std`, `input_size`, `interpolation`, `crop_pct`: as far as the metadata of a safetensors file say."""
    metadata: dict[str, str] = {}
    if file.suffix == ".safetensors":
        with suppress(Exception), safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    found: dict[str, Any] = {}
    for text in (metadata.get("pretrained_cfg"), json.dumps(metadata)):
        with suppress(ValueError, TypeError):
            values = parse_json(text) if text and len(text) <= MAX_CONFIG else {}
            if isinstance(values, dict):
                found = {**_read(values), **found}
    return found


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that say how pixels are to be, with the right types; others are left out."""
    found: dict[str, Any] = {}
    for name in ("mean", "std", "input_size"):
        value = values.get(name)
        with suppress(ValueError):
            value = parse_json(value) if isinstance(value, str) else value
        if isinstance(value, list) and len(value) == 3 and all(type(item) in (int, float) for item in value):
            found[name] = tuple(value)
    if any(value <= 0 for value in found.get("std", ())):
        del found["std"]
    return found
