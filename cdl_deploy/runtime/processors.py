"""How publishers say what their models do to an image: followed whole, or refused.

    preprocessor_config.json                transformers' image processors
    config.json with `pretrained_cfg`       timm

Normalising is x·factor + offset, less the mean, by the deviation; ours is x/255 less a mean, by a deviation. One is
written as the other, so that a factor of 1, of 1/127.5 or none at all is right to the last digit of a float.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdl_deploy.data.preprocessing import INTERPOLATIONS, Preprocessing
from cdl_deploy.errors import BundleError
from cdl_deploy.typed_json import short

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_SIZE = 224
PIL_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By PIL's number, which is what `preprocessor_config.json` holds."""
KNOWN_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
"""Steps that are followed; any other `do_…` that is true is refused: channels in another order, padding, ...."""
SHORTEST_EDGE = ("clip", "convnext", "bit", "levit", "mobilenetv1", "mobilenetv2")
"""Processors that take one number for the shorter edge; others squash to a square."""
PROCESSORS = (*SHORTEST_EDGE, "vit", "deit", "beit", "efficientnet", "siglip", "pvt", "segformer")
"""transformers' processors whose answers were compared with ours (5.24); others may have rules of their own."""
CONVNEXT_WHOLE = 384
"""Sides from which on ConvNeXT's processor squashes, and below which it crops."""

Sides = tuple[int | None, int | None]


@dataclass(frozen=True)
class Recipe:
    """What is done to an image of any size."""

    preprocessing: Preprocessing
    squash: tuple[int, int] | None = None
    """(height, width) that it is resized to first, whatever its shape, in pixels; then only the crop is left to do."""


