"""What is said of weights beside them: in a safetensors file's metadata, and in the JSON files of a hub's snapshot.

Strangers wrote it: every entry is checked, and left out where it is not what it should be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors

from cdl_deploy.documents import parse_json
from cdl_deploy.regular_file import read_regular
from cdl_deploy.training.backbones.weights_files.stored import IN_A_FOLDER

MAX_CONFIG = 1 << 20
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers, in a preprocessor_config.json."""
MEAN_STD = {"mean": ("image_mean", "mean"), "std": ("image_std", "std")}


@dataclass(frozen=True)
class Description:
    """What a file, or its neighbours, say; None and nothing where they are silent."""

    pixels: dict[str, Any] = field(default_factory=dict)
    """`mean`, `std`, `input_size`, `interpolation`: entries of a timm `pretrained_cfg`."""
    architecture: str | None = None
    """timm's name of the model."""
    heads: int | None = None
    activation: str | None = None
    epsilon: float | None = None
    """Of the norms."""
    image_size: int | None = None
    sources: tuple[str, ...] = ()
    """Names of the files that said anything."""


def describe(file: Path) -> Description:
    """Of a file of weights. A config.json counts where it is part of a snapshot, as the name of the weights tells."""
    said = [("metadata", values) for values in _metadata(file)]
    if file.name in IN_A_FOLDER:
        for name in ("preprocessor_config.json", "open_clip_config.json", "config.json"):
            values = _json(file.parent / name)
            said += [(name, part) for part in _parts(values)] if values else []
    pixels: dict[str, Any] = {}
    others: dict[str, Any] = {}
    sources: list[str] = []
    for name, values in said:
        found, more = _pixels(values), _model(values)
        if found or more:
            sources += [name] if name not in sources else []
        pixels, others = {**found, **pixels}, {**more, **others}
    return Description(pixels, sources=tuple(sources), **others)


def _parts(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A configuration, and those within it of an image tower."""
    inner = [values.get("pretrained_cfg"), values.get("vision_config"), values.get("preprocess_cfg")]
    model = values.get("model_cfg")
    inner.append(model.get("vision_cfg") if isinstance(model, Mapping) else None)
    return [*(part for part in inner if isinstance(part, Mapping)), values]


def _pixels(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that say how pixels are to be, with the right types; others are left out."""
    found: dict[str, Any] = {}
    for name, spelled in ({"input_size": ("input_size",)} | MEAN_STD).items():
        for spelling in spelled:
            value = values.get(spelling)
            with suppress(ValueError):
                value = parse_json(value) if isinstance(value, str) else value
            if isinstance(value, list) and len(value) == 3 and all(type(item) in (int, float) for item in value):
                found[name] = tuple(value)
                break
    if any(value <= 0 for value in found.get("std", ())):
        del found["std"]
    resample = _whole(values.get("resample"), 0, 5)
    interpolation = values.get("interpolation") or (None if resample is None else RESAMPLING.get(resample))
    if found and interpolation in RESAMPLING.values():
        found["interpolation"] = interpolation
    return found


def _model(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(values.get("architecture"), str):
        found["architecture"] = values["architecture"][:100]
    heads = _whole(values.get("num_attention_heads"), 1, 1_000)
    found |= {"heads": heads} if heads is not None else {}
    activation = values.get("hidden_act")
    found |= {"activation": activation[:40]} if isinstance(activation, str) else {}
    epsilon = values.get("layer_norm_eps")
    found |= {"epsilon": float(epsilon)} if type(epsilon) is float and 0 <= epsilon < 1 else {}
    size = _whole(values.get("image_size"), 1, 100_000)
    return found | ({"image_size": size} if size is not None else {})


def _whole(value: Any, low: int, high: int) -> int | None:
    return value if type(value) is int and low <= value <= high else None


def _metadata(file: Path) -> list[Mapping[str, Any]]:
    metadata: dict[str, str] = {}
    if file.suffix == ".safetensors":
        with suppress(Exception), safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    found: list[Mapping[str, Any]] = []
    for text in (metadata.get("pretrained_cfg"), json.dumps(metadata)):
        with suppress(ValueError, TypeError):
            values = parse_json(text) if text and len(text) <= MAX_CONFIG else None
            found += [values] if isinstance(values, dict) else []
    return found


def _json(file: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError):
        values = parse_json(read_regular(file, MAX_CONFIG))
        return values if isinstance(values, dict) else {}
    return {}
