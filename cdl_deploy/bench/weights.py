"""How many values an `.onnx` file holds and which files belong to it, read without the onnx package.

An `.onnx` file is one protocol buffer message. Only its skeleton is read here: the lengths of the fields say where the
next one begins, so weights are skipped, not loaded. Field numbers are those of `onnx.proto3`, which cannot change.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from cdl_deploy.runtime.protobuf import fields, packed_numbers

# Fields of the messages on the way to a tensor.
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_ATTRIBUTE, ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH = 5, 5, 6
TENSOR_DIMS, TENSOR_TYPE, TENSOR_EXTERNAL = 1, 2, 13
ENTRY_KEY, ENTRY_VALUE = 1, 2
NOT_WEIGHTS = frozenset({7, 8, 9})
"""Types of tensors that are no parameters: int64 (shapes and positions), string, bool."""


@dataclass(frozen=True)
class StoredWeights:
    """What a model file holds."""

    parameters: int
    """Values of all weights and constants, without int64, strings and bools, which are shapes, positions, names."""
    external: tuple[str, ...]
    """Names of the files beside it that hold weights."""


def read_weights(path: Path) -> StoredWeights | None:
    """Count the parameters of an `.onnx` file; None for a file of another kind, such as `.ort`."""
    parameters, external = 0, set()
    try:
        with path.open("rb") as file:
            message = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for count, location in _tensors(message, (MODEL_GRAPH,)):
            parameters += count
            external |= {location} if location else set()
    except ValueError:
        return None
    return StoredWeights(parameters, tuple(sorted(external)))


def file_bytes(path: Path) -> int:
    """Size of a model file together with the files beside it that hold its weights."""
    found = read_weights(path)
    beside = [path.parent / name for name in (found.external if found else ())]
    return path.stat().st_size + sum(file.stat().st_size for file in beside if file.is_file())


def _tensors(message: memoryview, path: tuple[int, ...]) -> Iterator[tuple[int, str]]:
    """(values that are parameters, external file or "") of every tensor in a model, a graph or a node."""
    for number, _, value in fields(message):
        if not isinstance(value, memoryview) or number not in path:
            continue
        if path == (MODEL_GRAPH,):
            yield from _tensors(value, (GRAPH_NODE, GRAPH_INITIALIZER))
        elif path == (GRAPH_NODE, GRAPH_INITIALIZER) and number == GRAPH_NODE:
            yield from _tensors(value, (NODE_ATTRIBUTE,))
        elif path == (NODE_ATTRIBUTE,):
            for inner, _, part in fields(value):
                if inner == ATTRIBUTE_TENSOR and isinstance(part, memoryview):
                    yield _tensor(part)
                elif inner == ATTRIBUTE_GRAPH and isinstance(part, memoryview):
                    yield from _tensors(part, (GRAPH_NODE, GRAPH_INITIALIZER))
        else:
            yield _tensor(value)


def _tensor(message: memoryview) -> tuple[int, str]:
    dims: list[int] = []
    kind, location = 0, ""
    for number, _, value in fields(message):
        if number == TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else packed_numbers(value)
        elif number == TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == TENSOR_EXTERNAL and isinstance(value, memoryview):
            entry = {n: bytes(v).decode() for n, _, v in fields(value) if isinstance(v, memoryview)}
            if entry.get(ENTRY_KEY) == "location":
                location = entry.get(ENTRY_VALUE, "")
    return (0 if kind in NOT_WEIGHTS else prod(dims)), location
