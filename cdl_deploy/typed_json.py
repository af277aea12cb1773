"""JSON values → annotated dataclasses, strictly: what is missing or of another type is an error naming its key."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from cdl_deploy.errors import BundleError


def short(value: object) -> str:
    """`value` on one line of at most 160 characters."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 160 else text[:157] + "..."


def typed(kind: Any, value: Any, where: str) -> Any:
    """`value`, parsed from JSON, as the annotated type `kind`; raises `BundleError` naming `where`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):  # only `X | None` is used
        return None if value is None else typed(arguments[0], value, where)
    if origin is tuple:
        if isinstance(value, list):
            if arguments[-1] is Ellipsis:
                return tuple(typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
            if len(value) == len(arguments):
                return tuple(
                    typed(t, v, f"{where}[{i}]") for i, (t, v) in enumerate(zip(arguments, value, strict=True))
                )
        raise BundleError(f"{where} is {short(value)}, expected {_wanted(kind)}; export the model again")
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    # Exact types: JSON's true is no number. 1e999 is JSON, but not a number that can be used.
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise BundleError(f"{where} is {short(value)}, expected {_wanted(kind)}; export the model again")
    return value


def _record(kind: Any, value: Any, where: str) -> Any:
    """A dataclass of type `kind` from a JSON object."""
    if not isinstance(value, dict):
        raise BundleError(f"{where} is {short(value)}, expected an object; export the model again")
    hints = typing.get_type_hints(kind)
    values = {}
    for item in dataclasses.fields(kind):
        if item.name in value:
            values[item.name] = typed(hints[item.name], value[item.name], f"{where}.{item.name}")
        elif item.default is dataclasses.MISSING:
            raise BundleError(f"{where}.{item.name} is missing; export the model again")
    try:
        return kind(**values)
    except BundleError as error:
        raise BundleError(f"{where}.{error}") from error


def _wanted(kind: Any) -> str:
    names = {str: "a string", int: "a whole number", float: "a number"}
    arguments = typing.get_args(kind)
    if not arguments:
        return names.get(kind, str(kind))
    many = "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
    return f"{many}, each {_wanted(arguments[0])}"
