"""safetensors files without the safetensors package, for machines that have only what the base install brings.

    header length  8 bytes, unsigned, little-endian
    header         UTF-8 JSON: name → {dtype, shape, data_offsets}, and `__metadata__`, strings by name
    data           all arrays, little-endian, row by row, without gaps

Source: https://github.com/huggingface/safetensors, "Format". Only the types that statistics need are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.errors import StatisticsError
from cdl_deploy.documents import parse_json
from cdl_deploy.typed_json import short

TYPES: dict[str, np.dtype[Any]] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
MAX_HEADER = 100_000_000
"""The format's own limit."""


def encode(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> list[bytes]:
    """The file's content, in pieces: the same arguments give the same bytes."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    pieces: list[bytes] = []
    end = 0
    for name, array in arrays.items():
        kind = next(kind for kind, dtype in TYPES.items() if dtype == array.dtype)
        pieces.append(array.astype(TYPES[kind], copy=False).tobytes())
        start, end = end, end + len(pieces[-1])
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *pieces]


def decode(content: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str], memoryview]:
    """Arrays (which cannot be written to), metadata and data. `StatisticsError` says what is wrong, without a path."""
    count = int.from_bytes(content[:8], "little")
    if len(content) < 10 or not 2 <= count <= MAX_HEADER or content[8:9] != b"{":
        raise StatisticsError("it is no safetensors file")
    if 8 + count > len(content):
        raise StatisticsError(f"it ends after {len(content):,} bytes, within its header: the file is not complete")
    try:
        header = parse_json(content[8 : 8 + count])
    except ValueError as error:
        raise StatisticsError("it is no safetensors file: its header is not JSON") from error
    data = memoryview(content)[8 + count :]
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise StatisticsError("its metadata are not strings by name")
    arrays = {}
    end = 0
    for name, entry in header.items():
        dtype, shape, start, following = _entry(name, entry)
        size = math.prod(shape) * dtype.itemsize
        if start != end or following - start != size:
            raise StatisticsError(
                f"array '{short(name)}' of shape {short(shape)} has bytes {start:,} to {following:,}, expected "
                f"{end:,} to {end + size:,}"
            )
        end = following
        if end > len(data):
            break
        arrays[name] = np.frombuffer(data[start:end], dtype=dtype).reshape(shape)
    if end != len(data):
        raise StatisticsError(
            f"it has {len(data):,} bytes of arrays, expected {'at least ' if end > len(data) else ''}{end:,}: the file "
            "is not complete, or not as it was written"
        )
    return arrays, metadata, data


def _entry(name: str, entry: Any) -> tuple[np.dtype[Any], list[int], int, int]:
    if isinstance(entry, dict):
        kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if isinstance(kind, str) and kind in TYPES and _sizes(shape) and _sizes(offsets) and len(offsets) == 2:
            return TYPES[kind], shape, offsets[0], offsets[1]
    raise StatisticsError(f"array '{short(name)}' is {short(entry)}, expected {', '.join(TYPES)} with shape and place")


def _sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)
