"""examples/python against cdl_deploy's own classifier."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from cdl_deploy import Classifier
from tests.examples.conftest import EXAMPLES, PROBABILITY_TOLERANCE, Answer


def test_it_says_what_the_classifier_says(student: Path, photographs: list[Path], python_answers: list[Answer]) -> None:
    predictions = list(Classifier(student).predict(photographs))
    assert [row.path for row in python_answers] == [str(path) for path in photographs]
    assert [row.label for row in python_answers] == [prediction.label for prediction in predictions]
    assert [row.probability for row in python_answers] == pytest.approx(
        [prediction.probability for prediction in predictions], abs=PROBABILITY_TOLERANCE
    )


def test_the_photographs_tell_apps_apart(python_answers: list[Answer]) -> None:
    """Guards the other tests: an app that ignored EXIF, or always said the same, would be found out."""
    assert len({row.label for row in python_answers}) >= 2
    turned = [row for row in python_answers if "turned" in row.path]
    assert len({(row.label, row.probability) for row in turned}) >= 4


def test_it_needs_onnxruntime_and_pillow_only() -> None:
    tree = ast.parse((EXAMPLES / "python/classify.py").read_text(encoding="utf-8"))
    imported = {node.names[0].name for node in ast.walk(tree) if isinstance(node, ast.Import)}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"sys", "numpy", "onnxruntime", "PIL"}  # numpy comes with onnxruntime
