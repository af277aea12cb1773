"""Confusion, recall and precision, as scikit-learn counts them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as theirs
from sklearn.metrics import precision_score, recall_score

from cdl_deploy.evaluation.confusion import Mistake, confusion_matrix, precisions, recalls, worst_mistakes

ANSWERS = st.integers(2, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=50),
    )
)


@given(ANSWERS)
def test_is_scikit_learns(answers):
    classes, pairs = answers
    true, named = np.array(pairs).T
    names = range(classes)
    ours = confusion_matrix(true, named, classes)
    assert np.array_equal(ours, theirs(true, named, labels=names))
    options = {"labels": names, "average": None, "zero_division": np.nan}
    for found, expected in (
        (recalls(ours), recall_score(true, named, **options)),
        (precisions(ours), precision_score(true, named, **options)),
    ):
        for value, other in zip(found, expected, strict=True):
            assert np.isnan(other) if value is None else np.isclose(value, 100 * other)


def test_worst_mistakes_by_hand():
    counts = np.array([[5, 1, 4], [0, 0, 0], [4, 0, 4]])
    assert worst_mistakes(counts, 2) == [Mistake(0, 2, 4, 40.0), Mistake(2, 0, 4, 50.0)]
    assert worst_mistakes(counts, 9)[2:] == [Mistake(0, 1, 1, 10.0)]
    assert worst_mistakes(np.diag([3, 4]), 9) == []
