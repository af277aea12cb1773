"""Names of classes as people see them: one spelling for one name, and names that nobody could tell apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC), however a file system or a keyboard spells it."""
    return unicodedata.normalize("NFC", name)


def is_composed(name: str) -> bool:
    """Whether `composed` leaves it as it is."""
    return unicodedata.is_normalized("NFC", name)


def seen_as(name: str) -> str:
    """The same for names that differ in case, in spaces at their ends or in a row, or in characters without a shape."""
    shown = "".join(letter for letter in composed(name).casefold() if unicodedata.category(letter) != "Cf")
    return " ".join(shown.split())


def known_as(name: str, known: Sequence[str]) -> str:
    """The one of `known` that differs in its encoding alone; `name` in composed form where there is none."""
    if name in known:
        return name
    return next((other for other in known if composed(other) == composed(name)), composed(name))
