"""Classifiers that cdl did not export: their labels and preprocessing, from wherever their makers usually leave them.

Labels: in the model's metadata (`names` of Ultralytics, `labels`, `classes`, `class_names`, `id2label`), else in a file
beside it (`MODEL.labels.txt`, `labels.txt`, `classes.txt`, one a line, or the `config.json` of transformers or timm).
Preprocessing: `preprocessor_config.json` or timm's `config.json` beside the model, else the metadata of Ultralytics,
else what most are trained with: ImageNet's mean and deviation, which `Interface.assumed` says. Pixels of a uint8 input
are given as they are. A model in a folder `onnx` has these files one level up as well.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.documents import parse_json
from cdl_deploy.errors import BundleError
from cdl_deploy.regular_file import read_regular
from cdl_deploy.runtime.interface import Interface
from cdl_deploy.runtime.processors import (
    DEFAULT_SIZE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Recipe,
    Sides,
    of_timm,
    of_transformers,
)
from cdl_deploy.typed_json import short

if TYPE_CHECKING:
    import onnxruntime

LABEL_KEYS = ("names", "labels", "classes", "class_names", "id2label")
LABEL_FILES = ("{stem}.labels.txt", "labels.txt", "classes.txt")
CROP_SHARE = 0.875
"""Of the resized image's shorter edge, where nothing else is said: 224 of 256."""
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
MAX_TEXT = 16 * 2**20
"""A larger file beside the model is no list of labels."""
MAX_LITERAL = 4 * 2**20
"""Characters of labels in Python's spelling, whose reader needs a hundred times as much; JSON may have more."""
MAX_BATCH_BYTES = 1 << 30
"""Of a batch whose size the graph fixes, as float32."""


def foreign_interface(session: onnxruntime.InferenceSession, path: Path) -> Interface:
    """The `Interface` of a model without `cdl.*` metadata; raises `BundleError` naming what it lacks."""
    metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    name, dtype, channels_last, batch, sides = _input(session, path)
    output, columns = _output(session, path)
    labels = _labels(path, metadata)
    if labels is None:
        count = "as many as it has classes" if columns is None else f"{columns} of them"
        raise BundleError(
            f"{path} is an ONNX model that cdl did not export, and nothing says what its classes are called: put their "
            f"names, {count}, one a line into {path.parent / 'labels.txt'}, or make a model with: cdl export RUN --onnx"
        )
    if columns is not None and len(labels) != columns:
        raise BundleError(
            f"{path}: {len(labels)} labels were found for the {columns} columns of output {output!r}; correct them in "
            f"its metadata, or in {path.parent / 'labels.txt'}"
        )
    try:
        recipe, assumed = _recipe(path, metadata, dtype, sides)
    except BundleError as error:
        raise (
            error if any(str(folder) in str(error) for folder in _folders(path)) else BundleError(f"{path}: {error}")
        ) from error
    if batch is not None:
        _check_batch(path, batch, recipe.preprocessing)
    return Interface(
        classes=labels,
        task_numbers=(1,) * len(labels),
        preprocessing=recipe.preprocessing,
        squash=recipe.squash,
        input=name,
        output=output,
        dtype=dtype,
        channels_last=channels_last,
        batch=batch,
        assumed=assumed,
    )


def _input(
    session: onnxruntime.InferenceSession, path: Path
) -> tuple[str, str, bool, int | None, tuple[int | None, int | None]]:
    """Name, dtype, whether channels come last, the batch where it is fixed, and (height, width) where they are."""
    nodes = session.get_inputs()
    if len(nodes) == 1 and nodes[0].type in DTYPES and len(nodes[0].shape) == 4:
        batch, *rest = (size if isinstance(size, int) and size > 0 else None for size in nodes[0].shape)
        if rest[0] == 3 or (rest[2] != 3 and rest[0] is None):
            return nodes[0].name, DTYPES[nodes[0].type], False, batch, (rest[1], rest[2])
        if rest[2] == 3:
            return nodes[0].name, DTYPES[nodes[0].type], True, batch, (rest[0], rest[1])
    found = ", ".join(f"{node.name}: {node.type} {node.shape}" for node in nodes)
    raise BundleError(
        f"{path} is an ONNX model that cdl did not export, and it takes no images: its input is {short(found)}, "
        "expected one of float, float16 or uint8, [B, 3, height, width] or [B, height, width, 3]"
    )


def _check_batch(path: Path, batch: int, preprocessing: Preprocessing) -> None:
    """Every run fills the whole batch, however few images there are."""
    size = batch * preprocessing.height * preprocessing.width * 3 * 4
    if size > MAX_BATCH_BYTES:
        raise BundleError(
            f"{path}: it takes {batch:,} images at a time, which are {size / 1e9:.1f} GB, expected at most "
            f"{MAX_BATCH_BYTES / 1e9:.1f} GB: export it with a free batch, or a smaller one"
        )


