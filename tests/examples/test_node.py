"""examples/node gives the same answers as examples/python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES, Answer, answers, check_same, run_app

pytestmark = pytest.mark.examples


def test_it_says_what_python_says(student: Path, photographs: list[Path], python_answers: list[Answer]) -> None:
    check_same(answers(run_app("node", "node/classify.mjs", student, *photographs).stdout), python_answers)


@pytest.mark.parametrize("app", ["node", "web"])
def test_the_lock_file_names_no_registry(app: str) -> None:
    lock = json.loads((EXAMPLES / app / "package-lock.json").read_text(encoding="utf-8"))
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]
