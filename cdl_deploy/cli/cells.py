"""What goes into one cell of a table: long names on one line, the end of a path, a duration, a mean with its spread."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

from cdl_deploy.printable import printable


class OneLine:
    """Text that takes what room there is, and ends in … where that is too little.

    A column of these, not `no_wrap`, is the one that a narrow terminal squeezes.
    """

    def __init__(self, text: str, least: int = 12) -> None:
        self.text, self.least = printable(text), least

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        length = cell_len(self.text)
        return Measurement(min(self.least, length), length)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = Text(self.text, no_wrap=True, overflow="ellipsis", end="")
        text.truncate(options.max_width, overflow="ellipsis")
        yield text


def named(names: Sequence[str]) -> OneLine:
    """Names; how many comes first where they are many."""
    return OneLine((f"{len(names)}: " if len(names) > 4 else "") + ", ".join(names))


def ending(text: str, most: int) -> str:
    """At most `most` characters from the end of `text`: paths tell most there."""
    text = printable(text)
    return text if len(text) <= most else "…" + text[-most + 1 :]


def duration(seconds: float) -> str:
    """`5.2 s`, `1:05` minutes, `2:01:05` hours or `3 d 02:01`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def mean_std(values: Sequence[float]) -> str:
    """`91.2 ± 0.3`, the sample's standard deviation (n − 1); the mean alone for one value."""
    if not values:
        return "–"
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
