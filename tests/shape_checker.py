"""The checker behind tests/conftest.py: beartype, with an int where a float is asked for, as PEP 484 has it.

What jaxtyping checks, in half of its time: it binds the arguments of every call, and checks them once more with what
is returned. Here each is checked once, and what is called for it is written when a function is first called: most never
are, in one process.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from types import CodeType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError
from jaxtyping import config as jaxtyping_config
from jaxtyping._decorator import _destring_annotation, _make_fn_with_signature
from jaxtyping._storage import pop_shape_memo, push_shape_memo

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_in_full = jaxtyping.jaxtyped
_made: dict[CodeType, tuple[Callable[..., object], Callable[[Any], object]]] = {}
"""The checks of a function's arguments and of what it returns, also of one that is defined in each call of another."""


def jaxtyped(function: Any = None, *, typechecker: object = None) -> Any:
    """In place of jaxtyping's own decorator; the checker is always the one above."""
    if function is None:
        return jaxtyped
    if not inspect.isclass(function):
        return _with_checks(function)
    if dataclasses.is_dataclass(function) and "__init__" in vars(function):
        function.__init__ = _with_checks(function.__init__)  # type: ignore[method-assign]
    return function


def _with_checks(function: Callable[..., Any]) -> Callable[..., Any]:
    of_arguments: Callable[..., object] | None = None
    of_result: Callable[[Any], object]

    @wraps(function)
    def with_checks(*arguments: Any, **named: Any) -> Any:
        nonlocal of_arguments, of_result
        if jaxtyping_config.jaxtyping_disable:
            return function(*arguments, **named)
        if of_arguments is None:
            of_arguments, of_result = _checks(function)
        push_shape_memo({})
        try:
            try:
                of_arguments(*arguments, **named)
            except (BeartypeCallHintViolation, TypeError):
                return _in_full(function, typechecker=checked)(*arguments, **named)  # says what is wrong, and raises
            result = function(*arguments, **named)
            try:
                of_result(result)
            except Exception as error:
                name = f"{function.__module__}.{function.__qualname__}"
                raise TypeCheckError(f"Type-check error whilst checking the return value of {name}: {error}") from error
            return result
        finally:
            pop_shape_memo()

    return with_checks


def _checks(function: Callable[..., Any]) -> tuple[Callable[..., object], Callable[[Any], object]]:
    code = function.__code__
    if code not in _made:
        signature, names = inspect.signature(function), function.__globals__
        parameters = [
            it.replace(annotation=_destring_annotation(it.annotation, names)) for it in signature.parameters.values()
        ]
        returned = inspect.Signature([], return_annotation=_destring_annotation(signature.return_annotation, names))
        as_named = (function.__name__, function.__qualname__, function.__module__)
        of_arguments = _make_fn_with_signature(
            *as_named, inspect.Signature(parameters, return_annotation=Any), output=False
        )
        of_result, its_name = _make_fn_with_signature(*as_named, returned, output=True)
        check = checked(of_result)
        _made[code] = checked(of_arguments), lambda result: check(**{its_name: result})
    return _made[code]
