"""What a model file would make onnxruntime read or build, seen before it is opened there: the protobuf message alone.

A tensor may say that its values lie in another file. onnxruntime 1.19 to 1.23 read whatever file that is: above the
model's folder, at an absolute path, or through a symbolic link. Models that need this check are rare: one without the
word `location` has no such tensor, and one without the operators of `_SIZES` nothing to measure.

Not the package onnx: a device does not install it. Field numbers: onnx.proto, https://github.com/onnx/onnx.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cdl_deploy.errors import BundleError
from cdl_deploy.regular_file import open_regular, read_regular
from cdl_deploy.runtime.protobuf import BYTES, VARINT, fields, packed_numbers
from cdl_deploy.typed_json import short

MAX_MODEL = (1 << 31) - 1
"""Bytes of a model file: ONNX is one protobuf message, which ends there."""
MAX_ELEMENTS = 1 << 28
"""Of a tensor that a graph makes of a constant shape: 1 GB as float32."""
MAX_GRAPHS = 16
"""Graphs within one another: the bodies of If and Loop."""

_SIZES = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Resize": 3}
"""Operators that make a tensor of any size, and which input says how large."""
_WORDS = (b"location", *(name.encode() for name in _SIZES))
_CHUNK = 1 << 22
_INT64 = 7


@dataclass
class _Graph:
    """Small whole numbers of a graph by name, and what is made of them."""

    numbers: dict[bytes, list[int]] = field(default_factory=dict)
    made: list[tuple[str, bytes]] = field(default_factory=list)
    """Operator, and the name of its size."""


def check_model_file(path: Path) -> None:
    """Raise `BundleError` for a model that reads files outside its folder, or makes something huge of a constant.

    Raises `OSError` for what is no regular file, or is larger than any model, and `MalformedMessageError` for damage
    that hides what a file would read; other damage is left to onnxruntime.
    """
    if path.suffix == ".ort":  # onnxruntime's own format, told by this suffix alone, names no other file
        with open_regular(path, MAX_MODEL):
            return
    if not _mentions(path, _WORDS):
        return
    _check_model(path, memoryview(read_regular(path, MAX_MODEL)))


def _mentions(path: Path, words: tuple[bytes, ...]) -> bool:
    keep = max(map(len, words)) - 1
    with open_regular(path, MAX_MODEL) as file:
        tail = b""
        while chunk := file.read(_CHUNK):
            if any(word in tail or word in chunk for word in words):
                return True
            if any(word in tail + chunk[:keep] for word in words):
                return True
            tail = chunk[-keep:]
    return False


def _check_model(path: Path, content: memoryview) -> None:
    for number, value in _messages(content):
        if number == 7:
            _check_graph(path, value, 1)
        elif number == 20:  # how it is trained: two graphs
            for inner, graph in _messages(value):
                if inner in (1, 2):
                    _check_graph(path, graph, 1)
        elif number == 25:  # a function of the model's own
            _check_function(path, value)


def _check_function(path: Path, content: memoryview) -> None:
    graph = _Graph()
    for number, value in _messages(content):
        if number == 7:
            _check_node(path, value, graph, 1)
        elif number == 11:
            _check_attribute(path, value, graph, 1)
    _check_sizes(path, graph)


def _check_graph(path: Path, content: memoryview, depth: int) -> None:
    if depth > MAX_GRAPHS:
        raise BundleError(
            f"{path}: graphs within graphs, more than {MAX_GRAPHS} deep: no classifier of images has them"
        )
    graph = _Graph()
    for number, value in _messages(content):
        if number == 1:
            _check_node(path, value, graph, depth)
        elif number == 5:
            _check_tensor(path, value, graph)
        elif number == 15:
            _check_sparse(path, value, graph)
    _check_sizes(path, graph)


def _check_node(path: Path, content: memoryview, graph: _Graph, depth: int) -> None:
    inputs: list[bytes] = []
    outputs: list[bytes] = []
    operator = ""
    constants = _Graph()
    for number, value in _messages(content):
        if number == 1:
            inputs.append(bytes(value))
        elif number == 2:
            outputs.append(bytes(value))
        elif number == 4:
            operator = bytes(value).decode("utf-8", "replace")
        elif number == 5:
            _check_attribute(path, value, constants, depth)
    if operator == "Constant" and len(outputs) == 1:
        for numbers in constants.numbers.values():
            graph.numbers[outputs[0]] = numbers
    place = _SIZES.get(operator)
    if place is not None and len(inputs) > place:
        graph.made.append((operator, inputs[place]))


def _check_attribute(path: Path, content: memoryview, graph: _Graph, depth: int) -> None:
    for number, value in _messages(content):
        if number in (5, 10):
            _check_tensor(path, value, graph)
        elif number in (6, 11):
            _check_graph(path, value, depth + 1)
        elif number in (22, 23):
            _check_sparse(path, value, graph)


def _check_sparse(path: Path, content: memoryview, graph: _Graph) -> None:
    for number, value in _messages(content):
        if number in (1, 2):
            _check_tensor(path, value, graph)


def _check_tensor(path: Path, content: memoryview, graph: _Graph) -> None:
    kind, name, raw, apart = 0, b"", memoryview(b""), False
    numbers: list[int] = []
    place: dict[bytes, bytes] = {}
    for number, wire, value in fields(content):
        if wire == VARINT and not isinstance(value, memoryview):
            if number == 2:
                kind = value
            elif number == 14:
                apart = apart or value != 0
            elif number == 7 and len(numbers) < 8:
                numbers.append(value)
        elif wire == BYTES and isinstance(value, memoryview):
            if number == 8:
                name = bytes(value)
            elif number == 9:
                raw = value
            elif number == 7 and len(value) <= 80:
                numbers += packed_numbers(value)
            elif number == 13:
                pair = {inner: bytes(text) for inner, text in _messages(value)}
                place[pair.get(1, b"")] = pair.get(2, b"")
    if apart or place:
        _check_place(path, name, place)
    elif kind == _INT64:
        if 0 < len(raw) <= 64 and len(raw) % 8 == 0:
            numbers = [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]
        if 0 < len(numbers) <= 8:
            graph.numbers[name] = numbers


def _check_place(path: Path, name: bytes, place: dict[bytes, bytes]) -> None:
    """The values of a tensor lie in a regular file in the model's folder, or below it; nowhere else."""
    tensor, location = (short(text.decode("utf-8", "replace")) for text in (name, place.get(b"location", b"")))
    told = f"{path}: the values of tensor '{tensor}' are to be read from '{location}'"
    given = os.fsdecode(place.get(b"location", b""))
    if not given or "\x00" in given or os.path.isabs(given) or ".." in given.replace("\\", "/").split("/"):
        raise BundleError(f"{told}, expected a file in the model's own folder; nothing was read")
    file = os.path.realpath(path.parent / given)
    # A model that is itself a link, as in a cache of models, has its data beside what the link names.
    folders = {os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))}
    if not any(os.path.commonpath([file, folder]) == folder for folder in folders):
        raise BundleError(f"{told}, a link out of the model's folder; nothing was read")
    try:
        with open_regular(Path(file)):
            pass
    except OSError as error:
        raise BundleError(f"{told}: {error.strerror or error}; copy it beside the model") from None


def _check_sizes(path: Path, graph: _Graph) -> None:
    for operator, name in graph.made:
        count = math.prod(abs(size) for size in graph.numbers.get(name, ()))
        if count > MAX_ELEMENTS:
            raise BundleError(
                f"{path}: operator {operator} would make a tensor of {count:,} numbers, expected at most "
                f"{MAX_ELEMENTS:,}: this is no classifier of images"
            )


def _messages(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of every field that has bytes: texts and messages."""
    for number, wire, value in fields(content):
        if wire == BYTES and isinstance(value, memoryview):
            yield number, value
