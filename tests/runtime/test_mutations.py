"""A few of the damaged files of benchmarks/attack/mutations.py, which reads 300 of each kind in guarded processes."""

from __future__ import annotations

import random

import pytest

from benchmarks.attack.mutations import attack_kind, outcome_of
from benchmarks.attack.readers import KINDS
from cdl_deploy.runtime import running

FEW = 12


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "weights"])
def test_a_damaged_file_is_right_or_refused_in_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "SECONDS_AN_IMAGE", 5.0)  # the reader of models sets it
    reader = KINDS[kind](tmp_path)
    outcomes = [outcome_of(reader, random.Random(f"test/{kind}/{number}")) for number in range(FEW)]
    assert not [(outcome, told) for outcome, told in outcomes if outcome not in ("right", "refused")]
    assert "refused" in {outcome for outcome, _ in outcomes}


def test_the_guard_counts(tmp_path):
    found = attack_kind("statistics", tmp_path, files=3, seed=0)
    assert found["right"] + found["refused"] == found["files"] == 3
    assert (found["failures"], found["memory_mb"] < 1_000) == (0, True)
