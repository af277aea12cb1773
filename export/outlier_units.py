"""Hidden units of an MLP whose outputs are far larger than all others', each given companions that take the excess.

A few units of a ViT reach several times what any other does, and one scale for all leaves the others few steps. With
GELU behind it, which is 0 far below zero and the identity far above,

    h  ≈  min(h, T) + min(GELU(x - T), T) + min(GELU(x - 2T), T) + …        for h = GELU(x)

and `min(·, T)` is what quantising to [.., T] does by itself. So a companion is a column of fc1 once more with a bias
that is lower by T, and the unit's row of fc2 once more: a few columns more, and no operator. (Outlier channels are
split in Zhao et al. 2019, arXiv 1901.09504, by halving them, which GELU does not allow.) Where an fc2 stays float, its
input is clipped to the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from cdl_deploy.export.activations import Rows
from cdl_deploy.export.layers import Graph, Layer

COMPANIONS = 8
"""At most, in an MLP."""
WORTH_IT = 0.65
"""The range that is left must be smaller than this share of the whole: each companion is a little off near k · T."""
LEAST = 2.0
"""A smaller T is not looked for: there GELU is neither 0 nor the identity."""
STEPS = 1000
"""In which T is looked for."""
Units = npt.NDArray[np.float32]
"""A number for each hidden unit."""


@dataclass(frozen=True)
class Mlp:
    """fc1 and fc2 with nothing but GELU between them, wherever they stand in the graph."""

    fc1: Layer
    fc2: Layer
    reshapes: tuple[str, ...]
    """Nodes that unfold what fc1 gives and fold what fc2 takes."""
    inputs: tuple[str, ...]
    """What fc2 multiplies."""


def find_mlps(graph: Graph, layers: tuple[Layer, ...]) -> list[Mlp]:
    """Every pair of layers that stands as Gemm → Reshape → Gelu → Reshape → Gemm, and is read by nobody else."""
    nodes = {node.name: node for node in graph.model.graph.node}
    layer_of = {name: layer for layer in layers for name in layer.nodes}
    found = []
    for fc2 in layers:
        paths = [_path_up(graph, nodes[name]) for name in fc2.nodes]
        if not paths or any(path is None for path in paths):
            continue
        above = [path[-1].name for path in paths if path is not None]
        fc1 = layer_of.get(above[0])
        if fc1 is None or sorted(fc1.nodes) != sorted(above):
            continue
        if not all(_has_own_bias(graph, nodes[name], above) for name in above):
            continue
        between = tuple(node.name for path in paths if path is not None for node in (path[0], path[2]))
        inputs = tuple(nodes[name].input[0] for name in fc2.nodes)
        found.append(Mlp(fc1, fc2, between, inputs))
    return found


def _has_own_bias(graph: Graph, node: onnx.NodeProto, products: Collection[str]) -> bool:
    """Whether it adds a constant that nothing but `products` reads: equal biases of a model may be stored once."""
    bias = node.input[2] if len(node.input) > 2 else ""
    return bias in graph.initializers and all(user.name in products for user in graph.consumers[bias])


def _path_up(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Reshape, Gelu, Reshape and Gemm above the Gemm `node`; None where it is anything else, or somebody else looks."""
    path = [node]
    for kind in ("Reshape", "Gelu", "Reshape", "Gemm"):
        above = graph.producer.get(path[-1].input[0])
        if above is None or above.op_type != kind or len(graph.consumers[above.output[0]]) != 1:
            return None
        path.append(above)
    return path[1:] if node.op_type == "Gemm" else None


