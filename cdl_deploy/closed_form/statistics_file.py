"""Statistics ↔ one safetensors file, beside the model that the features came from.

Metadata: `cdl.statistics`, JSON as `Header` says. Arrays, for the base and for every addition that is kept apart
(`additions.0` is the oldest):

    base.counts   I64 [C]               base.means     [C, D]        base.spread   [C]
    base.scatter  [D (D+1) / 2]: the upper triangle of S, row by row
    base.overconfidence [2]; zeros where an older file has none
    base.teacher.means [C, C]           base.teacher.cross [D, C]    base.teacher.square [C]     if there is a teacher

in F64, which gives back every bit, or in F32, half the size, which costs the head its digits beyond 1e-5 or so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.errors import StatisticsError
from cdl_deploy.closed_form.features import FeatureMap
from cdl_deploy.closed_form.head_rule import HeadRule
from cdl_deploy.closed_form.history import History
from cdl_deploy.closed_form.safetensors_file import decode, encode
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.closed_form.teacher_sums import Floats, TeacherSums
from cdl_deploy.documents import parse_json
from cdl_deploy.errors import CdlError
from cdl_deploy.files import atomic_path
from cdl_deploy.regular_file import read_regular
from cdl_deploy.typed_json import typed
from cdl_deploy.version import __version__

FORMAT_VERSION = 1
KEY = "cdl.statistics"
MAX_BYTES = (1 << 31) - 1
"""Of a file that is read: sums over 16,000 features have half."""
ADVICE = "get it again from where it was exported, or gather the statistics anew"


@dataclass(frozen=True)
class Part:
    """The base or an addition."""

    classes: tuple[str, ...]
    """Names, in the order of the arrays' rows."""
    noise_images: int
    """`Statistics.noise_images`."""
    teacher: bool
    """Whether it has sums with a teacher."""


@dataclass(frozen=True)
class Header:
    """What the file says about its arrays."""

    format_version: int
    """`FORMAT_VERSION`; a reader refuses a newer one."""
    model: str
    """SHA-256 of the model, or of the weights, that the features were computed with."""
    dimension: int
    """D."""
    features: FeatureMap
    """What φ is."""
    rule: HeadRule
    """The head that was solved from the sums."""
    keep: int
    """`History.keep`."""
    parts: tuple[Part, ...]
    """The base, then the additions."""
    data_sha256: str
    """SHA-256 of all arrays' bytes: finds damage."""


@dataclass(frozen=True, eq=False)
class StoredStatistics:
    """What one file holds."""

    history: History
    """The sums."""
    features: FeatureMap
    """What φ is."""
    rule: HeadRule
    """The head that is solved from the sums."""
    model: str
    """SHA-256 of the model, or of the weights, that the features were computed with."""


def write_statistics(path: Path, stored: StoredStatistics, single: bool = False) -> str:
    """Write the file, atomically; returns its SHA-256. `single`: in float32, half the size."""
    content = encode_statistics(stored, single)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def encode_statistics(stored: StoredStatistics, single: bool = False) -> bytes:
    """The file's content: the same statistics give the same bytes."""
    history = stored.history
    arrays: dict[str, NDArray[Any]] = {}
    parts = []
    for place, item in enumerate((history.base, *history.additions)):
        arrays |= _arrays(item, _prefix(place), "<f4" if single else "<f8")
        parts.append(_part_header(item))
    digest = hashlib.sha256(b"".join(encode(arrays, {})[2:])).hexdigest()
    header = Header(
        FORMAT_VERSION,
        stored.model,
        history.base.dimension,
        stored.features,
        stored.rule,
        history.keep,
        tuple(parts),
        digest,
    )
    text = json.dumps(dataclasses.asdict(header), ensure_ascii=False, allow_nan=False)
    return b"".join(encode(arrays, {KEY: text}))


def part_digest(item: Statistics) -> str:
    """SHA-256 of the base or an addition as a file holds it: two devices that have the same one can tell."""
    header = json.dumps(dataclasses.asdict(_part_header(item)), ensure_ascii=False)
    return hashlib.sha256(b"".join(encode(_arrays(item, "", "<f8"), {KEY: header}))).hexdigest()


def _arrays(item: Statistics, name: str, kind: str) -> dict[str, NDArray[Any]]:
    dtype = np.dtype(kind)
    arrays: dict[str, NDArray[Any]] = {
        f"{name}.counts": item.counts,
        f"{name}.means": item.means.astype(dtype),
        f"{name}.spread": item.spread.astype(dtype),
        f"{name}.scatter": item.scatter[np.triu_indices(item.dimension)].astype(dtype),
        f"{name}.overconfidence": item.overconfidence.astype(dtype),
    }
    if item.teacher:
        for field in dataclasses.fields(TeacherSums):
            arrays[f"{name}.teacher.{field.name}"] = getattr(item.teacher, field.name).astype(dtype)
    return arrays


