"""A ViT as PyTorch exports transformers' DINOv2 from inside another model: its names, and what lost its name."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from timm.models.vision_transformer import VisionTransformer


def encoder_graph(vit: VisionTransformer, side: int = 1) -> bytes:
    """Its encoder under transformers' names, followed by a decoder. The graph asks for images of `side`, wrongly."""
    state = {name: value.detach().numpy() for name, value in vit.state_dict().items()}
    width, heads, depth = vit.embed_dim, vit.blocks[0].attn.num_heads, len(vit.blocks)
    constants, nodes = {}, []

    def put(name, value):
        constants[name] = np.ascontiguousarray(value)
        return name

    def number(value):
        return put(f"number_{len(constants)}", value)

    def node(kind, name, *inputs, **attributes):
        nodes.append(helper.make_node(kind, inputs, [f"{name}_output_0"], name, **attributes))
        return f"{name}_output_0"

    def linear(place, x, weight, bias):
        nameless = put(f"onnx::MatMul_{len(constants)}", weight.T)
        product = node("MatMul", f"/{place}/MatMul", x, nameless)
        bias_name = put(f"{place.replace('/', '.')}.bias", bias)
        return node("Add", f"/{place}/Add", bias_name, product)

    def norm(place, x, name):
        weight, bias = (
            put(f"{place.replace('/', '.')}.{part}", state[f"{name}.{part}"]) for part in ("weight", "bias")
        )
        return node("LayerNormalization", f"/{place}/LayerNormalization", x, weight, bias, epsilon=1e-6)

    def ints(*values):
        return number(np.array(values, dtype=np.int64))

    embeddings = "/backbone/embeddings"
    projection = "backbone.embeddings.patch_embeddings.projection"
    kernel, bias = (put(f"{projection}.{part}", state[f"patch_embed.proj.{part}"]) for part in ("weight", "bias"))
    patch = vit.patch_embed.patch_size[0]
    x = node("Conv", f"{embeddings}/Conv", "input_image", kernel, bias, strides=[patch, patch])
    x = node("Transpose", f"{embeddings}/Transpose", node("Reshape", f"{embeddings}/Reshape", x, ints(0, width, -1)),
             perm=[0, 2, 1])  # fmt: skip
    x = node("Concat", f"{embeddings}/Concat", put("backbone.embeddings.cls_token", state["cls_token"]), x, axis=1)
    class_place = put("onnx::Concat_1", state["pos_embed"][:, :1])
    patch_places = put("onnx::Reshape_2", state["pos_embed"][:, 1:])
    same = node("Reshape", f"{embeddings}/Reshape_1", patch_places, ints(1, -1, width))
    x = node("Add", f"{embeddings}/Add", x, node("Concat", f"{embeddings}/Concat_1", class_place, same, axis=1))

    for index in range(depth):
        theirs, ours = f"backbone/encoder/layer.{index}", f"blocks.{index}"
        normed, parts = norm(f"{theirs}/norm1", x, f"{ours}.norm1"), {}
        thirds = (np.split(state[f"{ours}.attn.qkv.{part}"], 3) for part in ("weight", "bias"))
        for name, weight, bias_value in zip(("query", "key", "value"), *thirds, strict=True):
            place = f"{theirs}/attention/attention/{name}"
            split = node("Reshape", f"/{place}/Reshape", linear(place, normed, weight, bias_value),
                         ints(0, 0, heads, width // heads))  # fmt: skip
            order = [0, 2, 3, 1] if name == "key" else [0, 2, 1, 3]
            parts[name] = node("Transpose", f"/{place}/Transpose", split, perm=order)
        attention = f"/{theirs}/attention/attention"
        scale = number(np.array((width / heads) ** -0.5, dtype=np.float32))
        scores = node("MatMul", f"{attention}/MatMul", parts["query"], parts["key"])
        scores = node("Softmax", f"{attention}/Softmax", node("Mul", f"{attention}/Mul", scores, scale), axis=-1)
        mixed = node("MatMul", f"{attention}/MatMul_1", scores, parts["value"])
        mixed = node("Transpose", f"{attention}/Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = node("Reshape", f"{attention}/Reshape", mixed, ints(0, 0, width))
        proj = (state[f"{ours}.attn.proj.{part}"] for part in ("weight", "bias"))
        mixed = linear(f"{theirs}/attention/output/dense", mixed, *proj)
        gamma = put(f"{theirs.replace('/', '.')}.layer_scale1.lambda1", state[f"{ours}.ls1.gamma"])
        x = node("Add", f"/{theirs}/Add", node("Mul", f"/{theirs}/layer_scale1/Mul", mixed, gamma), x)
        y = norm(f"{theirs}/norm2", x, f"{ours}.norm2")
        y = linear(f"{theirs}/mlp/fc1", y, *(state[f"{ours}.mlp.fc1.{part}"] for part in ("weight", "bias")))
        root = number(np.array(2**-0.5, dtype=np.float32))
        erf = node("Erf", f"/{theirs}/mlp/Erf", node("Mul", f"/{theirs}/mlp/Mul", y, root))
        half = node("Mul", f"/{theirs}/mlp/Mul_1", y, number(np.array(0.5, dtype=np.float32)))
        y = node("Add", f"/{theirs}/mlp/Add", node("Mul", f"/{theirs}/mlp/Mul_2", half, erf), half)
        y = linear(f"{theirs}/mlp/fc2", y, *(state[f"{ours}.mlp.fc2.{part}"] for part in ("weight", "bias")))
        gamma = put(f"{theirs.replace('/', '.')}.layer_scale2.lambda1", state[f"{ours}.ls2.gamma"])
        x = node("Add", f"/{theirs}/Add_1", node("Mul", f"/{theirs}/layer_scale2/Mul", y, gamma), x)

    x = norm("backbone/layernorm", x, "norm")
    decoder = put("onnx::MatMul_decoder", np.ones((width, 1), dtype=np.float32))
    node("MatMul", "/decoder/final_conv/MatMul", x, decoder)
    graph = helper.make_graph(
        nodes,
        "saliency",
        [helper.make_tensor_value_info("input_image", TensorProto.FLOAT, ["batch_size", 3, side, side])],
        [
            helper.make_tensor_value_info(
                "/decoder/final_conv/MatMul_output_0", TensorProto.FLOAT, ["batch_size", "n", 1]
            )
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()