class OutlierUnits:
    """How large hidden units become, seen value by value; then their companions, in place."""

    def __init__(self, graph: Graph, layers: tuple[Layer, ...]) -> None:
        self.model, self.mlps = graph.model, find_mlps(graph, layers)
        self.largest: dict[str, Units] = {}
        self.least: dict[str, float] = {}

    @property
    def values(self) -> list[str]:
        """What to look at."""
        return [value for mlp in self.mlps for value in mlp.inputs]

    def see(self, name: str, rows: Rows) -> None:
        """Take note of one value of one run."""
        self.largest[name] = np.maximum(self.largest.get(name, -np.inf), rows.max(axis=0))
        self.least[name] = min(self.least.get(name, 0.0), float(rows.min()))

    def apply(self) -> dict[str, tuple[float, float]]:
        """Returns what fc2 may be given at most of every value that it is given less of now: least and greatest."""
        ranges: dict[str, tuple[float, float]] = {}
        for mlp in self.mlps:
            largest = np.max([self.largest[it] for it in mlp.inputs], axis=0)
            limit = limit_of(largest)
            if limit is not None:
                self._add(mlp, companions(largest, limit), limit)
                least = min(self.least[it] for it in mlp.inputs)
                ranges.update(dict.fromkeys(mlp.inputs, (least, limit)))
        return ranges

    def _add(self, mlp: Mlp, units: list[tuple[int, int]], limit: float) -> None:
        """Columns to fc1 and rows to fc2. An initializer stays under its name."""
        stored = {value.name: value for value in self.model.graph.initializer}
        nodes = {node.name: node for node in self.model.graph.node}
        which = [unit for unit, _ in units]
        first, second = (numpy_helper.to_array(stored[layer.weight]) for layer in (mlp.fc1, mlp.fc2))
        wider = {
            mlp.fc1.weight: np.concatenate([first, first[:, which]], axis=1),
            mlp.fc2.weight: np.concatenate([second, second[which]]),
        }
        for name in {nodes[product].input[2] for product in mlp.fc1.nodes}:
            bias = numpy_helper.to_array(stored[name])
            wider[name] = np.concatenate([bias, [bias[unit] - times * limit for unit, times in units]])
        for name, numbers in wider.items():
            stored[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numbers, np.float32), name))
        for node in (nodes[name] for name in mlp.reshapes):
            shape = numpy_helper.to_array(stored[node.input[1]]).copy()
            shape[-1] = first.shape[1] + len(units)
            node.input[1] = f"{node.name}.wider"
            self.model.graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))
        mlp.fc1.shape, mlp.fc2.shape = wider[mlp.fc1.weight].shape, wider[mlp.fc2.weight].shape


def limit_of(largest: Units) -> float | None:
    """The smallest T that `COMPANIONS` companions allow, for the largest output of each unit; None where it gains
    little."""
    whole = float(largest.max())
    for limit in np.linspace(LEAST, WORTH_IT * whole, STEPS) if WORTH_IT * whole > LEAST else ():
        if counts_of(largest, limit).sum() <= COMPANIONS:
            return float(limit)
    return None


def counts_of(largest: Units, limit: float) -> npt.NDArray[np.int64]:
    """How many companions each unit needs, to reach its largest output."""
    return np.maximum(np.ceil(largest / limit) - 1, 0).astype(np.int64)


def companions(largest: Units, limit: float) -> list[tuple[int, int]]:
    """Unit and k of each companion, which takes what is above k · T."""
    counts = counts_of(largest, limit)
    return [(int(unit), times) for unit in np.flatnonzero(counts) for times in range(1, counts[unit] + 1)]


def clip_where_float(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], quantised: Collection[str]
) -> None:
    """Clip each of `ranges` where the product that reads it is none of `quantised`, in place."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        value = node.input[0] if node.input else ""
        if value in ranges and node.name not in quantised:
            ends = [f"{value}.least", f"{value}.greatest"]
            model.graph.initializer.extend(
                numpy_helper.from_array(np.array(end, np.float32), name)
                for end, name in zip(ranges[value], ends, strict=True)
            )
            model.graph.node.append(helper.make_node("Clip", [value, *ends], [f"{value}.clipped"], f"{value}.clip"))
            node.input[0] = f"{value}.clipped"
        model.graph.node.append(node)