def of_transformers(file: Path, config: dict[str, Any], sides: Sides) -> Recipe:
    """Of an image processor's settings; `sides`: height and width where the graph fixes them."""
    try:
        return _of_transformers(config, sides)
    except (BundleError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise BundleError(f"{file}: {short(str(error))}; expected an image processor's settings") from error


def of_timm(file: Path, config: dict[str, Any], sides: Sides) -> Recipe:
    """Of a model's `pretrained_cfg`."""
    try:
        channels, height, width = config.get("input_size", (3, DEFAULT_SIZE, DEFAULT_SIZE))
        if channels != 3:
            raise ValueError(f"input_size has {channels} channels, expected 3")
        height, width = sides[0] or int(height), sides[1] or int(width)
        share, mode = float(config.get("crop_pct") or 0.875), config.get("crop_mode") or "center"
        name = config.get("interpolation", "bicubic")
        if name not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {name!r}, expected one of {', '.join(INTERPOLATIONS)}")
        mean, std = _three(config.get("mean", IMAGENET_MEAN)), _three(config.get("std", IMAGENET_STD))
        if mode not in ("center", "squash"):
            raise ValueError(f"crop_mode {mode!r} is not supported, only center and squash")
        tall, wide = math.floor(height / share), math.floor(width / share)
        if mode == "center" and height != width:
            raise ValueError(f"crop_mode center with {height}×{width} pixels is not supported, only with a square")
        squash = (tall, wide) if mode == "squash" else None
        return Recipe(Preprocessing(height, width, min(tall, wide), name, mean, std), squash)
    except (BundleError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BundleError(f"{file}: {short(str(error))}; expected timm's pretrained_cfg") from error


def _of_transformers(config: dict[str, Any], sides: Sides) -> Recipe:
    said = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    kind = re.sub(r"(imageprocessor(fast|pil)?|featureextractor)$", "", said.lower())
    if kind and kind not in PROCESSORS:
        raise ValueError(f"{said} is not supported")
    unknown = [key for key, value in config.items() if key.startswith("do_") and value and key not in KNOWN_STEPS]
    if unknown:
        raise ValueError(f"{unknown[0]} is not supported")
    if not config.get("do_resize", True):
        raise ValueError("do_resize is false, so images of any size would go in")
    mean, std = _normalising(config, kind)
    number = config.get("resample", 3 if kind == "clip" else 2)
    if type(number) is not int or not 0 <= number < len(PIL_FILTERS):
        raise ValueError(f"resample is {short(number)}, expected one of PIL's numbers, 0 to {len(PIL_FILTERS) - 1}")
    resample = PIL_FILTERS[number]
    size = config.get("size")
    crop = _pair(config.get("crop_size")) if config.get("do_center_crop") else None
    if config.get("do_center_crop") and crop is None:
        raise ValueError(f"do_center_crop needs a crop_size, which is {short(config.get('crop_size'))}")
    edge = _shorter_edge(size, kind, crop is not None)
    if edge is not None and "crop_pct" in config and crop is None and kind == "convnext":
        share = config["crop_pct"] or 0.875
        crop = (edge, edge)
        edge, squashed = (int(edge / share), None) if edge < CONVNEXT_WHOLE else (None, (edge, edge))
    else:
        if config.get("crop_pct"):
            raise ValueError("crop_pct is not supported for this processor")
        squashed = None
    if edge is None and squashed is None:
        squashed = _pair(size) if size is not None else (sides[0] or DEFAULT_SIZE, sides[1] or DEFAULT_SIZE)
        if squashed is None:
            raise ValueError(f"size is {short(size)}, expected height and width, or shortest_edge")
    if edge is not None and kind == "levit":  # findings/processor_configs.sh
        edge = int(256 / 224 * edge)
    if squashed is None and crop is None:
        assert edge is not None
        if sides != (edge, edge):
            raise ValueError("size is shortest_edge without a centre crop, so images would differ in size")
        crop = (edge, edge)
    height, width = crop or squashed or (DEFAULT_SIZE, DEFAULT_SIZE)
    for made, fixed in zip((height, width), sides, strict=True):
        if fixed is not None and made != fixed:
            raise ValueError(f"it makes {height}×{width} pixels, and the model takes {sides[0]}×{sides[1]}")
    within = squashed or (edge or 0, edge or 0)
    if within[0] < height or within[1] < width:
        raise ValueError(f"it crops {height}×{width} out of {within[0]}×{within[1]} pixels, which would pad")
    return Recipe(Preprocessing(height, width, min(within), resample, mean, std), squashed)


def _normalising(config: dict[str, Any], kind: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation for x/255 of a processor that takes x·factor + offset."""
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    offset = -1.0 if config.get("rescale_offset") else 0.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.get("do_normalize", True):
        mean, std = _three(config.get("image_mean", IMAGENET_MEAN)), _three(config.get("image_std", IMAGENET_STD))
    if factor <= 0 or not all(value > 0 for value in std):
        raise ValueError(f"rescale_factor is {factor:g} and image_std {list(std)}, expected numbers above 0")
    scale = 1.0 if abs(factor * 255 - 1) < 1e-6 else 255 * factor  # 1/255 is written with as many digits as one likes
    means, stds = [(value - offset) / scale for value in mean], [value / scale for value in std]
    if config.get("include_top", kind == "efficientnet" and config.get("do_normalize", True)):
        if not config.get("do_normalize", True):
            raise ValueError("include_top without do_normalize is not supported")
        # EfficientNet's, where nothing says no: divided by the deviation once more (findings/processor_configs.sh)
        stds = [value * again for value, again in zip(stds, std, strict=True)]
    return _three(means), _three(stds)


def _shorter_edge(size: Any, kind: str, crops: bool) -> int | None:
    """The shorter edge that images are resized to; None where they are squashed."""
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        if edge is not None and len(size) > 1:
            raise ValueError(f"size is {short(size)}, expected shortest_edge alone")
        return edge if type(edge) is int and edge > 0 else None
    if type(size) is int and size > 0 and (kind in SHORTEST_EDGE or (not kind and crops)):
        return size
    return None


def _three(values: Any) -> tuple[float, float, float]:
    found = [values] * 3 if isinstance(values, int | float) else values
    try:
        red, green, blue = (float(value) for value in found)
    except (TypeError, ValueError):
        raise ValueError(f"mean or deviation is {short(values)}, expected three numbers") from None
    return red, green, blue


def _pair(value: Any) -> tuple[int, int] | None:
    """(height, width) from a number, or {"height": …, "width": …}."""
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")]
    elif type(value) is int:
        value = [value, value]
    if isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value):
        return value[0], value[1]
    return None
