"""An ONNX file with a few parts replaced: everything else keeps its bytes, and its place.

Replaced are initialisers by name, the sizes that are declared of values, the output that a node has, and the metadata.
Field numbers: onnx.proto, https://github.com/onnx/onnx. Not the package onnx: a device does not install it, and it
would hold the model three times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.errors import BundleError
from cdl_deploy.learn.protobuf import (
    Field,
    Piece,
    fields_in,
    fields_of,
    head,
    number,
    number_of,
    size_of,
    text,
)
from cdl_deploy.runtime.onnx_scan import MAX_MODEL
from cdl_deploy.runtime.protobuf import BYTES, VARINT

_GRAPH, _METADATA = 7, 14
_NODE, _INITIALIZER, _OUTPUT, _VALUE_INFO = 1, 5, 12, 13
_FLOAT, _INT64, _STRING = 1, 7, 8
_APART = 1
"""data_location of a tensor whose values lie in another file."""


@dataclass(frozen=True)
class Node:
    """One operator."""

    place: Field
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    flags: Mapping[str, int]
    """Attributes that are whole numbers."""
    within: frozenset[str]
    """What the graphs within it read, values of theirs included."""

    def reads(self, name: str) -> bool:
        """Whether it, or a graph within it, reads a value."""
        return name in self.inputs or name in self.within


@dataclass(frozen=True)
class Constant:
    """One initialiser."""

    place: Field
    shape: tuple[int, ...]


@dataclass
class Edits:
    """What is to be different."""

    constants: dict[str, NDArray[Any] | tuple[str, ...]] = field(default_factory=dict)
    """New values: float32, int64, or texts, by name."""
    added: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Constants that are new."""
    removed: set[str] = field(default_factory=set)
    """Constants, and outputs of nodes, that go."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Outputs of nodes that get another name there."""
    nodes: list[bytes] = field(default_factory=list)
    """Nodes to append."""
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    """Declared sizes of values; None: as it was."""


