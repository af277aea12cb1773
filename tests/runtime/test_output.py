"""What reaches a terminal, a table, a spreadsheet or a picture: names are shown as they are, and do nothing."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

import cdl_deploy.cli
from cdl_deploy.cli.output import echo, echo_json, make_console
from cdl_deploy.printable import as_it_was, as_typed, figure_text, json_printable, no_formula, printable
from cdl_deploy.rows.formats import Csv, JsonLines
from cdl_deploy.rows.formats import Table as Lines
from cdl_deploy.runtime.classifier import Prediction
from cdl_deploy.runtime.predict import Row

NASTY = "a\x1b[2J\nb\r\x9b31m\u202etxt\t[red]:smile: $^$"
SHOWN = "a\\x1b[2J\\nb\\r\\x9b31m\\u202etxt\\t[red]:smile: $^$"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


def test_control_characters_are_shown():
    assert printable(NASTY) == SHOWN
    assert printable("grün ✓ 日本 é\n", lines=True) == "grün ✓ 日本 é\n"
    assert printable("a\udc9bb\udce9") == "a\\x9bb\udce9"  # bytes that are no UTF-8: one of them is a control


@given(st.text())
def test_json_says_the_same(text):
    shown = json_printable(json.dumps([text], ensure_ascii=False))
    assert json.loads(shown) == [text]
    assert not CONTROL.search(shown)


@given(st.text(alphabet="'=+-@\t\ra1", max_size=6))
def test_no_cell_is_a_formula_and_each_is_read_back(text):
    cell = no_formula(text)
    assert isinstance(cell, str)
    assert cell[:1] not in tuple("=+-@\t\r")
    assert as_it_was(cell) == text


def row(name: str) -> Row:
    return Row(name, Prediction(name, 0.5, ((name, 0.5), (name + "2", 0.25)), 1, 0), None)


@pytest.mark.parametrize("name", [NASTY, "=1+2", "'=1", "-", "@x"])
def test_rows(name):
    assert Lines().encode(row(name)).decode().count("\n") == 1
    assert not CONTROL.search(Lines().encode(row(name)).decode())
    for kind in (JsonLines(), Csv(2)):
        content = kind.header() + kind.encode(row(name))
        assert [stored.row for stored in kind.decode(io.BytesIO(content))] == [row(name)]
    cells = next(csv.reader(io.StringIO(Csv(2).encode(row(name)).decode(), newline="")))
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@"))]


def test_echo(capsys):
    echo(f"error: {NASTY}".replace("\n", " "), err=True)
    echo_json({"name": NASTY})
    out, err = capsys.readouterr()
    assert err == f"error: {SHOWN}\n".replace("\\n", " ")
    assert json.loads(out) == {"name": NASTY}
    assert not CONTROL.search(out)


def test_text_is_text(capsys):
    """No markup, no emoji, no escape sequences, in a cell or anywhere."""
    table = Table("name", title="p[v2] [/]")
    table.add_row("p[v2]:smile:[/nothing]")
    table.add_row(Text("x\x1b[31m"))
    make_console().print(table)
    out = capsys.readouterr().out
    assert "p[v2] [/]" in out
    assert "p[v2]:smile:[/nothing]" in out
    assert "x\\x1b[31m" in out


@pytest.mark.parametrize("columns", ["10", "40", "0", "x"])
def test_numbers_are_whole_however_narrow_a_terminal_is(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    table = Table("a class of a long name", title="title")
    for name in ("accuracy", "right task", "within task"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("a word " * 30, "100.0", "1,234,567.8", "99.9")
    make_console().print(table)
    out = capsys.readouterr().out
    for text in ("accuracy", "right task", "within task", "100.0", "1,234,567.8", "99.9"):
        assert text in out


def test_an_encoding_without_the_letters(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    table = Table("grün – ✓")
    table.add_row("日本…")
    make_console().print(table)
    echo("grün ✓")
    assert "gr?n - ?" in raw.getvalue().decode("ascii")
    assert "gr\\xfcn \\u2713" in raw.getvalue().decode("ascii")


def test_dollars_are_no_formula():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    FigureCanvasAgg(figure)
    figure.suptitle(figure_text("d$^$ and $x"))
    figure.draw_without_rendering()  # raised ValueError: d$^$ is no formula either


def test_all_output_goes_one_way():
    """A `print`, `typer.echo` or `Console()` of its own would escape nothing."""
    for file in Path(cdl_deploy.cli.__file__).parent.glob("*.py"):
        if file.name != "output.py":
            found = re.search(
                r"typer\.echo\(|(?<!\w)Console\(|sys\.std(out|err)\.write", file.read_text(encoding="utf-8")
            )
            assert not found, f"{file.name}: {found and found[0]}"


def test_commands_to_be_copied_are_quoted():
    assert as_typed(Path("runs/photos")) == "runs/photos"
    assert as_typed(Path("/Volumes/My Photos/d$^$")) == "'/Volumes/My Photos/d$^$'"