def _output(session: onnxruntime.InferenceSession, path: Path) -> tuple[str, int | None]:
    """Name of the output with a column a class, and their number where the graph says it. Of several, the first."""
    for node in session.get_outputs():
        if node.type in ("tensor(float)", "tensor(float16)") and len(node.shape) == 2:
            columns = node.shape[1]
            return node.name, columns if isinstance(columns, int) and columns > 0 else None
    found = ", ".join(f"{node.name}: {node.type} {node.shape}" for node in session.get_outputs())
    raise BundleError(
        f"{path} is an ONNX model that cdl did not export, and no classifier: its outputs are {short(found)}, "
        "expected one of float [B, classes]"
    )


def _labels(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    for key in LABEL_KEYS:
        if key in metadata:
            labels = parse_labels(metadata[key])
            if labels is None:
                raise BundleError(
                    f"{path}: its metadata {key!r} are {short(metadata[key])}, expected a list of class names"
                )
            return labels
    for folder in _folders(path):
        for pattern in LABEL_FILES:
            text = _text_of(folder / pattern.format(stem=path.stem))
            if text is not None:
                return tuple(line.strip() for line in text.splitlines() if line.strip())
        config = _object_of(folder / "config.json")
        own = config.get("pretrained_cfg")
        listed = (config.get("id2label"), config.get("label_names"), isinstance(own, dict) and own.get("label_names"))
        for names in map(_in_order, listed):  # transformers', then timm's
            if names is not None:
                return names
    return None


def parse_labels(text: str) -> tuple[str, ...] | None:
    """Class names from a list or an {index: name} object, in JSON or Python's spelling, or from lines, or commas."""
    stripped = text.strip()
    if stripped[:1] in ("[", "{"):
        for parse in (parse_json, ast.literal_eval) if len(stripped) <= MAX_LITERAL else (parse_json,):
            try:
                return _in_order(parse(stripped))
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
        return None
    names = [name.strip() for name in (stripped.splitlines() if "\n" in stripped else stripped.split(","))]
    return tuple(names) if all(names) else None


def _in_order(value: Any) -> tuple[str, ...] | None:
    """Names from a list of strings, or an object whose keys are 0, 1, …, in any order."""
    if isinstance(value, dict):
        try:
            numbered = {int(key): name for key, name in value.items()}
        except (TypeError, ValueError):
            return None
        if sorted(numbered) != list(range(len(value))):
            return None
        value = [numbered[i] for i in range(len(numbered))]
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) and name.strip() for name in value):
        return tuple(value)
    return None


def _folders(path: Path) -> list[Path]:
    """Where what belongs to a model lies: beside it, or one level up where exporters put models into `onnx/`."""
    return [path.parent, path.parent.parent] if path.absolute().parent.name == "onnx" else [path.parent]


def _recipe(path: Path, metadata: Mapping[str, str], dtype: str, sides: Sides) -> tuple[Recipe, str | None]:
    """How pixels become the input, and what of it was assumed."""
    for folder in _folders(path):
        config = _object_of(folder / "preprocessor_config.json")
        if config:
            return of_transformers(folder / "preprocessor_config.json", config, sides), None
        config = _object_of(folder / "config.json")
        if isinstance(config.get("pretrained_cfg"), dict):
            return of_timm(folder / "config.json", config["pretrained_cfg"], sides), None
    height, width = (side or DEFAULT_SIZE for side in sides)
    if dtype == "uint8":
        return _convention(height, width, round(min(height, width) / CROP_SHARE), (0.0,) * 3, (1.0,) * 3), None
    if "imgsz" in metadata and "stride" in metadata:  # Ultralytics resizes to the crop, and leaves pixels 0 to 1
        return _convention(height, width, min(height, width), (0.0,) * 3, (1.0,) * 3), None
    assumed = f"{path} does not say how it wants its pixels: ImageNet's mean and deviation, {height}×{width}, assumed"
    resize = round(min(height, width) / CROP_SHARE)
    return _convention(height, width, resize, IMAGENET_MEAN, IMAGENET_STD), assumed


def _convention(height: int, width: int, resize: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Recipe:
    own = (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
    return Recipe(Preprocessing(height, width, resize, "bilinear", *own))


def _text_of(file: Path) -> str | None:
    """The file's text; None where there is none."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_TEXT:
            return None
        return read_regular(file, MAX_TEXT).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{file}: cannot be read as UTF-8 text ({short(str(error))})") from error


def _object_of(file: Path) -> dict[str, Any]:
    text = _text_of(file)
    if text is None:
        return {}
    try:
        value = parse_json(text)
    except ValueError as error:
        raise BundleError(f"{file}: not JSON ({short(str(error))})") from error
    return value if isinstance(value, dict) else {}
