"""JSON values → annotated dataclasses, strictly: what is missing or of another type is an error naming its place.

Not msgspec or cattrs: a device's install would carry one more compiled package, or one more dependency, for this page.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
import typing
from typing import Any

from cdl_deploy.errors import BundleError, CdlError
from cdl_deploy.printable import printable

NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}


class MisfitError(ValueError):
    """A value that is missing, or that its type cannot have."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where} {problem}")
        self.where, self.problem = where, problem

    @property
    def missing(self) -> bool:
        """Whether there is no value at all."""
        return self.problem == MISSING


class RefusedError(ValueError):
    """Values of the right types that the dataclass itself refuses together."""

    def __init__(self, where: str, error: CdlError) -> None:
        super().__init__(f"{where}.{error}" if where else str(error))


MISSING = "is missing"


_few = reprlib.Repr()
_few.maxlevel = 6
_few.maxlist = _few.maxtuple = _few.maxdict = 40
_few.maxstring = _few.maxlong = _few.maxother = 200
"""Looks at no more of a value than can be shown: a few hundred bytes of YAML may stand for gigabytes of text."""


def short(value: object) -> str:
    """`value` on one line of at most 160 characters."""
    try:
        text = value[:1000] if isinstance(value, str) else _few.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = "a number of thousands of digits"
    text = printable(" ".join(text.split()))
    return text if len(text) <= 160 else text[:157] + "..."


def typed(kind: Any, value: Any, where: str) -> Any:
    """`value`, a part of a bundle, as the annotated type `kind`; raises `BundleError` naming `where`."""
    try:
        return convert(kind, value, where)
    except MisfitError as error:
        raise BundleError(f"{error}; export the model again") from None
    except RefusedError as error:
        raise BundleError(str(error)) from error


def convert(kind: Any, value: Any, where: str, exact: bool = False) -> Any:
    """`value`, parsed from JSON, as the annotated type `kind`; raises `MisfitError` or `RefusedError` naming `where`.

    Whole numbers count as numbers; with `exact` they stay whole, so that the value is written as it was read.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):  # only `X | None` is used
        return None if value is None else convert(arguments[0], value, where, exact)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise MisfitError(where, f"is {short(value)}, expected one of {', '.join(arguments)}")
    if origin in (tuple, list):
        return origin(_items(kind, value, where, exact))
    if origin is dict:
        if not isinstance(value, dict):
            raise MisfitError(where, f"is {short(value)}, expected an object")
        for name in value:
            convert(arguments[0], name, f"a name in {where}", exact)
        return {name: convert(arguments[1], item, _within(where, name), exact) for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where, exact)
    if kind is float and type(value) is int and abs(value) < 1 << 63:  # larger ones overflow sooner or later
        return value if exact else float(value)
    # Exact types: JSON's true is no number. 1e999 is JSON, but not a number that can be used.
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise MisfitError(where, f"is {short(value)}, expected {_wanted(kind)}")
    return value


def _items(kind: Any, value: Any, where: str, exact: bool) -> list[Any]:
    """The items of a list or a tuple."""
    arguments = typing.get_args(kind)
    kinds: list[Any] = list(arguments)
    if isinstance(value, list) and (typing.get_origin(kind) is list or arguments[-1] is Ellipsis):
        if arguments[0] in (str, int, bool) and all(type(item) is arguments[0] for item in value):
            return value  # a model may name millions of classes
        kinds = [arguments[0]] * len(value)
    if not isinstance(value, list) or len(value) != len(kinds):
        raise MisfitError(where, f"is {short(value)}, expected {_wanted(kind)}")
    return [convert(t, v, f"{where}[{i}]", exact) for i, (t, v) in enumerate(zip(kinds, value, strict=True))]


def _record(kind: Any, value: Any, where: str, exact: bool) -> Any:
    """A dataclass of type `kind` from a JSON object."""
    if not isinstance(value, dict):
        raise MisfitError(where, f"is {short(value)}, expected an object")
    hints = typing.get_type_hints(kind)
    values = {}
    for item in dataclasses.fields(kind):
        if item.name in value:
            values[item.name] = convert(hints[item.name], value[item.name], _within(where, item.name), exact)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise MisfitError(_within(where, item.name), MISSING)
    try:
        return kind(**values)
    except CdlError as error:
        raise RefusedError(where, error) from error


def _within(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wanted(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict or dataclasses.is_dataclass(kind):
        return "an object"
    if not arguments:
        return NAMES.get(kind, str(kind))
    many = "a list" if origin is list or arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
    return f"{many}, each {_wanted(arguments[0])}"
