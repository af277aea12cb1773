"""Classifiers that cdl did not export: their labels and preprocessing, from wherever their makers usually leave them.

Labels: in the model's metadata (`names` of Ultralytics, `labels`, `classes`, `class_names`, `id2label`), else in a file
beside it (`MODEL.labels.txt`, `labels.txt`, `classes.txt`, one a line, or the `config.json` of Hugging Face).
Preprocessing: `preprocessor_config.json` beside the model (Hugging Face), else the metadata of Ultralytics, else what
most are trained with: ImageNet's mean and deviation, which `Interface.assumed` says. Pixels of a uint8 input are given
as they are.
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
from cdl_deploy.typed_json import short

if TYPE_CHECKING:
    import onnxruntime

LABEL_KEYS = ("names", "labels", "classes", "class_names", "id2label")
LABEL_FILES = ("{stem}.labels.txt", "labels.txt", "classes.txt")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_SIZE = 224
CROP_SHARE = 0.875
"""Of the resized image's shorter edge, where nothing else is said: 224 of 256."""
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
PIL_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By PIL's number, which is what `preprocessor_config.json` holds."""
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
        preprocessing, assumed = _preprocessing(path, metadata, dtype, sides)
    except BundleError as error:
        raise error if str(path.parent) in str(error) else BundleError(f"{path}: {error}") from error
    if batch is not None:
        _check_batch(path, batch, preprocessing)
    return Interface(
        classes=labels,
        task_numbers=(1,) * len(labels),
        preprocessing=preprocessing,
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
    for pattern in LABEL_FILES:
        text = _text_of(path.parent / pattern.format(stem=path.stem))
        if text is not None:
            return tuple(line.strip() for line in text.splitlines() if line.strip())
    return _in_order(_object_of(path.parent / "config.json").get("id2label"))


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


def _preprocessing(
    path: Path, metadata: Mapping[str, str], dtype: str, sides: tuple[int | None, int | None]
) -> tuple[Preprocessing, str | None]:
    """How pixels become the input, and what of it was assumed."""
    file = path.parent / "preprocessor_config.json"
    config = _object_of(file)
    if config:
        return _of_hugging_face(file, config, sides), None
    height, width = (side or DEFAULT_SIZE for side in sides)
    if dtype == "uint8":
        return _convention(height, width, round(min(height, width) / CROP_SHARE), (0.0,) * 3, (1.0,) * 3), None
    if "imgsz" in metadata and "stride" in metadata:  # Ultralytics resizes to the crop, and leaves pixels 0 to 1
        return _convention(height, width, min(height, width), (0.0,) * 3, (1.0,) * 3), None
    assumed = f"{path} does not say how it wants its pixels: ImageNet's mean and deviation, {height}×{width}, assumed"
    resize = round(min(height, width) / CROP_SHARE)
    return _convention(height, width, resize, IMAGENET_MEAN, IMAGENET_STD), assumed


def _convention(height: int, width: int, resize: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing:
    return Preprocessing(height, width, resize, "bilinear", (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _of_hugging_face(file: Path, config: dict[str, Any], sides: tuple[int | None, int | None]) -> Preprocessing:
    """Of transformers' image processors: sizes in pixels, `resample` PIL's number, mean and deviation of channels."""
    size = _height_and_width(config.get("size"))
    crop = _height_and_width(config.get("crop_size")) if config.get("do_center_crop") else None
    height = sides[0] or (crop or size or (DEFAULT_SIZE,) * 2)[0]
    width = sides[1] or (crop or size or (DEFAULT_SIZE,) * 2)[1]
    resize = min(size) if size else min(height, width)
    resample = config.get("resample", 2)
    scaled = config.get("do_normalize", True)
    try:
        return Preprocessing(
            height,
            width,
            resize,
            PIL_FILTERS[resample],
            _three(config.get("image_mean", IMAGENET_MEAN)) if scaled else (0.0, 0.0, 0.0),
            _three(config.get("image_std", IMAGENET_STD)) if scaled else (1.0, 1.0, 1.0),
        )
    except (BundleError, TypeError, ValueError, IndexError) as error:
        raise BundleError(f"{file}: {short(str(error))}; expected an image processor's settings") from error


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _height_and_width(value: Any) -> tuple[int, int] | None:
    """(height, width) from a number, {"height": …, "width": …} or {"shortest_edge": …}."""
    if isinstance(value, dict):
        edge = value.get("shortest_edge")
        value = [edge, edge] if edge is not None else [value.get("height"), value.get("width")]
    elif type(value) is int:
        value = [value, value]
    if isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value):
        return value[0], value[1]
    return None


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
