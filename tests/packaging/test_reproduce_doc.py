"""docs/reproduce.md: written by its script, commands that are what their rows say, and hours worked out by hand."""

from __future__ import annotations

import csv
import re
import shlex

import pytest

from cdl_deploy.run.config_file import layered_config
from cdl_deploy.run.presets import Sections
from tools.reproduce_doc import DOCS, PAGE, ROWS, command, hours, render, vit


def rows() -> list[dict[str, str]]:
    with ROWS.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_page_is_up_to_date() -> None:
    if PAGE.read_text(encoding="utf-8") != render():
        pytest.fail("docs/reproduce.md is out of date: run python tools/reproduce_doc.py")


def test_every_row_has_a_command_that_is_what_it_says() -> None:
    commands = re.findall(r"`(cdl train --preset[^`]+)`", PAGE.read_text(encoding="utf-8"))
    assert len(commands) == len(rows()) == 112
    assert set(commands) == {command(row) for row in rows()}
    taught = set()
    for row, text in ((row, command(row)) for row in rows()):
        words = shlex.split(text)[2:]
        given = {
            name.removeprefix("--").replace("-", "_"): value
            for name, value in zip(words[::2], words[1::2], strict=True)
        }
        out, preset = given.pop("out"), given.pop("preset")
        assert out not in taught
        taught.add(out)
        sections: Sections = {
            "data": {name: given.pop(name) for name in ("benchmark", "data")},
            "models": {name: given.pop(name) for name in ("student", "teacher_run") if name in given},
            "method": {name: given.pop(name) for name in ("method", "distill")},
        }
        assert set(given) == ({"holdout"} if row["dataset"] == "imagenet-r" else set())
        config = layered_config(preset, None, sections)
        assert config.models.student.startswith(f"{row['student']}_patch16_224.augreg")
        assert not row["teacher"] or config.models.teacher.startswith(f"{row['teacher']}_patch16_224.augreg")
        assert (config.method.method, config.method.distill) == (row["cl_method"], row["distillation"])
        assert config.models.teacher_run in {*taught, None}, "taught by a row before"


def test_hours_by_hand() -> None:
    """Against timm's multiplications of the three ViTs, in thousand millions; two operations each."""
    for name, macs in (("vit_small", 4.61), ("vit_base", 17.58), ("vit_large", 61.60)):
        assert vit(name).forward == pytest.approx(2e9 * macs, rel=0.005)
    by_name = {(row["dataset"], row["student"], row["cl_method"], row["distillation"]): row for row in rows()}
    small, base, back = 9.21, 35.13, 9.92  # attention is 0.72 of the first
    seconds = (1e6 * (2 * small + back) + 55_000 * 2 * small) / 26.8e3
    assert hours(by_name["cifar100", "vit_small", "coda", "none"]) == pytest.approx(seconds / 3600, rel=0.01)
    seconds = (1e6 * (small + back) + 55_000 * small) / 26.8e3
    assert hours(by_name["cifar100", "vit_small", "apt", "none"]) == pytest.approx(seconds / 3600, rel=0.01)
    more = (1e6 * base) / 26.8e3  # the teacher's pass, taken over from another run
    found = hours(by_name["cifar100", "vit_small", "apt", "kdp"]) - hours(
        by_name["cifar100", "vit_small", "apt", "none"]
    )
    assert found == pytest.approx(more / 3600, rel=0.01)


def test_the_orders_list_every_class_once_in_natural_order() -> None:
    for name, count in (("cifar100", 100), ("imagenet-r", 200)):
        names = (DOCS / "class-orders" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        assert len(set(names)) == count
        assert names == sorted(names)
