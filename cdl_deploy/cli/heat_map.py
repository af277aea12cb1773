"""Which task's prompts were selected, in letters: as wide as the terminal allows, and readable without colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from cdl_deploy.evaluation.selection import PromptUse
from cdl_deploy.printable import printable

SHADES = "·░▒▓█"
ASCII_SHADES = ".:+#@"
LABEL = 24
CELL = 5
"""Letters of a cell with a number: `[100]`."""
DARK, LIGHT = (0, 34, 78), (254, 232, 56)
"""The ends of the colour scale: it rises in lightness."""


@dataclass
class HeatMap:
    """A row a task or class of the images, a column a task of the prompts, and the share of an image's own task."""

    selection: PromptUse

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = self.selection.rows
        tasks = max(len(row.scores) for row in rows if row.scores is not None)
        label = min(LABEL, max(cell_len(printable(row.name)) for row in rows))
        room = options.max_width - label - 1 - len("   own") - 1
        numbers = CELL * tasks <= room
        together = 1 if numbers else -(-tasks // max(room, 1))  # so many tasks share a column
        highest = max(max(_columns(row.scores, together)) for row in rows if row.scores is not None)
        yield self._header(label, tasks, together, numbers)
        for row in rows:
            line = Text(_fitted(row.name, label, options.ascii_only) + " ", no_wrap=True)
            if row.scores is None:
                line.append("no images", style="dim")
            else:
                own = (row.task - 1) // together
                for column, value in enumerate(_columns(row.scores, together)):
                    line.append_text(
                        _number(value, column == own, highest)
                        if numbers
                        else _shade(value, highest, options.ascii_only)
                    )
                line.append(f" {row.scores[row.task - 1]:5.1f}")
            yield line
        yield self._legend(numbers, together, highest, options.ascii_only)

    def _header(self, label: int, tasks: int, together: int, numbers: bool) -> Text:
        columns = -(-tasks // together)
        if numbers:
            marks = "".join(f"{task:^{CELL}}" for task in range(1, tasks + 1))
        else:  # a task's number begins above its column
            marks = ""
            for column in [0, *range(9, columns, 10)]:
                number = str(column * together + 1)
                if column == 0 or column + len(number) <= columns:
                    marks = marks.ljust(column) + number
            marks = marks.ljust(columns)
        return Text(f"{'':{label}} {marks}   own", style="bold", no_wrap=True)

    def _legend(self, numbers: bool, together: int, highest: float, ascii_only: bool) -> Text:
        own = "own: of the task that taught them"
        if numbers:
            text = f"columns: tasks of the prompts; percent, [images' own task]; {own}"
        else:
            shades = ASCII_SHADES if ascii_only else SHADES
            bounds = ", ".join(
                f"{shade} from {highest * (index + 0.5) / len(shades):.0f}" for index, shade in enumerate(shades)
            )
            wide = f" by {together}" if together > 1 else ""
            text = f"columns: tasks of the prompts{wide}; percent: {bounds}; {own}"
        return Text(text, style="dim")


def _columns(scores: Sequence[float], together: int) -> list[float]:
    """Sums of `together` neighbours."""
    return [sum(scores[start : start + together]) for start in range(0, len(scores), together)]


def _number(value: float, own: bool, highest: float) -> Text:
    text = f"{value:.0f}"
    cell = f"[{text}]" if own else f" {text} "
    share = value / highest if highest else 0.0
    back = ",".join(str(round(low + share * (high - low))) for low, high in zip(DARK, LIGHT, strict=True))
    return Text(f"{cell:^{CELL}}", style=Style.parse(f"{'black' if share > 0.5 else 'white'} on rgb({back})"))


def _shade(value: float, highest: float, ascii_only: bool) -> Text:
    shades = " " + (ASCII_SHADES if ascii_only else SHADES)
    return Text(shades[min(len(shades) - 1, int(value / highest * (len(shades) - 1) + 0.5))] if highest else " ")


def _fitted(name: str, width: int, ascii_only: bool) -> str:
    name = printable(name)
    if cell_len(name) <= width:
        return set_cell_size(name, width)
    end = ".." if ascii_only else "…"
    return set_cell_size(name, width - len(end)) + end
