"""An ONNX graph of a ViT and timm's network beside one another, on the same random image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.weights_files.onnx_graph import Array


def run_graph(file: Path, model: Any, wanted: Sequence[str], side: int) -> list[Array]:
    """The tensors of these names, float32, from one random image of `side` pixels.

    `model` is an onnx.ModelProto. Raises WeightsError where it does not take images, or cannot be run.
    """
    import onnx
    import onnxruntime

    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    del cut.graph.output[:], cut.graph.value_info[:]
    for name in dict.fromkeys(name for name in wanted if name not in {item.name for item in cut.graph.input}):
        cut.graph.output.append(onnx.ValueInfoProto(name=name))
    images = _images(file, cut, side)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what the rest of the graph would need is not computed
    try:
        session = onnxruntime.InferenceSession(cut.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, images), strict=True)) | images
    except Exception as error:  # noqa: BLE001  ONNX Runtime's errors have no common base that it exports
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"weights file {file}: its graph cannot be run to check what was read: {reason}") from None
    return [np.asarray(found[name], dtype=np.float32) for name in wanted]


def _images(file: Path, model: Any, side: int) -> dict[str, Array]:
    """A random image in the graph's own way: channels first or last, floats or bytes, of any size it takes."""
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in given]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise WeightsError(f"weights file {file}: its graph takes {len(inputs)} inputs, expected one batch of images")
    entry = inputs[0].type.tensor_type
    dims = [dim.dim_value for dim in entry.shape.dim]
    last = dims[3] == 3 and dims[1] != 3
    for axis, name in enumerate(("batch", "a", "b", "c")):
        entry.shape.dim[axis].dim_param = name  # graphs say sizes that they do not depend on
    shape = (max(1, dims[0]), side, side, 3) if last else (max(1, dims[0]), 3, side, side)
    random = np.random.default_rng(0)
    if entry.elem_type == 2:
        return {inputs[0].name: random.integers(0, 256, shape, dtype=np.uint8)}
    kind = np.float16 if entry.elem_type == 10 else np.float32
    return {inputs[0].name: random.normal(size=shape).astype(kind)}


@torch.inference_mode()
def agreement(network: nn.Module, seen: Array, theirs: Array) -> tuple[float, float, float]:
    """Smallest cosine of a token, largest difference, largest value; a graph may have kept the class token alone."""
    vit: Any = network
    ours, other = vit.forward_features(torch.from_numpy(seen)), torch.from_numpy(theirs)
    if other.ndim == 2:
        other = other[:, None]
    if other.ndim != 3 or other.shape[1] not in (1, ours.shape[1]) or other.shape[::2] != ours.shape[::2]:
        return -1.0, math.inf, 0.0
    ours = ours[:, : other.shape[1]]
    cosines = nn.functional.cosine_similarity(ours.double(), other.double(), dim=-1)
    return float(cosines.min()), float((ours - other).abs().max()), float(other.abs().max())
