"""The live line of `cdl train`, as wide as the terminal allows: the same facts, in fewer letters where it is narrow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

SHORT = {
    "cross_entropy": "ce",
    "distillation": "kd",
    "feature": "feat",
    "orthogonality": "orth",
    "query_regulariser": "query",
}
"""Loss terms where there is no room for their names; others are cut to their first letters."""
BAR = 16
ASCII = str.maketrans("━╺", "#-")


@dataclass
class ProgressLine:
    """What the line says, and how it is drawn: never wider than the terminal, and steady from one frame to the next."""

    doing: str = "preparing"
    """`checking images`, `student: view 1`, or `testing the student`."""
    task: str = ""
    """`3/10`."""
    role: str = ""
    epoch: str = ""
    """`12/20`."""
    share: float | None = None
    """Of the stage at hand, between 0 and 1."""
    speed: float | None = None
    """Images a second."""
    left: float | None = None
    """Seconds."""
    terms: Mapping[str, float] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width - 1  # the last column would make some terminals wrap
        text = self.fitted(wide, options.ascii_only)
        text.truncate(wide, overflow="ellipsis")
        yield text

    def fitted(self, wide: int, ascii_only: bool = False) -> Text:
        """The longest form that fits; the shortest where none does. Numbers keep their width, so the line its form."""
        forms = [
            self._form(bar=BAR, names=True),
            self._form(names=True),
            self._form(),
            self._form(words=False),
            self._form(words=False, terms=False),
        ]
        if ascii_only:
            forms[0] = Text(forms[0].plain.translate(ASCII))
        return next((form for form in forms if cell_len(form.plain) <= wide), forms[-1])

    def _form(self, bar: int = 0, names: bool = False, words: bool = True, terms: bool = True) -> Text:
        """With a bar, whole names of loss terms, whole words, every loss term; or with less."""
        task = f"{'task ' if words else ''}{self.task} " if self.task else ""
        parts = [Text(f"{task}{self.doing or self.role}", style="bold")]
        if self.epoch:
            parts.append(Text(f"{'epoch' if words else 'ep'} {self.epoch}"))
        if self.share is not None and bar:
            done = round(self.share * bar)
            parts.append(Text.assemble(("━" * done, "bar.complete"), ("╺" * (bar - done), "bar.back")))
        elif self.share is not None and words:
            parts.append(Text(f"{100 * self.share:3.0f} %"))
        if self.task:  # a dash holds the place of what is not known yet
            speed = "-" if self.speed is None else f"{self.speed:.0f}"
            parts.append(Text(f"{speed:>5} images/s" if words else f"{speed:>4}/s"))
            left = "-" if self.left is None else clock(self.left)
            parts.append(Text(f"{left:>7} left", style="progress.remaining"))
        if self.terms and terms:
            short = {_short(name): value for name, value in self.terms.items()}
            shown = self.terms if names else short
            parts.append(Text(" ".join(f"{n} {number(v, 3 if words else 2)}" for n, v in shown.items()), style="dim"))
        elif self.terms:
            parts.append(Text(f"loss {number(sum(self.terms.values()), 2)}", style="dim"))
        return Text("  " if words else " ").join(parts)


def clock(seconds: float) -> str:
    """`1:05`, `2:01:05` or `3 d 02 h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24} d {hours % 24:02d} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(value: float, digits: int) -> str:
    """`value` in `digits` + 2 characters, so that what follows it stays where it is."""
    for places in range(digits, 0, -1):
        text = f"{value:.{places}f}"
        if len(text) <= digits + 2:
            return text
    return f"{value:.0f}".rjust(digits + 2) if abs(value) < 10 ** (digits + 2) else f"{value:.0e}"


def _short(name: str) -> str:
    return SHORT.get(name, name.split("_")[0][:4])
