"""Everything the command line says, on any terminal: names of others are shown, never obeyed.

Lines and tables go through `echo`, `echo_json…` and `make_console`, and nothing else writes to a terminal: control
characters are escaped, what an encoding does not have is replaced, square brackets are brackets, and a terminal too
narrow for a table gets it as wide as it must be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from cdl_deploy.printable import json_printable, printable

if TYPE_CHECKING:
    from rich.console import Console

WORD = 12
"""Letters of a long word, in a column that may be broken."""


def echo(text: str, err: bool = False) -> None:
    """Lines of text for people."""
    _echo(printable(text, lines=True), err)


def echo_json(value: Any) -> None:
    """A value as indented JSON, for programs, and for whoever looks on."""
    echo_json_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def echo_json_text(text: str) -> None:
    """The same, of text that is JSON already."""
    _echo(json_printable(text), err=False)


def _echo(text: str, err: bool) -> None:
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    typer.echo(text, err=err)


def make_console(stderr: bool = False, width: int | None = None) -> Console:
    """Where tables go. Text is text: no markup, no emoji, no highlighting."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            if width is None:
                self.width = max(self.width, *(_least_width(self, item) for item in objects or ("",)))
            super().print(*objects, **options)

        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(_plain(segment.text), segment.style)

    stream = sys.stderr if stderr else sys.stdout
    ascii_only = not _encodes(stream, "│…–✓")

    def _plain(text: str) -> str:
        text = printable(text, lines=True)
        if ascii_only and not _encodes(stream, text):
            encoding = stream.encoding
            text = text.translate(_IN_ASCII).encode(encoding, "replace").decode(encoding)
        return text

    return Plain(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def _least_width(console: Console, item: Any) -> int:
    """Columns that a table, or the widest of several, needs for its numbers to stay whole."""
    from rich.cells import cell_len
    from rich.console import Group
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    if isinstance(item, Group):
        return max((_least_width(console, inner) for inner in item.renderables), default=1)
    if not isinstance(item, Table):
        return 1
    total = 1 + 3 * len(item.columns)  # a line and a space on either side
    for column in item.columns:
        cells = [*([column.header] if item.show_header else []), *column.cells]
        cells += [column.footer] if item.show_footer else []
        texts = [cell.plain if isinstance(cell, Text) else cell for cell in cells]
        if column.no_wrap:
            total += max((cell_len(text) for text in texts if isinstance(text, str)), default=1)
        else:
            wide = console.options.update(width=1000)
            least = (Measurement.get(console, wide, text).minimum for text in texts)
            total += min(max(column.min_width or 1, *least), WORD)
    return total


_IN_ASCII = str.maketrans({"…": "~", "–": "-", "−": "-", "×": "x", "→": ">", "±": "~", "·": "."})


def _encodes(stream: Any, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