def _part_header(item: Statistics) -> Part:
    return Part(item.classes, item.noise_images, item.teacher is not None)


def read_statistics(path: Path, model: str | None = None) -> StoredStatistics:
    """Read and check the file; with `model`, a SHA-256, also that it belongs to that model.

    Raises `StatisticsError`, in one line, for a file that cannot be read, is none of ours, is damaged, is of a newer
    format, or belongs to another model.
    """
    try:
        content = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise StatisticsError(f"{path}: {error.strerror or error}; expected a file of statistics") from error
    return decode_statistics(content, path, model)


def decode_statistics(content: bytes, path: Path, model: str | None = None) -> StoredStatistics:
    """The same, of the file's content, where `path` is for messages alone."""
    try:
        stored = _decode(content)
    except _NewerError as error:
        raise StatisticsError(f"{path} {error}") from error
    except CdlError as error:
        why = str(error).removesuffix("; export the model again")
        raise StatisticsError(f"{path} holds no statistics that can be used: {why}; {ADVICE}") from error
    if model is not None and stored.model != model:
        raise StatisticsError(
            f"{path} holds statistics of model {stored.model[:12]}, expected those of {model[:12]}: use the file that "
            "was exported with this model, or gather the statistics anew"
        )
    return stored


class _NewerError(StatisticsError):
    """A file of a later format: nothing else is wrong with it."""


def _decode(content: bytes) -> StoredStatistics:
    arrays, metadata, data = decode(content)
    if KEY not in metadata:
        raise StatisticsError(f"its metadata have no {KEY}")
    header = _header(metadata[KEY])
    if hashlib.sha256(data).hexdigest() != header.data_sha256:
        raise StatisticsError("its arrays do not fit their digest: the file is damaged")
    items = tuple(_part(arrays, _prefix(place), part, header.dimension) for place, part in enumerate(header.parts))
    if arrays:
        raise StatisticsError(f"it has array '{next(iter(arrays))}', which no part of it names")
    history = History(items[0], items[1:], header.keep)
    _ = history.total  # refuses parts that do not fit each other
    return StoredStatistics(history, header.features, header.rule, header.model)


def _header(text: str) -> Header:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise StatisticsError(f"its {KEY} is not JSON") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise _NewerError(
            f"has statistics of format {version}, this cdl-deploy {__version__} reads up to {FORMAT_VERSION}: "
            "pip install -U cdl-deploy"
        )
    header: Header = typed(Header, values, KEY)
    if header.format_version < 1 or header.dimension < 1 or not header.parts:
        raise StatisticsError(
            f"its format is {header.format_version}, of {len(header.parts)} parts with {header.dimension} dimensions, "
            "expected at least 1 of each"
        )
    return header


def _part(arrays: dict[str, NDArray[Any]], name: str, part: Part, D: int) -> Statistics:
    """Take the part's arrays out of `arrays`, checked."""
    C = len(part.classes)
    if len(set(part.classes)) != C:
        raise StatisticsError(f"{name} names a class twice")
    counts = _take(arrays, f"{name}.counts", C)
    if counts.dtype != np.int64 or (counts < 0).any() or counts.sum() > part.noise_images:
        raise StatisticsError(f"{name}.counts are not numbers of images, at most {part.noise_images:,} together")
    packed = _floats(arrays, f"{name}.scatter", D * (D + 1) // 2)
    scatter = np.zeros((D, D))
    scatter[np.triu_indices(D)] = packed
    scatter.T[np.triu_indices(D)] = packed
    teacher = None
    if part.teacher:
        teacher = TeacherSums(
            _floats(arrays, f"{name}.teacher.means", C, C),
            _floats(arrays, f"{name}.teacher.cross", D, C),
            _floats(arrays, f"{name}.teacher.square", C),
        )
    sureness = f"{name}.overconfidence"
    return Statistics(
        part.classes,
        counts,
        _floats(arrays, f"{name}.means", C, D),
        _floats(arrays, f"{name}.spread", C),
        scatter,
        part.noise_images,
        teacher,
        _floats(arrays, sureness, 2) if sureness in arrays else np.zeros(2),
    )


def _floats(arrays: dict[str, NDArray[Any]], name: str, *shape: int) -> Floats:
    array = _take(arrays, name, *shape)
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise StatisticsError(f"array '{name}' holds values that are no finite numbers")
    return array.astype(np.float64)


def _take(arrays: dict[str, NDArray[Any]], name: str, *shape: int) -> NDArray[Any]:
    array = arrays.pop(name, None)
    if array is None or array.shape != shape:
        got = "is missing" if array is None else f"has shape {list(array.shape)}"
        raise StatisticsError(f"array '{name}' {got}, expected shape {list(shape)}")
    return array


def _prefix(place: int) -> str:
    return f"additions.{place - 1}" if place else "base"
