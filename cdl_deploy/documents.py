"""JSON and YAML that somebody else wrote, within limits: how deep, how large once aliases are followed.

Both raise `ValueError`, in one line, before anything is built that could be too large.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

MAX_DEPTH = 64
"""Of lists and objects within one another; what we write has at most eight."""
MAX_NODES = 1_000_000
"""Values of a YAML document, those behind an alias counted as often as they are named."""
MAX_DIGITS = 100
"""Of a whole number: a float still holds one of these."""

_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises `ValueError` for what is none, NaN, huge numbers, and values nested too deep."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    _check_depth(text)
    return json.loads(text, parse_constant=_refuse_constant, parse_int=_whole_number)


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _TOKENS.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        elif first != '"':
            depth -= 1


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _whole_number(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits, expected at most {MAX_DIGITS}")
    return int(digits)


def parse_yaml(text: str, scalars_as_text: bool = False) -> Any:
    """The value of a YAML text; on request with every scalar as it is written: 010, no and 12:30 are no numbers.

    Raises `ValueError` for what is none, and for what is nested or repeated too much."""
    import yaml

    try:
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader))
        return yaml.load(text, Loader=yaml.BaseLoader if scalars_as_text else yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _check_events(events: Iterator[Any]) -> None:
    """Count values, and how deep they are, with every alias counted as what it stands for."""
    import yaml

    known: dict[str, tuple[int, int]] = {}  # values and height of what each anchor names
    open_values: list[list[Any]] = [[0, 0, None]]  # values, height, anchor; the first is the document's
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            open_values.append([1, 1, event.anchor])
            count, height = 0, 0
        elif isinstance(event, yaml.CollectionEndEvent):
            count, height, anchor = open_values.pop()
            if anchor is not None:
                known[anchor] = count, height
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in known:
                raise ValueError(f"alias '{str(event.anchor)[:40]}' stands for what it is in, or for nothing")
            count, height = known[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count, height = 1, 0
            if event.anchor is not None:
                known[event.anchor] = count, height
        else:
            continue
        within = open_values[-1]
        within[0], within[1] = within[0] + count, max(within[1], height + 1)
        if len(open_values) - 1 + height > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        if sum(value[0] for value in open_values) > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES:,} values, those behind aliases counted each time")
