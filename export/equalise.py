"""Channels behind a layer norm brought to one size, so that one scale does for all of them (SmoothQuant).

    x · W = (x / s) · (s W),    s_j = max |x_j|^α / max |W_j|^(1 - α)

for the channels j of what a layer norm gives (Xiao et al. 2023, arXiv 2211.10438, equation 4). The division goes into
the norm's own weight and bias, so the graph stays as it is and computes the same. Some channels of a ViT are twenty
times as large as most; without this, one scale for all leaves most of them a few steps.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from cdl_deploy.export.activations import Rows
from cdl_deploy.export.layers import Graph, Layer

ALPHA = 0.85
"""How much of the difference goes to the matrix: much, because its numbers are rounded with care (`rounding.py`)."""
SMALLEST = 1e-4
"""Of the largest channel: what is smaller counts as so large."""


@dataclass(frozen=True)
class Norm:
    """The layer norms with one weight and bias, each read by nothing but layers."""

    weight: str
    bias: str
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]


def find_norms(graph: Graph, layers: tuple[Layer, ...]) -> list[Norm]:
    """Norms whose weight can take the division: who reads it are norms that feed layers and nothing else."""
    layer_of = {node: layer for layer in layers for node in layer.nodes}
    norms: dict[tuple[str, str], list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.model.graph.node:
        if node.op_type == "LayerNormalization" and len(node.input) == 3:
            norms[node.input[1], node.input[2]].append(node)
    found: list[Norm] = []
    for (weight, bias), nodes in norms.items():
        readers = [user for node in nodes for user in _readers(graph, node.output[0])]
        fed = {layer.name: layer for user in readers if (layer := layer_of.get(user)) is not None}
        own = {node.name for node in nodes}
        alone = all(user.name in own for it in (weight, bias) for user in graph.consumers[it])
        whole = {node for layer in fed.values() for node in layer.nodes} == set(readers)
        width = list(graph.initializers[weight].dims) if {weight, bias} <= set(graph.initializers) else []
        fits = all([layer.shape[0]] == width for layer in fed.values())
        if fed and alone and whole and fits and not any(set(node.output[1:]) - {""} for node in nodes):
            outputs = tuple(node.output[0] for node in nodes)
            found.append(Norm(weight, bias, outputs, tuple(fed.values())))
    return found


def _readers(graph: Graph, value: str) -> list[str]:
    """Names of the nodes that read `value`, through what only takes rows of it."""
    names: list[str] = []
    for user in graph.consumers[value]:
        through = user.op_type in ("Reshape", "Slice", "Gather") and user.input[0] == value
        names += _readers(graph, user.output[0]) if through else [user.name]
    return names


class Equaliser:
    """Largest sizes of channels behind norms, seen value by value; then the division, in place."""

    def __init__(self, graph: Graph, layers: tuple[Layer, ...]) -> None:
        self.model, self.norms = graph.model, find_norms(graph, layers)
        self.largest: dict[str, npt.NDArray[np.float32]] = {}

    @property
    def values(self) -> list[str]:
        """What to look at."""
        return [output for norm in self.norms for output in norm.outputs]

    def see(self, name: str, rows: Rows) -> None:
        """Take note of one value of one run."""
        seen = np.abs(rows).max(axis=0)
        self.largest[name] = np.maximum(self.largest.get(name, seen), seen)

    def apply(self) -> None:
        """Divide norms, multiply matrices."""
        stored = {value.name: value for value in self.model.graph.initializer}
        for norm in self.norms:
            matrices = {layer.weight: numpy_helper.to_array(stored[layer.weight]) for layer in norm.layers}
            scale = scale_of(
                np.max([self.largest[it] for it in norm.outputs], axis=0),
                np.max([np.abs(matrix).max(axis=1) for matrix in matrices.values()], axis=0),
            )
            for name in (norm.weight, norm.bias):
                _store(stored[name], numpy_helper.to_array(stored[name]) / scale)
            for name, matrix in matrices.items():
                _store(stored[name], matrix * scale[:, None])


def scale_of(tokens: npt.NDArray[np.float32], matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """s [K] for the largest |x_j| and the largest |W_j|."""
    of_tokens, of_matrix = (np.maximum(it, SMALLEST * (it.max() or 1)) for it in (tokens, matrix))
    scale = of_tokens**ALPHA / of_matrix ** (1 - ALPHA)
    return np.asarray(scale / np.exp(np.log(scale).mean()), np.float32)


def _store(value: onnx.TensorProto, numbers: npt.NDArray[np.floating[Any]]) -> None:
    value.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numbers, np.float32), value.name))
