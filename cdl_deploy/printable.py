"""Text of others on its way to a person: control characters are shown, not obeyed.

A class or a file may have any name: one with an escape sequence could clear a terminal or hide what came before, one
with a line's end looks like two rows, one with right-to-left marks like another name.
"""

from __future__ import annotations

import re
import shlex
import unicodedata

_CONTROL = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\udc80-\udc9f"
_IN_A_LINE = re.compile(f"[{_CONTROL}]")
_IN_LINES = re.compile(f"(?!\n)[{_CONTROL}]")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, lines: bool = False) -> str:
    """`text` with every character escaped (`\\x1b`) that does anything but show; with `lines`, ends of lines stay."""
    return (_IN_LINES if lines else _IN_A_LINE).sub(_escaped, text)


def json_printable(text: str) -> str:
    """JSON text with the control characters escaped that JSON allows as they are; it says the same."""
    return _IN_LINES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def figure_text(text: str) -> str:
    """`text` as matplotlib is to draw it: no formulas between dollar signs."""
    return printable(text).replace("$", r"\$")


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_FORMULA_MARKED = re.compile(r"'+[=+\-@\t\r]")


def no_formula(value: object) -> object:
    """A cell of CSV that no spreadsheet takes for a formula: one that begins like it gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def as_it_was(cell: str) -> str:
    """The text of which `no_formula` made this cell."""
    return cell[1:] if _FORMULA_MARKED.match(cell) else cell


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if unicodedata.category(character) == "Cs":  # a byte of a name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def as_typed(path: object) -> str:
    """A path as it is typed in a shell, in quotes where it has spaces: for commands that are offered to be copied."""
    return shlex.quote(str(path))
