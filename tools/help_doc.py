"""Write docs/help.md: what `--help` prints for every command, so that the page cannot go stale.

python tools/help_doc.py           write it
python tools/help_doc.py --check   exit 1 if it is out of date; a test does this
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from cdl_deploy.cli import app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "help.md"
WIDTH = 98  # of a terminal with 100 columns, as typer leaves two free
INTRODUCTION = """\
# Every command and its options

Written by `python tools/help_doc.py` from `--help`; a test fails when the two differ.
"""


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every command, groups before what they hold, in the order of the help; `()` is `cdl` itself."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from commands(child, (*path, name))


def render() -> str:
    """The whole page."""
    runner = CliRunner(env={"NO_COLOR": "1"})
    sections = [INTRODUCTION]
    for path in commands(get_command(app)):
        result = runner.invoke(app, [*path, "--help"], prog_name="cdl", terminal_width=WIDTH, catch_exceptions=False)
        if result.exit_code != 0:
            raise SystemExit(f"cdl {' '.join(path)} --help exits with {result.exit_code}: {result.output}")
        lines = "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())
        sections.append(f"## {' '.join(('cdl', *path))}\n\n```\n{lines}\n```\n")
    return "\n".join(sections)


def main() -> int:
    """Exit status."""
    page = render()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
        print(f"{PAGE.name} is out of date: run python tools/help_doc.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
