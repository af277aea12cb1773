"""What names a model's features: a hash of the part of its graph that computes them.

Heads, class names, distance and metadata have no part in it, so it stays what it is when a class is added, and changes
with everything that changes a feature: prompts, preprocessing, precision. Names of values do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import onnx
from onnx import AttributeProto

from cdl_deploy.runtime.bundle import FEATURES_NAME


def features_hash(model: onnx.ModelProto) -> str:
    """SHA-256 of operators, attributes and constants from the input to the output `features`, in the graph's order."""
    graph = model.graph
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output}
    constants = {value.name: value for value in graph.initializer}
    needed: set[int] = set()
    waiting = [FEATURES_NAME]
    while waiting:
        index = producer.get(waiting.pop())
        if index is not None and index not in needed:
            needed.add(index)
            waiting += _reads(graph.node[index])
    digest = hashlib.sha256()
    numbers: dict[str, int] = {}

    def take(*parts: bytes) -> None:
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)

    take(*(f"{item.domain}:{item.version}".encode() for item in sorted(model.opset_import, key=lambda it: it.domain)))
    for index in sorted(needed):
        node = graph.node[index]
        take(node.domain.encode(), node.op_type.encode())
        for attribute in sorted(node.attribute, key=lambda item: item.name):
            take(attribute.SerializeToString(deterministic=True))
        for name in _reads(node):
            value = constants.get(name)
            if value is not None and name not in numbers:
                content = onnx.numpy_helper.to_array(value).tobytes()
                take(str(value.data_type).encode(), str(list(value.dims)).encode(), content)
            take(str(numbers.setdefault(name, len(numbers))).encode() if name else b"")
        for name in node.output:
            take(str(numbers.setdefault(name, len(numbers))).encode() if name else b"")
    return digest.hexdigest()


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, also from within its subgraphs."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            inside = {name for inner in attribute.g.node for name in inner.output}
            inside |= {value.name for value in (*attribute.g.input, *attribute.g.initializer)}
            for inner in attribute.g.node:
                yield from (name for name in _reads(inner) if name not in inside)
