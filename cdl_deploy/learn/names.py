"""Names of classes that somebody types on a device: is it a known class, a new one, or a known one misspelt?"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from cdl_deploy.data.class_names import seen_as
from cdl_deploy.learn.errors import LearnError


def check_names(names: Iterable[str], known: Sequence[str], as_new: bool) -> None:
    """Raise `LearnError` for a name that cannot be one, and for a new one that differs from a known one in its letters'
    case, spaces or accents' encoding alone, unless `as_new`."""
    plain = {_plain(name): name for name in known}
    same = set(known)
    for name in names:
        if not name.strip() or not name.isprintable():
            raise LearnError(f"a class is called {name!r}, expected letters, digits or other signs that can be shown")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise LearnError(f"the class name {name!a} is not valid UTF-8: give it another name") from None
        other = plain.get(_plain(name))
        if name not in same and other is not None and not as_new:
            raise LearnError(
                f"class '{name}' is new, and the model knows '{other}', which differs in spelling alone: "
                f"call it '{other}' to add to that class, or say --as-new"
            )
        plain.setdefault(_plain(name), name)
        same.add(name)


def _plain(name: str) -> str:
    return "".join(letter for letter in seen_as(unicodedata.normalize("NFKC", name)) if letter not in " _-")
