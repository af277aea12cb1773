"""Files made worse, the same way for the same number: bits, pieces, and values that no honest program writes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1e308, 10**30, 30_000, "", "x" * 2_000, "../../x", "\x1b[2J\n\u202e", "=1+1", [], {},
    [[]], {"a": {"b": []}}, ["x"] * 50,
)  # fmt: skip
"""In place of any value of a JSON document."""
TEXTS = (
    "NaN", "1e999", "[" * 200 + "]" * 200, '{"a":' * 200 + "1" + "}" * 200, "9" * 5_000, '"\\ud800"', "'", "/*", "\0",
)  # fmt: skip
"""In place of any piece of a text."""
YAML = ("&a [*a]", "!!python/name:os.system", "- " * 100 + "x", "? [a]\n: b", "&a [1]\nb: [*a, *a]", "{<<: *none}")


def flip(content: bytes, rng: random.Random) -> bytes:
    """One to eight bits."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    """An interrupted transfer."""
    return content[: rng.randrange(len(content))]


def overwrite(content: bytes, rng: random.Random) -> bytes:
    """A block of zeros, ones or noise."""
    at, size = rng.randrange(len(content)), rng.choice((1, 4, 16, 64, 512))
    block = rng.choice((b"\0" * size, b"\xff" * size, rng.randbytes(size)))
    return content[:at] + block + content[at + size :]


def insert(content: bytes, rng: random.Random) -> bytes:
    """Noise, or a piece of the same file again."""
    at, start = rng.randrange(len(content)), rng.randrange(len(content))
    return content[:at] + rng.choice((rng.randbytes(8), content[start : start + rng.randint(1, 200)])) + content[at:]


def drop(content: bytes, rng: random.Random) -> bytes:
    """A piece from the middle."""
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.randint(1, 64) :]


def number(content: bytes, rng: random.Random) -> bytes:
    """The largest, or a negative, number where a size may stand."""
    at = rng.randrange(len(content))
    most = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\xff\xff\xff\xff\x0f"))
    return content[:at] + most + content[at + 4 :]


BYTES: tuple[Damage, ...] = (flip, cut, overwrite, insert, drop, number)
"""For files of any kind."""


def value_of_json(content: bytes, rng: random.Random) -> bytes:
    """One value of the document becomes another, is dropped, or gets a neighbour."""
    document = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def look(value: Any) -> None:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            look(value[key])

    look(document)
    if not places:
        return b"{}"
    holder, key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder["unknown"] = rng.choice(VALUES)
    else:
        holder[key] = rng.choice(VALUES)
    return json.dumps(document).encode()


def piece_of_text(content: bytes, rng: random.Random) -> bytes:
    """A text that parsers find hard, in the middle."""
    at = rng.randrange(len(content))
    return content[:at] + rng.choice(TEXTS).encode() + content[at + rng.choice((0, 1, 8)) :]


def piece_of_yaml(content: bytes, rng: random.Random) -> bytes:
    """An alias, a tag, or a list within lists."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = lines[at].split(b":")[0] + b": " + rng.choice(YAML).encode() + b"\n"
    return b"".join(lines)
