"""The checker behind tests/conftest.py: beartype, with an int where a float is asked for, as PEP 484 has it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its checks, which are written when it is first called: most never are, in one process."""
    made: Callable[..., Any] | None = None

    @wraps(function)
    def first_made(*arguments: Any, **named: Any) -> Any:
        nonlocal made
        if made is None:
            made = _checked(function)
        return made(*arguments, **named)

    return first_made
