"""examples/node gives the same answers as examples/python, and learns what Python learns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cdl_deploy import Classifier, Learner
from cdl_deploy.runtime.bundle import read_bundle
from tests.examples.conftest import EXAMPLES, Answer, answers, check_same, run_app

pytestmark = pytest.mark.examples


def test_it_says_what_python_says(student: Path, photographs: list[Path], python_answers: list[Answer]) -> None:
    check_same(answers(run_app("node", "node/classify.mjs", student, *photographs).stdout), python_answers)


def test_no_task_where_none_is_selected(learnable: Path, photographs: list[Path]) -> None:
    ours = answers(run_app("node", "node/classify.mjs", learnable, *photographs[:2]).stdout)
    check_same(ours, answers(run_app(sys.executable, "python/classify.py", learnable, *photographs[:2]).stdout))
    assert [row.task for row in ours] == ["", ""]


def test_an_error_is_one_line(student: Path, learnable: Path, photographs: list[Path], tmp_path: Path) -> None:
    notes, new, photo = tmp_path / "notes.jpg", tmp_path / "new.onnx", photographs[0]
    notes.write_text("not a photograph")
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(learnable.read_bytes())
    beside = read_bundle(learnable).statistics
    assert beside is not None
    for words, said in {
        ("classify.mjs", student): "usage: node classify.mjs MODEL.onnx PHOTOGRAPH...",
        ("classify.mjs", student, notes): f"{notes}: Input file contains unsupported image format",
        ("classify.mjs", notes, photo): "Load model from",
        ("learn.mjs", learnable, new, "screw"): "usage: node learn.mjs MODEL.onnx NEW.onnx CLASS PHOTOGRAPH...",
        ("learn.mjs", learnable, new, "screw", notes): f"{notes}: Input file contains unsupported image format",
        ("learn.mjs", student, new, "screw", photo): f"{student} names no statistics, so it cannot learn: export it",
        (
            "learn.mjs",
            alone,
            new,
            "screw",
            photo,
        ): f"ENOENT: no such file or directory, open '{tmp_path / beside.file}'",
        ("learn.mjs", notes, new, "screw", photo): f"{notes}: the file is no whole ONNX model",
        ("learn.mjs", learnable, tmp_path / "no" / "new.onnx", "screw", photo): "ENOENT: no such file or directory",
    }.items():
        failed = run_app("node", f"node/{words[0]}", *words[1:], status=2)
        assert failed.stdout == ""
        assert failed.stderr.startswith(f"error: {said}"), failed.stderr
        assert failed.stderr.count("\n") == 1
    assert not new.exists()


@pytest.mark.parametrize("app", ["node", "web"])
def test_the_lock_file_names_no_registry(app: str) -> None:
    lock = json.loads((EXAMPLES / app / "package-lock.json").read_text(encoding="utf-8"))
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]


def test_it_learns_what_python_learns(learnable: Path, photographs: list[Path], tmp_path: Path) -> None:
    portraits = [path for path in photographs if path.name.startswith("turned")]
    ours, theirs = tmp_path / "new.onnx", tmp_path / "theirs.onnx"
    done = run_app("node", "node/learn.mjs", learnable, ours, "portrait", *portraits)
    known = len(Learner(learnable).classes)
    assert done.stdout == f"{ours} knows {known + 1} classes; portrait from {len(portraits)} photographs\n"
    Learner(learnable).add("portrait", portraits).save(theirs)
    assert Learner(ours).images == Learner(theirs).images
    one, other = (list(Classifier(path).predict(photographs)) for path in (ours, theirs))
    assert [row.label for row in one] == [row.label for row in other]
    assert [row.probability for row in one] == pytest.approx([row.probability for row in other], abs=0.02)
