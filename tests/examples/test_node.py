"""examples/node gives the same answers as examples/python, and learns what Python learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdl_deploy import Classifier, Learner
from tests.examples.conftest import EXAMPLES, Answer, answers, check_same, run_app

pytestmark = pytest.mark.examples


def test_it_says_what_python_says(student: Path, photographs: list[Path], python_answers: list[Answer]) -> None:
    check_same(answers(run_app("node", "node/classify.mjs", student, *photographs).stdout), python_answers)


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
