"""ONNX nodes written as nested calls, where nothing in torch corresponds to what the graph has to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import helper, numpy_helper


class Nodes:
    """A list of nodes and constants that grows: `nodes("Add", a, b)` is the name of a new value a + b.

    Names count up below `prefix`, so that the same calls give the same bytes.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def __call__(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Append a node with one output; `name` is the output's, without the prefix."""
        output = name or f"{self.prefix}/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def split(self, value: str, *sizes: int, axis: int) -> list[str]:
        """`value` cut along `axis` into parts of these sizes."""
        first = self("Split", value, self.integers(*sizes), axis=axis)
        self.nodes[-1].output.extend(f"{first}.{number}" for number in range(1, len(sizes)))
        return list(self.nodes[-1].output)

    def integers(self, *values: int) -> str:
        """A constant int64 [n]."""
        return self.constant(values, np.int64)

    def number(self, value: float) -> str:
        """A constant float []."""
        return self.constant(value, np.float32)

    def constant(self, values: ArrayLike, kind: DTypeLike) -> str:
        """A constant of any shape; equal ones are one."""
        array = np.asarray(values, kind)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.prefix}/constant_{len(self._constants)}"
            self._constants[key] = name
            self.initializers.append(numpy_helper.from_array(array, name))
        return self._constants[key]
