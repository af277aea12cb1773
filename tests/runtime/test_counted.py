"""Numbers in sentences."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from cdl_deploy.counted import at_most, beside, counted, small


def test_one_of_a_thing_is_one() -> None:
    assert [counted(count, "class") for count in (0, 1, 2, 1000)] == [
        "0 classes",
        "1 class",
        "2 classes",
        "1,000 classes",
    ]
    assert [counted(count, "held-out image") for count in (1, 5)] == ["1 held-out image", "5 held-out images"]


@given(st.floats(1e-12, 1e3, exclude_min=True))
def test_what_is_within_a_limit_does_not_read_as_at_it(value: float) -> None:
    limit = 10.0 ** math.ceil(math.log10(value))
    if value < limit:
        assert float(small(value)) < limit
        assert float(beside(value, limit)) < limit


def test_numbers_as_they_are_told() -> None:
    assert [small(value) for value in (3.14e-5, 9.96e-5, 9.999e-5, 1e-4, 0.0)] == [
        "3.1e-05", "9.96e-05", "9.999e-05", "1.0e-04", "0.0e+00"
    ]  # fmt: skip
    assert beside(1.0004e-4, 1e-4) == "0.00010004"
    assert beside(0.03, 1e-4) == "0.03"
    assert [at_most(value) for value in (1e-4, 3.1e-5)] == ["≤ 1e-04", "3.1e-05"]