class OnnxFile:
    """What is in an open model file, without its weights."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        """Raises `BundleError` for what is no ONNX model."""
        self.file, self.size = file, size
        self.top = list(fields_in(file, 0, size))
        graphs = [it for it in self.top if it.number == _GRAPH and it.wire == BYTES]
        if len(graphs) != 1:
            raise BundleError("the file is no ONNX model: it has no graph")
        self.graph_place = graphs[0]
        self.graph = list(fields_in(file, self.graph_place.at, self.graph_place.end))
        self.nodes = [_node(it, self.read(it)) for it in self.graph if it.number == _NODE]
        self.constants = dict(self._constant(it) for it in self.graph if it.number == _INITIALIZER)

    def read(self, place: Field) -> bytes:
        """The value of a field."""
        self.file.seek(place.at)
        return self.file.read(place.end - place.at)

    def metadata(self) -> dict[str, str]:
        """All of them, cdl's and others'."""
        return _metadata(self.file, self.top)

    def producer(self, name: str) -> Node:
        """The node that has this output. Raises `BundleError`."""
        for node in self.nodes:
            if name in node.outputs:
                return node
        raise BundleError(f"no operator of its graph has output '{name}'; export the model again")

    def consumers(self, name: str) -> list[Node]:
        """The nodes that read it."""
        return [node for node in self.nodes if node.reads(name)]

    def behind(self, names: Iterable[str]) -> set[str]:
        """All values that depend on these."""
        found = set(names)
        for node in self.nodes:  # each stands behind those that it reads from
            if not (found.isdisjoint(node.inputs) and found.isdisjoint(node.within)):
                found.update(node.outputs)
        return found

    def edited(self, edits: Edits, metadata: Mapping[str, str]) -> list[Piece]:
        """The new file. Raises `BundleError` where it would be too large."""
        graph = self._edited_graph(edits)
        pieces: list[Piece] = []
        first = True
        for it in self.top:
            if it.number == _GRAPH:
                pieces += [head(_GRAPH, size_of(graph)), *graph]
            elif it.number == _METADATA:
                if first:
                    pieces += [text(_METADATA, text(1, key) + text(2, metadata[key])) for key in sorted(metadata)]
                first = False
            else:
                pieces.append(it.whole)
        if size_of(pieces) > MAX_MODEL:
            raise BundleError(f"the model would have {size_of(pieces):,} bytes, an ONNX file has at most {MAX_MODEL:,}")
        return pieces

    def _edited_graph(self, edits: Edits) -> list[Piece]:
        nodes = {node.place: node for node in self.nodes}
        names = {constant.place: name for name, constant in self.constants.items()}
        last_node = max((it.start for it in nodes), default=0)
        last_constant = max((it.start for it in names), default=0)
        pieces: list[Piece] = []
        for it in self.graph:
            piece: Piece | None = it.whole
            if it in nodes:
                outputs = nodes[it].outputs
                if edits.removed.intersection(outputs):
                    piece = None
                elif edits.renamed.keys() & set(outputs):
                    piece = text(_NODE, _renamed(self.read(it), edits.renamed))
            elif it in names:
                name = names[it]
                if name in edits.removed:
                    piece = None
                elif name in edits.constants:
                    piece = text(_INITIALIZER, tensor(name, edits.constants[name]) + self._after_values(it))
            elif it.number in (_OUTPUT, _VALUE_INFO) and it.wire == BYTES:
                content = self.read(it)
                shape = edits.shapes.get(_texts(content).get(1, ""))
                if shape is not None:
                    piece = text(it.number, _resized(content, (2, 1, 2), shape))
            if piece is not None:
                pieces.append(piece)
            if it.start == last_node:
                pieces += [text(_NODE, node) for node in edits.nodes]
            if it.start == last_constant:
                pieces += [text(_INITIALIZER, tensor(name, value)) for name, value in edits.added.items()]
        return pieces

    def declared(self) -> dict[str, tuple[int | None, ...]]:
        """Sizes that are declared of values; None for one that is free."""
        return dict(_declared(self.read(it)) for it in self.graph if it.number in (_OUTPUT, _VALUE_INFO))

    def _after_values(self, place: Field) -> bytes:
        """What a tensor says beside name, sizes and values, such as where these lie: PyTorch says that of its own."""
        pieces = []
        for inner in fields_in(self.file, place.at, place.end):
            if inner.number > 9:
                self.file.seek(inner.start)
                pieces.append(self.file.read(inner.end - inner.start))
        return b"".join(pieces)

    def _constant(self, place: Field) -> tuple[str, Constant]:
        name, shape, apart = "", [], False
        for inner in fields_in(self.file, place.at, place.end):
            if inner.number == 1 and inner.wire == VARINT:
                shape.append(number_of(self.read(inner)))
            elif inner.number == 8:
                name = self.read(inner).decode("utf-8", "replace")
            elif inner.number == 14:
                apart = number_of(self.read(inner)) == _APART
        if apart:
            raise BundleError(
                "its weights lie in a file of their own, as they are more than 2 GB: such a model cannot learn here"
            )
        return name, Constant(place, tuple(shape))


def metadata_of(file: BinaryIO, size: int) -> dict[str, str]:
    """The metadata of an open model file, whose graph is passed over."""
    return _metadata(file, fields_in(file, 0, size))


def tensor(name: str, value: NDArray[Any] | Sequence[str]) -> bytes:
    """A TensorProto, as the package onnx writes it."""
    if isinstance(value, np.ndarray):
        kind = {"<f4": _FLOAT, "<i8": _INT64}[value.dtype.newbyteorder("<").str]
        dims = b"".join(number(1, size) for size in value.shape)
        raw = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
        return dims + number(2, kind) + text(8, name) + text(9, raw)
    texts = b"".join(text(6, item) for item in value)
    return number(1, len(value)) + number(2, _STRING) + texts + text(8, name)


def node(operator: str, inputs: Sequence[str], output: str, **flags: int) -> bytes:
    """A NodeProto with one output, named as that."""
    attributes = b"".join(
        text(5, text(1, name) + number(3, value) + number(20, 2)) for name, value in sorted(flags.items())
    )
    read = b"".join(text(1, name) for name in inputs)
    return read + text(2, output) + text(3, output) + text(4, operator) + attributes


def _node(place: Field, content: bytes) -> Node:
    inputs, outputs, operator = [], [], ""
    flags: dict[str, int] = {}
    within: set[str] = set()
    for inner, value in fields_of(content):
        if inner.number == 1:
            inputs.append(value.decode("utf-8", "replace"))
        elif inner.number == 2:
            outputs.append(value.decode("utf-8", "replace"))
        elif inner.number == 4:
            operator = value.decode("utf-8", "replace")
        elif inner.number == 5:
            name = b""
            for part, given in fields_of(value):
                if part.number == 1:
                    name = given
                elif part.number == 3 and part.wire == VARINT:
                    flags[name.decode("utf-8", "replace")] = number_of(given)
                elif part.number in (6, 11) and part.wire == BYTES:
                    for of_graph, node_ in fields_of(given):
                        if of_graph.number == _NODE and of_graph.wire == BYTES:
                            inner_node = _node(of_graph, node_)
                            within.update(inner_node.inputs, inner_node.within)
    return Node(place, operator, tuple(inputs), tuple(outputs), flags, frozenset(within))


def _renamed(content: bytes, names: Mapping[str, str]) -> bytes:
    """A NodeProto with outputs of other names."""
    pieces = []
    for inner, value in fields_of(content):
        name = value.decode("utf-8", "replace") if inner.number == 2 else ""
        pieces.append(text(2, names[name]) if name in names else content[inner.start : inner.end])
    return b"".join(pieces)


def _metadata(file: BinaryIO, top: Iterable[Field]) -> dict[str, str]:
    pairs = []
    for it in top:
        if it.number == _METADATA:
            file.seek(it.at)
            pairs.append(_texts(file.read(it.end - it.at)))
    return {pair.get(1, ""): pair.get(2, "") for pair in pairs}


def _texts(content: bytes) -> dict[int, str]:
    return {it.number: value.decode("utf-8", "replace") for it, value in fields_of(content) if it.wire == BYTES}


def _resized(content: bytes, path: Sequence[int], shape: Sequence[int | None]) -> bytes:
    """A ValueInfoProto with other sizes: they are dim_value (1) of dim (1) within the messages of `path`."""
    pieces, place = [], 0
    for inner, value in fields_of(content):
        if path and inner.number == path[0]:
            pieces.append(text(inner.number, _resized(value, path[1:], shape)))
        elif not path and inner.number == 1:
            size = shape[place] if place < len(shape) else None
            pieces.append(content[inner.start : inner.end] if size is None else text(1, number(1, size)))
            place += 1
        else:
            pieces.append(content[inner.start : inner.end])
    return b"".join(pieces)


def _declared(content: bytes) -> tuple[str, tuple[int | None, ...]]:
    name = _texts(content).get(1, "")
    for number_ in (2, 1, 2):
        content = next((value for it, value in fields_of(content) if it.number == number_), b"")
    sizes: list[int | None] = []
    for it, value in fields_of(content):
        if it.number == 1:
            size = [number_of(inner) for part, inner in fields_of(value) if part.number == 1 and part.wire == VARINT]
            sizes.append(size[0] if size else None)
    return name, tuple(sizes)
