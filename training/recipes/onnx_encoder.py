"""The DINOv2 encoder inside an ONNX graph that PyTorch exported from transformers, as a plain timm ViT.

Tensors are found by what the graph does with them, for only some kept their names: weights of linear layers are the
constants of MatMul nodes, which are named after their layers, and lie transposed; the two parts of the position
embedding are the nameless constants of the embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cdl_deploy.errors import MissingExtraError, WeightsError

LAYER = "backbone.encoder.layer."
JOINED = ("query", "key", "value")


def read_graph(content: bytes) -> Any:
    """The ONNX model. Raises WeightsError for what is none, MissingExtraError where the onnx package is missing."""
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise MissingExtraError("the recipe public_backbone", "all", "onnx") from None
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        raise WeightsError("the encoder's file is no ONNX model") from None
    if not model.graph.node:
        raise WeightsError("the encoder's file is an ONNX model without nodes")
    return model


def timm_state(model: Any) -> dict[str, Tensor]:
    """The encoder's tensors by the names of timm's ViTs, the positions as they are. Raises WeightsError naming what
    the graph lacks.
    """
    constants = _constants(model.graph)
    depth = len({name.split(".")[3] for name in constants if name.startswith(LAYER)})
    if not depth:
        raise WeightsError(f"the graph has no tensors named {LAYER}…: it is not the encoder this recipe knows")
    embeddings = "backbone.embeddings."
    state = {
        "cls_token": _named(constants, f"{embeddings}cls_token"),
        "pos_embed": _positions(model.graph, constants),
        "patch_embed.proj.weight": _named(constants, f"{embeddings}patch_embeddings.projection.weight"),
        "patch_embed.proj.bias": _named(constants, f"{embeddings}patch_embeddings.projection.bias"),
        "norm.weight": _named(constants, "backbone.layernorm.weight"),
        "norm.bias": _named(constants, "backbone.layernorm.bias"),
    }
    for layer in range(depth):
        state |= _block(layer, constants)
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in state.items()}


def at_image_size(state: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """The same for images of `side` pixels: positions resampled as timm does it, bicubic and antialiased."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    if side < patch or side % patch:
        raise WeightsError(f"the image size is {side}, expected a multiple of {patch}, the size of a patch")
    grid = side // patch
    return {**state, "pos_embed": resample_abs_pos_embed(state["pos_embed"], [grid, grid]).contiguous()}


def first_blocks(state: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Embeddings, the first `count` blocks, and the norm that follows the last."""

    def kept(name: str) -> bool:
        return not name.startswith("blocks.") or int(name.split(".")[1]) < count

    return {name: value for name, value in state.items() if kept(name)}


def fill(model: str, state: dict[str, Tensor], side: int) -> VisionTransformer:
    """timm's model of that name with these weights, in eval mode. Raises WeightsError where they do not fit."""
    vit = cast(VisionTransformer, timm.create_model(model, num_classes=0, img_size=side)).eval()
    try:
        vit.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"the encoder's weights do not fit {model} ({reason})") from None
    return vit


def encode(model: Any, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Tokens after the final norm [B, N, D] of normalised images [B, 3, side, side], by ONNX Runtime.

    The graph may name an image size; what it computes from one does not depend on it.
    """
    import onnx
    import onnxruntime

    output = _output_of(model.graph, "backbone.layernorm.bias")
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    for axis, name in enumerate(("batch", "channels", "height", "width")):
        cut.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del cut.graph.output[:], cut.graph.value_info[:]
    cut.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # it would tell that the decoder's tensors are not used
    session = onnxruntime.InferenceSession(cut.SerializeToString(), options, providers=["CPUExecutionProvider"])
    tokens: npt.NDArray[np.float32] = session.run([output], {cut.graph.input[0].name: images})[0]
    return tokens


def agreement(model: Any, vit: VisionTransformer, images: npt.NDArray[np.float32]) -> dict[str, float]:
    """How near timm's tokens are to the graph's: smallest cosines, and the largest difference of any value."""
    theirs = torch.from_numpy(encode(model, images))
    with torch.no_grad():
        ours = vit.forward_features(torch.from_numpy(images))
    cosines = torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=-1)
    return {
        "class_token_cosine": float(cosines[:, 0].min()),
        "patch_cosine": float(cosines[:, 1:].min()),
        "largest_difference": float((ours - theirs).abs().max()),
        "largest_value": float(theirs.abs().max()),
    }


def _constants(graph: Any) -> dict[str, npt.NDArray[np.float32]]:
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer} | {
        f"MatMul of {_layer_name(node.name)}": numpy_helper.to_array(tensor).T
        for node, tensor in _products(graph)
        if node.name.startswith("/backbone/")
    }


def _products(graph: Any) -> Iterator[tuple[Any, Any]]:
    """MatMul nodes with a constant, and that constant."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            yield node, tensors[node.input[1]]


def _layer_name(node: str) -> str:
    """`/backbone/encoder/layer.0/mlp/fc1/MatMul` → `backbone.encoder.layer.0.mlp.fc1`."""
    return node.strip("/").removesuffix("/MatMul").replace("/", ".")


def _named(constants: dict[str, npt.NDArray[np.float32]], name: str) -> npt.NDArray[np.float32]:
    if name not in constants:
        raise WeightsError(f"the graph has no tensor '{name}': it is not the encoder this recipe knows")
    return constants[name]


def _positions(graph: Any, constants: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """[1, 1 + patches, D]: the class token's, then the patches'."""
    used = [
        constants[name]
        for node in graph.node
        if node.name.startswith("/backbone/embeddings/")
        for name in node.input
        if name in constants and not name.startswith("backbone.")
    ]
    parts = [value for value in used if value.ndim == 3]
    first = [value for value in parts if value.shape[1] == 1]
    rest = [value for value in parts if value.shape[1] > 1]
    if len(first) != 1 or len(rest) != 1:
        shapes = [value.shape for value in parts]
        raise WeightsError(
            f"the graph's position embedding is not in two parts [1, 1, D] and [1, patches, D]: {shapes}"
        )
    return np.concatenate([first[0], rest[0]], axis=1)


def _block(layer: int, constants: dict[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
    """One block's tensors by timm's names."""
    theirs, ours = f"{LAYER}{layer}.", f"blocks.{layer}."
    block: dict[str, npt.NDArray[np.float32]] = {}
    for norm in ("norm1", "norm2"):
        for part in ("weight", "bias"):
            block[f"{ours}{norm}.{part}"] = _named(constants, f"{theirs}{norm}.{part}")
    for old, new in (("attention.output.dense", "attn.proj"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
        block[f"{ours}{new}.weight"] = _named(constants, f"MatMul of {theirs}{old}")
        block[f"{ours}{new}.bias"] = _named(constants, f"{theirs}{old}.bias")
    joined = [f"{theirs}attention.attention.{name}" for name in JOINED]
    block[f"{ours}attn.qkv.weight"] = np.concatenate([_named(constants, f"MatMul of {name}") for name in joined])
    block[f"{ours}attn.qkv.bias"] = np.concatenate([_named(constants, f"{name}.bias") for name in joined])
    for number in (1, 2):
        block[f"{ours}ls{number}.gamma"] = _named(constants, f"{theirs}layer_scale{number}.lambda1")
    return block


def _output_of(graph: Any, constant: str) -> str:
    """What the node that reads this constant gives."""
    for node in graph.node:
        if constant in node.input:
            return str(node.output[0])
    raise WeightsError(f"no node of the graph reads '{constant}': it is not the encoder this recipe knows")
