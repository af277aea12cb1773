"""examples/cpp, built by CMake against ONNX Runtime in the layout of its releases, gives the same answers as Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.conftest import BUILT, Answer, answers, check_same, run_app

pytestmark = pytest.mark.examples
CLASSIFY = BUILT / "cpp" / "classify"


def test_it_says_what_python_says(student: Path, photographs: list[Path], python_answers: list[Answer]) -> None:
    check_same(answers(run_app(CLASSIFY, student, *photographs).stdout), python_answers)


def test_a_file_that_is_no_image(student: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.jpg"
    notes.write_text("not a photograph")
    failed = run_app(CLASSIFY, student, notes, status=2)
    assert failed.stdout == ""
    assert failed.stderr == f"error: {notes}: unknown image type\n"


def test_no_photograph() -> None:
    assert run_app(CLASSIFY, "student.onnx", status=2).stderr == "usage: classify MODEL.onnx PHOTOGRAPH...\n"
