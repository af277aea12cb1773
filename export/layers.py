"""The layers of an exported graph that integers can compute: products of tokens with a constant matrix.

    y [B, n, N] = x [B, n, K] · W [K, N] + b

That is q, k, v, proj, fc1 and fc2 of every block, and the patch embedding, which is a product of patches once its
convolution is written out. What acts on one vector an image (prompt selection, heads) has two dimensions and is no
layer here: it stays float.

`find_layers` brings each into one form, whose matrix is an initializer of its own. A matrix that both passes of a model
multiply by stays one initializer, and both products stand under one name: the exporter leaves such a matrix behind a
Transpose node, where onnxruntime's quantiser would overlook it and keep it float.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

PRODUCTS = ("MatMul", "Gemm", "Conv")
_SEEN_THROUGH = ("Transpose", "Reshape", "Cast", "Identity", "Slice", "DequantizeLinear")
"""Operators between a constant and the product that uses it."""


@dataclass
class Layer:
    """One matrix, and every product with it."""

    name: str
    """As the training model names it, such as `blocks.0.attn.q`."""
    weight: str
    """The initializer [K, N]."""
    shape: tuple[int, int]
    """K, N."""
    nodes: list[str] = field(default_factory=list)
    """The products: one, or two where the query pass and the prompted pass share the matrix."""


class Graph:
    """Who makes and who reads each value of a model; built anew after every change."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.initializers = {value.name: value for value in model.graph.initializer}
        self.producer = {output: node for node in model.graph.node for output in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for value in node.input:
                self.consumers[value].append(node)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.shapes = {
            value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in (*inferred.value_info, *inferred.input, *inferred.output)
            if value.type.tensor_type.HasField("shape")
        }
        """Sizes of each value; 0 where one is free."""

    def constant(self, value: str) -> str | None:
        """The initializer that `value` is, or is made from by moving numbers about; None if it is not constant."""
        while value not in self.initializers:
            node = self.producer.get(value)
            if node is None or node.op_type not in _SEEN_THROUGH:
                return None
            value = node.input[0]
        return value

    def value(self, name: str) -> npt.NDArray[Any]:
        """What `constant` has found, with the numbers moved as the graph moves them."""
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        node = self.producer[name]
        inputs = {value: self.value(value) for value in node.input if value}
        (found,) = cast(list[npt.NDArray[Any]], ReferenceEvaluator(node).run(None, inputs))
        return np.ascontiguousarray(found)

    def products(self) -> Iterator[tuple[onnx.NodeProto, str]]:
        """Every product with a constant matrix or kernel, and the initializer behind that constant.

        A stack of matrices, one a head, is none: the last block has two, and one or two tokens go through them.
        """
        for node in self.model.graph.node:
            source = self.constant(node.input[1]) if node.op_type in PRODUCTS else None
            if source is not None and (node.op_type != "MatMul" or len(self.initializers[source].dims) == 2):
                yield node, source

    def of_tokens(self, node: onnx.NodeProto) -> bool:
        """Whether a product acts on several rows an image: tokens, or the pixels of a patch."""
        if node.op_type == "Gemm":  # as `bias_inside` writes it, between two reshapes
            return any(user.op_type == "Reshape" for user in self.consumers[node.output[0]])
        return len(self.shapes.get(node.output[0], [])) >= 3


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """Find the layers, and give each a matrix of its own [K, N] as an initializer. Changes `model` in place."""
    patches_as_products(model)
    graph = Graph(model)
    layers: dict[bytes, Layer] = {}
    taken: set[str] = set()
    for node, source in list(graph.products()):
        if node.op_type != "MatMul" or not graph.of_tokens(node):
            continue
        matrix = graph.value(node.input[1])
        if matrix.ndim != 2 or matrix.dtype != np.float32:
            continue
        key = hashlib.sha256(matrix.tobytes()).digest() + bytes(str(matrix.shape), "ascii")
        if key not in layers:
            name = _unique(_name(graph, node, source), taken)
            layers[key] = Layer(name, f"{name}.matrix", (matrix.shape[0], matrix.shape[1]))
            model.graph.initializer.append(numpy_helper.from_array(matrix, f"{name}.matrix"))
        node.input[1] = layers[key].weight
        layers[key].nodes.append(node.name)
    drop_unused(model)
    return list(layers.values())


def patches_as_products(model: onnx.ModelProto) -> None:
    """Write every patch embedding (a convolution whose kernel is its stride) as a product of patches.

        [B, c, h·p, w·p] → [B, h·w, c·p·p] · W [c·p·p, D] + b

    The same sums in another order. What follows the convolution, [B, D, h, w] → [B, h·w, D], is left out.
    """
    graph = Graph(model)
    nodes: list[onnx.NodeProto] = []
    written: set[str] = set()
    for node in model.graph.node:
        pattern = _patch_pattern(graph, node)
        if pattern is None:
            if not set(node.output) <= written:
                nodes.append(node)
            continue
        weight, tokens, between = pattern
        for user in graph.consumers[node.output[0]]:
            if user.op_type == "Shape":  # of the batch alone, which is the tokens' as well
                user.input[0] = tokens
        width, channels, size, _ = weight.shape
        written.update(between)
        prefix, weight_name = node.name, f"{node.input[1].removesuffix('.weight')}.matrix.weight"
        rows, columns = (edge // size for edge in graph.shapes[node.input[0]][2:])
        split = _integers(model, f"{prefix}.split", (-1, channels, rows, size, columns, size))
        flat = _integers(model, f"{prefix}.flat", (-1, rows * columns, channels * size * size))
        matrix = np.ascontiguousarray(weight.reshape(width, -1).T)
        model.graph.initializer.append(numpy_helper.from_array(matrix, weight_name))
        nodes += [
            helper.make_node("Reshape", [node.input[0], split], [f"{prefix}.cells"], f"{prefix}.cells"),
            helper.make_node(
                "Transpose", [f"{prefix}.cells"], [f"{prefix}.sorted"], f"{prefix}.sorted", perm=[0, 2, 4, 1, 3, 5]
            ),
            helper.make_node("Reshape", [f"{prefix}.sorted", flat], [f"{prefix}.patches"], f"{prefix}.patches"),
        ]
        product = [f"{prefix}.patches", weight_name]
        if len(node.input) == 3:
            nodes.append(helper.make_node("MatMul", product, [f"{prefix}.product"], f"{prefix}.product"))
            nodes.append(helper.make_node("Add", [f"{prefix}.product", node.input[2]], [tokens], f"{prefix}.bias"))
        else:
            nodes.append(helper.make_node("MatMul", product, [tokens], f"{prefix}.product"))
    if written:
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def bias_inside(model: onnx.ModelProto, layers: list[Layer]) -> None:
    """Write x·W + b as Reshape → Gemm → Reshape, which onnxruntime fuses with its quantisation into one kernel.

    A product followed by an addition would leave the addition as a pass over memory of its own. Changes `model` and the
    layers' node names in place; a product without a bias stays as it is.
    """
    graph = Graph(model)
    layer_of = {name: layer for layer in layers for name in layer.nodes}
    nodes: list[onnx.NodeProto] = []
    written: set[str] = set()
    for node in model.graph.node:
        if node.name in written:
            continue
        layer = layer_of.get(node.name)
        addition = _bias_addition(graph, node) if layer else None
        tokens = graph.shapes[node.output[0]][1] if layer else 0
        if layer is None or addition is None or not tokens:
            nodes.append(node)
            continue
        add, bias = addition
        written.add(add.name)
        (rows, columns), prefix = layer.shape, f"{node.name}.gemm"
        flat = _integers(model, f"{prefix}.rows", (-1, rows))
        unflat = _integers(model, f"{prefix}.tokens", (-1, tokens, columns))
        nodes += [
            helper.make_node("Reshape", [node.input[0], flat], [f"{prefix}.flat"], f"{prefix}.flat"),
            helper.make_node("Gemm", [f"{prefix}.flat", node.input[1], bias], [prefix], prefix),
            helper.make_node("Reshape", [prefix, unflat], [add.output[0]], add.name),
        ]
        layer.nodes[layer.nodes.index(node.name)] = prefix
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove initializers nobody reads, and nodes whose outputs nobody reads, in place."""
    outputs = {value.name for value in model.graph.output}
    while True:
        read = {value for node in model.graph.node for value in node.input} | outputs
        kept = [node for node in model.graph.node if read & set(node.output)]
        if len(kept) == len(model.graph.node):
            break
        del model.graph.node[:]
        model.graph.node.extend(kept)
    made = {value for node in model.graph.node for value in node.output}
    for values, wanted in ((model.graph.initializer, read), (model.graph.value_info, made)):
        found = [value for value in values if value.name in wanted]
        if len(found) < len(values):
            del values[:]
            values.extend(found)


FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def float_products(model: onnx.ModelProto, types: Collection[int] = FLOATS) -> dict[str, int]:
    """Products of tokens with a constant of one of `types` that are in a model: node name → numbers in the constant.

    Counted from the file alone, whatever was meant to be quantised.
    """
    graph = Graph(model)
    return {
        node.name: int(np.prod(graph.initializers[source].dims))
        for node, source in graph.products()
        if graph.initializers[source].data_type in types and graph.of_tokens(node)
    }


def _name(graph: Graph, node: onnx.NodeProto, source: str) -> str:
    """The module that the matrix belongs to, after its weight, its bias, or the norm before it."""
    addition = _bias_addition(graph, node)
    names = [source] + ([addition[1]] if addition else [])
    if (norm := _norm_before(graph, node)) is not None:
        names.append(norm)
    for name in names:
        stem, _, last = name.rpartition(".")
        if stem and last in ("weight", "bias"):
            return _short(stem.replace(".norm2", ".mlp"))
    return node.name


def _short(module: str) -> str:
    """`backbone.vit.blocks.3.mlp.fc1` → `blocks.3.mlp.fc1`; the query's own network keeps a prefix."""
    module = module.replace("query_blocks.", "query_backbone.vit.blocks.")
    own, _, rest = module.removesuffix(".matrix").partition(".vit.")
    if not rest:
        return own
    return rest if own == "backbone" else f"{own.removesuffix('_backbone')}.{rest}"


def _norm_before(graph: Graph, node: onnx.NodeProto) -> str | None:
    """The weight of the LayerNorm that made a product's tokens, perhaps only some of them."""
    above = graph.producer.get(node.input[0])
    while above is not None and above.op_type in ("Slice", "Gather", "Concat", "Reshape", "Unsqueeze", "Squeeze"):
        above = graph.producer.get(above.input[0])
    return above.input[1] if above is not None and above.op_type == "LayerNormalization" else None


def _unique(name: str, taken: set[str]) -> str:
    """`name`, numbered where another matrix has it already: where backbones share a norm that does nothing."""
    numbers = itertools.chain([name], (f"{name}~{count}" for count in itertools.count(2)))
    found = next(candidate for candidate in numbers if candidate not in taken)
    taken.add(found)
    return found


def _bias_addition(graph: Graph, node: onnx.NodeProto) -> tuple[onnx.NodeProto, str] | None:
    """The addition of a constant [N] that alone reads a product, and that constant."""
    users = graph.consumers[node.output[0]]
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    other = next((value for value in users[0].input if value != node.output[0]), "")
    if other not in graph.initializers or len(graph.initializers[other].dims) != 1:
        return None
    return users[0], other


def _patch_pattern(graph: Graph, node: onnx.NodeProto) -> tuple[npt.NDArray[np.float32], str, set[str]] | None:
    """Weight [D, c, p, p] of a patch embedding, the value [B, n, D] it ends in, and the values on the way there."""
    if node.op_type != "Conv" or node.input[1] not in graph.initializers:
        return None
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    weight = numpy_helper.to_array(graph.initializers[node.input[1]])
    patch = list(weight.shape[2:])
    size = graph.shapes.get(node.input[0], [])[2:]
    plain = (
        len(patch) == 2
        and patch[0] == patch[1]
        and list(attributes.get("strides", [])) == patch
        and attributes.get("group", 1) == 1
        and not any(attributes.get("pads", []))
        and set(attributes.get("dilations", [1])) == {1}
        and len(size) == 2
        and all(edge and edge % patch[0] == 0 for edge in size)
    )
    path = [node.output[0]]
    for kind in ("Reshape", "Transpose"):
        users = [user for user in graph.consumers[path[-1]] if user.op_type != "Shape"]
        if not plain or len(users) != 1 or users[0].op_type != kind:
            return None
        path.append(users[0].output[0])
    transpose = graph.producer[path[-1]]
    if list(helper.get_attribute_value(transpose.attribute[0])) != [0, 2, 1]:
        return None
    return weight, path[-1], set(path)


def _integers(model: onnx.ModelProto, name: str, values: tuple[int, ...]) -> str:
    """A new int64 constant."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name
