"""What an ONNX graph does with its constants, in the order of its nodes: products, norms, scales, and rows of tokens.

Constants are told by the node that uses them: exporters keep the names of some and lose those of others, and turn the
weights of linear layers round. A norm may be one node or, before opset 17, eight.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cdl_deploy.errors import BundleError, MissingExtraError, WeightsError
from cdl_deploy.runtime.onnx_scan import check_model_file
from cdl_deploy.runtime.protobuf import MalformedMessageError

Array = npt.NDArray[Any]
QUANTISED = ("QLinear", "MatMulInteger", "ConvInteger", "DequantizeLinear", "QGemm", "QAttention")
ENDLESS = ("Loop", "Scan")
JOINS = ("Concat", "Reshape", "Expand", "Transpose", "Resize", "Slice")
"""What may stand between rows of tokens and the sequence that they become part of."""
ACTIVATIONS = ("Erf", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Sigmoid", "Tanh")


@dataclass
class Part:
    """One use of constants."""

    kind: str
    """`conv`, `linear`, `norm`, `scale`, `rows` or `activation`."""
    output: str
    """Name of the tensor that it gives."""
    weight: Array
    """Of `linear` [out, in]."""
    bias: Array | None = None
    input: str = ""
    epsilon: float = 1e-6
    """Of a norm."""
    operator: str = ""


class Graph:
    """An ONNX model whose constants can be asked for."""

    def __init__(self, file: Path) -> None:
        """Raises WeightsError for what is no ONNX model, MissingExtraError where the onnx package is missing."""
        try:
            import onnx
            from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        except ModuleNotFoundError:
            raise MissingExtraError("reading an ONNX file's weights", "all", "onnx") from None
        try:
            check_model_file(file)  # before tensors are taken from wherever the file says that they lie
            self.model = onnx.load(str(file))
        except BundleError as error:
            raise WeightsError(str(error)) from None
        except (DecodeError, ValueError, OSError, onnx.checker.ValidationError, MalformedMessageError) as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise WeightsError(f"cannot read weights file {file}: it is no ONNX model, or torn ({reason})") from None
        graph = self.model.graph
        if not all(isinstance(name, str) for node in graph.node for name in (*node.input, *node.output, node.op_type)):
            raise WeightsError(f"cannot read weights file {file}: it is torn (names that are no text)")
        everywhere = [node for nodes in (graph.node, *(f.node for f in self.model.functions)) for node in nodes]
        if any(node.op_type in ENDLESS for node in everywhere):
            raise WeightsError(f"weights file {file} holds no ViT that is known: its graph has loops, which none needs")
        if not graph.node:
            raise WeightsError(f"weights file {file} is an ONNX model without nodes")
        if any(entry.key.startswith("cdl.") for entry in self.model.metadata_props):
            raise WeightsError(
                f"weights file {file} is a model that cdl exported, whose prompts are part of its graph: "
                "give the weights that it was trained on"
            )
        quantised = next((node.op_type for node in graph.node if node.op_type.startswith(QUANTISED)), None)
        if quantised is not None:
            raise WeightsError(f"weights file {file} is quantised ({quantised}): give the model in float")
        self.producers = {name: node for node in graph.node for name in node.output}
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.known: dict[str, Array | None] = {}

    def constant(self, name: str) -> Array | None:
        """The value of a tensor that no input changes, through what only turns it or copies it; None of others."""
        if name not in self.known:
            self.known[name] = None  # of a graph that goes round
            self.known[name] = self._constant(name)
        return self.known[name]

    def _constant(self, name: str) -> Array | None:
        from onnx import numpy_helper

        if name in self.stored:
            return np.asarray(numpy_helper.to_array(self.stored[name]))
        node = self.producers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            values = [a for a in node.attribute if a.name == "value"]
            return np.asarray(numpy_helper.to_array(values[0].t)) if values else None
        if node.op_type not in ("Identity", "Cast", "Transpose", "Expand", "Unsqueeze", "Squeeze", "Reshape"):
            return None
        value = self.constant(node.input[0])
        if value is None or value.dtype.kind != "f":
            return None
        if node.op_type == "Transpose":
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
            return np.transpose(value, order)
        if node.op_type == "Reshape":
            shape = self.constant(node.input[1])
            return None if shape is None or 0 in shape else value.reshape([int(side) for side in shape])
        return value  # the same numbers: how often an Expand repeats them is not ours to know

    def used_after(self, output: str) -> tuple[str, ...]:
        """Names of the constants that nodes use after the one that gives this tensor."""
        nodes = list(self.model.graph.node)
        place = next((i for i, node in enumerate(nodes) if output in node.output), len(nodes))
        used = [name for node in nodes[place + 1 :] for name in node.input if name in self.stored]
        return tuple(dict.fromkeys(name for name in used if len(self.stored[name].dims)))

    def parts(self) -> list[Part]:
        """Every use of float constants, in the order of the nodes."""
        found: list[Part] = []
        by_output: dict[str, Part] = {}
        for node in self.model.graph.node:
            part = self._part(node, by_output)
            if part is not None:
                found.append(part)
                by_output[part.output] = part
            elif node.op_type in JOINS:
                found += [
                    Part("rows", node.output[0], value, operator=node.op_type)
                    for name in node.input
                    if (value := self.constant(name)) is not None and value.dtype.kind == "f" and value.ndim >= 2
                ]
        return found

    def _part(self, node: Any, by_output: dict[str, Part]) -> Part | None:
        inputs, output, kind = list(node.input), node.output[0], node.op_type
        values = [self.constant(name) if name else None for name in inputs]
        floats = [None if v is None or v.dtype.kind != "f" else v for v in values]
        if kind == "Conv" and floats[1] is not None and floats[1].ndim == 4:
            return Part("conv", output, floats[1], floats[2] if len(floats) > 2 else None, inputs[0])
        if kind == "MatMul" and floats[1] is not None and floats[1].ndim == 2:
            return Part("linear", output, floats[1].T, None, inputs[0])
        if kind == "Gemm" and floats[1] is not None and floats[1].ndim == 2:
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            weight = floats[1] if turned else floats[1].T
            return Part("linear", output, weight, floats[2] if len(floats) > 2 else None, inputs[0])
        if kind == "LayerNormalization" and floats[1] is not None:
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            bias = floats[2] if len(floats) > 2 else None
            return Part("norm", output, floats[1].reshape(-1), bias, inputs[0], float(epsilon))
        if kind in ACTIVATIONS:
            rough = any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute)
            return Part("activation", output, np.zeros(0), operator="Tanh" if rough else kind, input=inputs[0])
        if kind in ("Add", "Mul") and len(inputs) == 2 and sum(value is None for value in floats) == 1:
            place = int(floats[1] is not None)
            value, other = floats[place], inputs[1 - place]
            if value is not None:
                return self._sum_or_product(kind, value, other, output, by_output)
        return None

    def _sum_or_product(
        self, kind: str, value: Array, other: str, output: str, by_output: dict[str, Part]
    ) -> Part | None:
        vector = value.size > 1 and value.size == value.shape[-1]
        before = by_output.get(other)
        takes = before is not None and before.kind in ("linear", "norm") and before.bias is None
        if kind == "Add" and vector and takes and before is not None and before.weight.shape[0] == value.size:
            before.bias, before.output = value.reshape(-1), output
            by_output[output] = before
            return None
        if kind == "Mul" and vector:
            epsilon = self._deviation(other)
            if epsilon is not None:
                return Part("norm", output, value.reshape(-1), None, other, epsilon)
            return Part("scale", output, value.reshape(-1), None, other)
        if kind == "Add" and value.ndim >= 2:
            return Part("rows", output, value, operator="Add")
        return None

    def _deviation(self, name: str) -> float | None:
        """The epsilon of a norm where this is a quotient by a root, as norms are written before opset 17."""
        node = self.producers.get(name)
        if node is None or node.op_type != "Div":
            return None
        root = self.producers.get(node.input[1])
        if root is None or root.op_type != "Sqrt":
            return None
        total = self.producers.get(root.input[0])
        values = [self.constant(part) for part in total.input] if total is not None and total.op_type == "Add" else []
        return next((float(value.reshape(-1)[0]) for value in values if value is not None and value.size == 1), 1e-6)
